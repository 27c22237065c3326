"""The one check of configs, choices and options that were not typed on this command line.

A config names classes (`_target_`), files of config groups (`model=vae`) and values that are looked
up elsewhere (`${oc.env:…}`). In a config from another person each of these could run code or
disclose something, so such a config passes `refuse_untrusted_config` before it is used, and Hydra
finds group files only through `refuse_path_as_choice`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from genlab.errors import UserError

# Targets that a config may name without further permission. Of PyTorch's optimizers only their
# public names: torch.optim.Adam, but not torch.optim.os.system, which Python would resolve too.
SHIPPED_TARGET = re.compile(r"genlab(\.\w+)+|torch\.optim\.[A-Z]\w*")
MAX_CONFIG_DEPTH = 50
MAX_CONFIG_VALUES = 100_000


def is_allowed_target(name: Any, allowed: tuple[str, ...]) -> bool:
    """Whether a `_target_` is shipped with genlab or belongs to an allowed package."""
    if not isinstance(name, str):
        return False
    return bool(SHIPPED_TARGET.fullmatch(name)) or name.split(".")[0] in allowed


def refuse_untrusted_config(config: Any, *, allowed: tuple[str, ...], where: str) -> None:
    """Refuse a config with a reference, or a class outside genlab and the trusted packages.

    Args:
        config: plain values, as a run's config.yaml has them.
        allowed: top-level packages that the user trusts.
        where: the file that the config comes from, for messages.

    Raises:
        UserError: names the key and the value.
    """
    for number, (path, key, value) in enumerate(walk_config(config, where)):
        if number > MAX_CONFIG_VALUES:
            raise UserError(f"{where}: it has more than {MAX_CONFIG_VALUES:,} values")
        if key == "_target_" and not is_allowed_target(value, allowed):
            raise UserError(
                f"{where}: {path} names {value!r}, which is not part of genlab; "
                "if you trust it, add trusted_packages=[package]"
            )
        for text in (key, value):
            if isinstance(text, str) and "${" in text:
                raise UserError(
                    f"{where}: {path}={value} refers to a value elsewhere, which a run's config "
                    "must not; write the value itself there"
                )


def walk_config(
    node: Any, where: str, path: str = "", depth: int = 0
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted path, the key and the value of everything in plain containers.

    Raises:
        UserError: they are nested too deeply.
    """
    if depth > MAX_CONFIG_DEPTH:
        raise UserError(f"{where}: {path[:80]}… is nested too deeply")
    if isinstance(node, dict):
        for key, value in node.items():
            key_path = f"{path}.{key}" if path else str(key)
            yield key_path, key, value
            yield from walk_config(value, where, key_path, depth + 1)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield f"{path}[{i}]", None, value
            yield from walk_config(value, where, f"{path}[{i}]", depth + 1)


# --- choices of group files -----------------------------------------------------------------------


def refuse_path_as_choice(config_path: str) -> None:
    """Refuse a config group or choice that is a path to somewhere else.

    Hydra joins both to the folders of genlab and of --config-dir, so `..` would leave them.

    Args:
        config_path: the group and the choice, as "model/vae".

    Raises:
        UserError: names it.
    """
    parts = config_path.replace("\\", "/").split("/")
    if ".." in parts or "://" in config_path or config_path.startswith(("/", "~")):
        raise UserError(
            f"{config_path}: a choice is the name of a file that ships with genlab or is in your "
            "--config-dir, not a path; add the folder of the file by --config-dir"
        )


# --- options --------------------------------------------------------------------------------------


def refuse_unsafe_options(
    options: Any, *, is_allowed: Callable[[str], bool], where: str
) -> dict[str, Any]:
    """Return options of an untrusted file, by dotted key, to be set in a trusted config.

    Args:
        is_allowed: whether a key may be set.

    Raises:
        UserError: names the key.
    """
    if not isinstance(options, dict):
        raise UserError(f"{where} is unreadable: it is not a mapping of options")
    for key, value in options.items():
        if not is_allowed(key) or "_" in {part[:1] for part in key.split(".")}:
            raise UserError(f"{where} sets {key}, which genlab does not write there")
        if isinstance(value, dict):
            raise UserError(f"{where} sets {key} to a group of options, and it must be a value")
        refuse_untrusted_config({key: value}, allowed=(), where=where)
    return options
