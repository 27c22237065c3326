"""The type, range, choices and meaning of each option of a composed config.

The meaning of an option is the comment beside it, or above it, in the YAML file that sets it; an
option without a comment takes the one of an earlier file, or the line of the constructor's `Args`.
Types, ranges and choices are those of the type hints that check the values.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import Any, Literal

import yaml

from genlab.config.config_dir import config_folder
from genlab.config.instantiate import format_cli_value, import_target, parameters_and_type_hints
from genlab.config.recipes import shipped_group_files
from genlab.spec import IsClass

KEY_LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?P<rest>(?:[ \t].*)?)")
PACKAGE_LINE = re.compile(r"#\s*@package\s+(\S+)")
MAX_LIMIT_SHOWN = 10**6  # a larger limit only guards against typing errors


@dataclass(frozen=True)
class Option:
    """One option of a command: what `--help` shows of it."""

    name: str  # dotted, as it is typed
    default: Any
    type: str
    meaning: str


# --- comments in YAML -----------------------------------------------------------------------------


def read_yaml_comments(path: Path, package: str = "") -> dict[str, str]:
    """Return the comments of a YAML file by dotted option, those of empty comments left out.

    Args:
        package: where the file's keys belong (`dataset` for configs/dataset/*.yaml); a line
            `# @package` in the file overrides it.
    """
    comments: dict[str, str] = {}
    trail: list[tuple[int, str]] = []  # (indent, key) of the mappings around a line
    above: list[str] = []
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := PACKAGE_LINE.match(line):
            package = "" if found[1] == "_global_" else found[1]
            continue
        stripped = line.strip()
        if stripped.startswith("#"):
            text = stripped.lstrip("# ").strip()
            column = len(line) - len(line.lstrip())
            if last and trail and column > trail[-1][0] + 2 and not above:
                comments[last] = (
                    f"{comments.get(last, '')} {text}".strip()
                )  # continues below its line
            else:
                above.append(text)
            continue
        if not (match := KEY_LINE.fullmatch(line)):
            above = []
            continue
        indent = len(match["indent"])
        while trail and trail[-1][0] >= indent:
            trail.pop()
        trail.append((indent, match["key"]))
        option = ".".join(filter(None, [package, *(key for _, key in trail)]))
        # The comment above the first key is the header of the file.
        text = trailing_comment(match["rest"]) or (" ".join(above) if last or indent else "")
        if text:
            comments[option] = text
        last, above = option, []
    return comments


def trailing_comment(rest: str) -> str:
    """Return the comment after a YAML value, "" if there is none."""
    quote = ""
    for i, char in enumerate(rest):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and (i == 0 or rest[i - 1] in " [,{:"):
            quote = char
        elif char == "#" and (i == 0 or rest[i - 1] in " \t"):
            return rest[i + 1 :].strip()
    return ""


def read_option_comments(
    command: str, choices: dict[str, str | None], folders: Iterable[Path] = ()
) -> dict[str, str]:
    """Return the meanings that the files of a composition give, later files over earlier ones.

    Args:
        choices: the chosen file of each config group, {"model": "vae", "dataset@dataset.base": …}.
        folders: further folders with config groups (`--config-dir`).
    """
    meanings: dict[str, str] = {}
    roots = [config_folder(), *folders]
    for root in roots:
        for name in ("base", "run_base", command):
            if (path := root / f"{name}.yaml").exists():
                meanings |= read_yaml_comments(path)
    for choice in sorted(choices, key=lambda name: ("experiment" in name, name == "model")):
        name, _, package = choice.partition("@")
        for root in roots:
            path = root / name / f"{choices[choice]}.yaml"
            for file in [*parent_group_files(path), path]:
                if file.exists():
                    meanings |= read_yaml_comments(file, package or name.replace("/", "."))
    return meanings


def parent_group_files(path: Path) -> list[Path]:
    """Return the files of the same group that a group file extends in its `defaults`."""
    if not path.exists():
        return []
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = content.get("defaults", []) if isinstance(content, dict) else []
    names = (name for name in defaults if isinstance(name, str) and name != "_self_")
    return [path.with_name(f"{name}.yaml") for name in names]


# --- types ----------------------------------------------------------------------------------------


def describe_type(hint: Any) -> str:
    """Return a type hint in words, such as `int ≥ 1` or `linear | cosine`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated and any(isinstance(a, IsClass) for a in arguments[1:]):
        return "name or number of a class"
    if origin is typing.Annotated:
        return " ".join([describe_type(arguments[0]), *describe_range(arguments[1:])])
    if origin is Literal:
        return " | ".join(map(format_cli_value, arguments))
    if origin in (typing.Union, types.UnionType):
        parts = [describe_type(a) for a in arguments if a is not type(None)]
        optional = ["null"] if type(None) in arguments else []
        return " or ".join(dict.fromkeys([*parts, *optional]))
    if (
        origin in (list, tuple, set, typing.Sequence)
        or getattr(origin, "__name__", "") == "Sequence"
    ):
        inner = dict.fromkeys(describe_type(a) for a in arguments if a is not ...)
        return f"list of {' or '.join(inner)}" if inner else "list"
    if origin is dict or hint is dict:
        return "mapping"
    if origin is not None and getattr(origin, "__name__", "") == "Callable":
        return "network"
    names = {bool: "true | false", int: "int", float: "number", str: "text", Any: "any value"}
    return names.get(hint, "network" if hint is Callable else getattr(hint, "__name__", str(hint)))


