"""Find the classes that a command's config groups name, without composing the config.

The shipped group files and their defaults lists are read. That is enough to know which model,
dataset and trainer a command of an older format chose, although its options no longer compose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from genlab.config.config_dir import config_folder
from genlab.config.override_keys import override_key

# A config group, and the package that it is put into; "" for its own.
GroupKey = tuple[str, str]


@dataclass
class GroupTargets:
    """The classes and trainers that a command names; several alternatives in a sweep.

    Attributes:
        trainers: the values of trainer.name.
        targets: the values of `_target_`, by the dotted key of their section.
    """

    trainers: list[str] = field(default_factory=list)
    targets: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupFile:
    """A file of a config group.

    Attributes:
        package: the dotted key of its content in the config; "" for the root.
        defaults: the entries of its defaults list, each as (key, name); a plain entry has key "".
        content: its other keys.
    """

    package: str
    defaults: tuple[tuple[str, str], ...]
    content: dict[str, Any]


def find_group_targets(overrides: Iterable[str]) -> GroupTargets:
    """Return the classes and trainers of the groups that overrides of `genlab train` choose."""
    found = GroupTargets()
    choices: dict[GroupKey, list[str]] = {}
    for override in overrides:
        group, _, package = override_key(override).partition("@")
        if group in shipped_config_groups():
            choices[group, package] = override.partition("=")[2].split(",")
    root = {key: name for key, name in read_group_file("", "train").defaults if key}
    # An experiment chooses the model, and a model the other groups, unless the command does.
    for group in ("experiment", "model", *(root.keys() - {"experiment", "model"})):
        for name in choices.get((group, ""), [root.get(group, "")]):
            _collect_targets(found, choices, group, "", name)
    return found


@cache
def shipped_config_files() -> dict[str, Path]:
    """Return the shipped config files by their path without suffix, such as model/vae.

    The overrides may come from an untrusted plan: they select among these files only.
    """
    folder = config_folder()
    paths = folder.rglob("*.yaml")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


@cache
def shipped_config_groups() -> frozenset[str]:
    """Return the names of the shipped config groups, such as model or experiment/sweep."""
    return frozenset(name.rpartition("/")[0] for name in shipped_config_files()) - {""}


@cache
def read_group_file(group: str, name: str) -> GroupFile:
    """Return a file of a config group; an empty one if it does not exist."""
    path = shipped_config_files().get(f"{group}/{name}" if group else name)
    if path is None:
        return GroupFile("", (), {})
    text = path.read_text(encoding="utf-8")
    package = group.replace("/", ".")
    header = text.partition("\n")[0]
    if header.startswith("# @package "):
        package = header.removeprefix("# @package ").strip().replace("_global_", "")
    content = yaml.safe_load(text) or {}
    defaults: list[tuple[str, str]] = []
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            defaults += [(str(key), str(value)) for key, value in entry.items()]
        elif entry != "_self_":
            defaults.append(("", str(entry)))
    return GroupFile(package, tuple(defaults), content)


def _collect_targets(
    found: GroupTargets, choices: dict[GroupKey, list[str]], group: str, package: str, name: str
) -> None:
    """Add what a group file and its defaults name.

    Args:
        choices: of the command; the defaults list may add to them.
        package: into which the file is put; "" for its own.
    """
    file = read_group_file(group, name)
    package = package or file.package
    for key, value in file.defaults:
        if not key:  # another file, of this group unless it has a path
            other_group, _, other_name = value.removeprefix("/").rpartition("/")
            _collect_targets(found, choices, other_group or group, package, other_name)
            continue
        other_group, _, other_package = key.removeprefix("override ").strip("/").partition("@")
        if key.startswith("override "):
            choices.setdefault((other_group, other_package), [value])
            continue
        if other_package and package:
            other_package = f"{package}.{other_package}"
        for chosen in choices.get((other_group, other_package), [value]):
            _collect_targets(found, choices, other_group, other_package, chosen)
    for key, target in _list_targets(file.content, package):
        found.targets.setdefault(key, []).append(target)
    trainer = file.content.get("trainer")
    if not package and isinstance(trainer, dict) and "name" in trainer:
        found.trainers.append(str(trainer["name"]))


def _list_targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the `_target_` of each section below a node."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get("_target_"), str):
        yield path, node["_target_"]
    for key, value in node.items():
        yield from _list_targets(value, f"{path}.{key}" if path else str(key))
