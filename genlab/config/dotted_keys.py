"""Access to nested mappings by dotted keys, as options are typed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def get_option(config: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key, None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def set_option(config: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key, creating the mappings around it."""
    *parents, last = key.split(".")
    for part in parents:
        config = config.setdefault(part, {})
    config[last] = value


def flatten_config(config: Any) -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key; an empty mapping is a leaf."""
    return dict(_iterate_leaves(config, ""))


def _iterate_leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and (node or not path):
        for key, value in node.items():
            yield from _iterate_leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
