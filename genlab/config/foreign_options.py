"""Drop options that the user's choice of a config group does not have."""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any

from genlab.config.dotted_keys import get_option
from genlab.config.group_targets import read_group_file, shipped_config_groups
from genlab.config.instantiate import import_target, parameters_and_type_hints
from genlab.config.override_keys import override_key

Plain = dict[str, Any]

# Groups whose files name a class; a regularizer or a sampler is only a set of options.
CLASS_GROUPS = ("model", "dataset", "optimizer", "backbone")


def drop_foreign_options(config: Plain, overrides: list[str]) -> tuple[Plain, list[str]]:
    """Return a config without options of replaced groups, and a note for each group.

    `experiment=srresnet_x2` sets options of its folder of pairs. With another dataset on the
    command line, `dataset@dataset.base=image_folder`, they have no meaning. Options that were typed
    are kept, so that a wrong one is refused.

    Args:
        config: resolved.
        overrides: of the command line.
    """
    config = deepcopy(config)
    typed = [key for override in overrides for key in typed_sections(override)]
    notes = []
    for override in overrides:
        group, _, package = override_key(override).partition("@")
        name = override.partition("=")[2]
        if group not in CLASS_GROUPS:
            continue
        section = package or section_of_group(group, name)
        node = get_option(config, section)
        if not isinstance(node, dict) or not (known := option_names(node, section)):
            continue
        foreign = [
            key
            for key in node
            if key not in known
            and not any(f"{typed_key}.".startswith(f"{section}.{key}.") for typed_key in typed)
        ]
        for key in foreign:
            del node[key]
        if foreign:
            options = ", ".join(f"{section}.{key}" for key in foreign)
            notes.append(f"{options}: left out, because {override.lstrip('+')} does not have it")
    return config, notes


def typed_sections(override: str) -> list[str]:
    """Return the dotted keys that an override sets: its own, or those of the file of a group."""
    key, name = override_key(override), override.partition("=")[2]
    group, _, package = key.partition("@")
    if group in CLASS_GROUPS or group not in shipped_config_groups() or name in ("", "null"):
        section = section_of_group(group, name) if group == "backbone" else ""
        return [key, section] if section and not package else [key]
    file = read_group_file(group, name)
    section = package or file.package or group
    return [key, *(f"{section}.{option}" for option in file.content)]


def section_of_group(group: str, name: str) -> str:
    """Return the dotted key that a group's file fills, as model or model.backbone."""
    package = read_group_file(group, name).package
    return package or group


def option_names(node: Plain, section: str) -> set[str]:
    """Return the options that a section's class takes; empty if it takes any or none."""
    if "_target_" not in node:
        return set()
    parameters = parameters_and_type_hints(import_target(node, section))[0]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) and not isinstance(
        import_target(node, section), type
    ):
        return set()
    return {parameter.name for parameter in parameters} | {"_target_", "_partial_"}