def describe_range(constraints: Iterable[Any]) -> list[str]:
    """Return the limits that annotations set, as "≥ 1"; the bound of all counts is left out."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found: list[str] = []
    for constraint in constraints:
        for name, sign in signs.items():
            limit = getattr(constraint, name, None)
            if isinstance(limit, int | float) and abs(limit) < MAX_LIMIT_SHOWN:
                found.append(f"{sign} {limit:g}")
        found += describe_range(getattr(constraint, "metadata", None) or ())  # pydantic's Field
    return list(dict.fromkeys(found))


def docstring_arguments(target: Callable[..., Any]) -> dict[str, str]:
    """Return the lines of a docstring's `Args` section by name, bases of a class included."""
    found: dict[str, str] = {}
    for kind in reversed(target.__mro__) if isinstance(target, type) else (target,):
        documents = [vars(kind).get("__doc__") if isinstance(kind, type) else getdoc(kind)]
        if isinstance(kind, type) and (initializer := vars(kind).get("__init__")):
            documents.append(initializer.__doc__)
        for document in documents:
            found |= parse_args_section(document or "")
    return found


def parse_args_section(document: str) -> dict[str, str]:
    """Return {name: description} of a Google-style `Args:` section."""
    _, _, section = f"\n{cleandoc(document)}".partition("\nArgs:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if match := re.match(r"    (\w+)(?: \(.*?\))?: (.*)", line):
            name, found[match[1]] = match[1], match[2].strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


# --- options --------------------------------------------------------------------------------------


def list_section_options(
    config: dict[str, Any],
    meanings: dict[str, str],
    target: Callable[..., Any] | None = None,
    path: str = "",
) -> list[Option]:
    """Return the options of one section of a config, with those of networks nested in it.

    Args:
        config: the section as plain values.
        meanings: comments by dotted option.
        target: the class or function that takes the options as keywords; None uses the
            section's own `_target_`.
        path: the section's own dotted name.
    """
    if target is None and "_target_" in config:
        target = import_target(config, path)
    hints: dict[str, Any] = {}
    documented: dict[str, str] = {}
    if target is not None:
        hints = parameters_and_type_hints(target)[1]
        if not target.__module__.startswith("torch."):
            documented = docstring_arguments(target)
    options = []
    for key, value in config.items():
        if key.startswith("_"):
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict) and "_target_" in value:
            options += list_section_options(value, meanings, path=name)
            continue
        meaning = meanings.get(name) or documented.get(key, "")
        options.append(
            Option(name, value, describe_type(hints[key]) if key in hints else "", meaning)
        )
    return options


def list_group_choices(name: str, folders: Iterable[Path] = ()) -> list[str]:
    """Return the files of a config group, also those of further folders."""
    own = (path for root in folders for path in sorted((root / name).glob("*.yaml")))
    shipped = (path for path in shipped_group_files(name) if path.parent.name == Path(name).name)
    return sorted({path.stem for path in [*shipped, *own]})
