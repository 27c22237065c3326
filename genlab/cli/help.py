"""`genlab <command> --help`: each option with its meaning, type, range and default.

The options are those of the composed config, so the help follows the choices typed beside it:
`genlab train model=dcgan --help` lists the options of DCGAN and of its trainer.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from genlab.cli.hydra_args import quote_special_values
from genlab.commands import COMMANDS
from genlab.config.instantiate import format_cli_value, import_target
from genlab.config.option_docs import (
    Option,
    list_group_choices,
    list_section_options,
    read_option_comments,
)

MAX_WIDTH = 100  # columns
TYPE_COLUMN = 38  # where the types begin, if the option is not longer
SECTIONS = {  # titles, in the order in which `genlab train` shows them; others follow
    "": "General",
    "model": "Model",
    "trainer": "Trainer",
    "optimizer": "Optimizer",
    "dataset": "Data set",
    "preprocess": "Preprocessing",
    "evaluate": "Evaluation while training",
    "sampler": "Sampler",
    "device": "Device",
}


def command_help(command: str, arguments: list[str]) -> str:
    """Return the help of a command, for the choices among its arguments.

    Args:
        command: a command that Hydra composes.
        arguments: the other words of the command line.
    """
    folders = [Path(b) for a, b in pairwise(arguments) if a in ("--config-dir", "-cd")]
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    overrides = quote_special_values(overrides)
    config, groups = compose_options(command, overrides, folders)
    meanings = read_option_comments(command, groups, folders)
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    lines = [COMMANDS[command].help, "", f"usage: genlab {command} [option=value ...]", ""]
    lines += format_config_groups(groups, folders, width)
    for title, options in option_sections(command, config, meanings):
        if options:
            lines += [title, *(line for o in options for line in format_option(o, width)), ""]
    lines += textwrap.wrap(
        "Flags: --cfg job prints the composed values; --config-dir FOLDER adds group files of your "
        "own; -m (train only) runs a sweep over comma-separated values.",
        width,
    )
    return "\n".join(lines)


def compose_options(
    command: str, overrides: list[str], folders: Iterable[Path] = ()
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return a command's composed config, and the chosen file of each config group.

    Args:
        folders: further folders with config groups (`--config-dir`).
    """
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    if search := [f"file://{folder.resolve()}" for folder in folders]:
        overrides = [*overrides, f"hydra.searchpath=[{','.join(search)}]"]
    with initialize_config_module("genlab.configs", version_base="1.3"):
        composed = compose(command, overrides=overrides, return_hydra_config=True)
    choices = dict(composed.hydra.runtime.choices)
    visible = [str(key) for key in composed if key != "hydra"]
    container = OmegaConf.to_container(OmegaConf.masked_copy(composed, visible))
    assert isinstance(container, dict)
    config = {str(key): value for key, value in container.items()}
    return config, {k: v for k, v in choices.items() if not k.startswith("hydra/")}


def option_sections(
    command: str, config: dict[str, Any], meanings: dict[str, str]
) -> Iterator[tuple[str, list[Option]]]:
    """Yield the title and the options of each section of a composed config."""
    targets = section_targets(command, config)
    general = {key: value for key, value in config.items() if not isinstance(value, dict)}
    general |= {key: value for key, value in config.items() if value == {}}
    yield SECTIONS[""], list_section_options(general, meanings, targets.get(""))
    groups = {k: v for k, v in config.items() if isinstance(v, dict) and v}
    for key in sorted(groups, key=lambda k: [*SECTIONS, k].index(k)):
        title = SECTIONS.get(key, key.capitalize())
        target = targets.get(key)
        if target is None and "_target_" in groups[key]:
            target = import_target(groups[key], key)
        if key in ("model", "trainer", "optimizer", "dataset") and target is not None:
            title += f" ({target.__qualname__.removesuffix('.Options')})"
        yield title, list_section_options(groups[key], meanings, target, key)


def section_targets(command: str, config: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """Return the class or function that takes the options of each section without `_target_`."""
    targets: dict[str, Callable[..., Any]] = {}
    if isinstance(config.get("trainer"), dict) and "name" in config["trainer"]:
        from genlab.builders.factory import trainer_class_and_options

        targets["trainer"] = trainer_class_and_options(
            {"trainer": {"name": config["trainer"]["name"]}}
        )[0].Options
    has_dataset = "_target_" in (config.get("dataset") or {})
    if isinstance(config.get("preprocess"), dict) and has_dataset:
        targets["preprocess"] = import_target(config["dataset"], "dataset")
    if isinstance(config.get("device"), dict):
        from genlab.distributed.device import Device

        targets["device"] = Device
    if command in ("train", "plan"):
        from genlab.builders.resume_config import declare_run_option_types

        targets[""] = declare_run_option_types
    else:
        targets[""] = COMMANDS[command].import_function()
    if isinstance(config.get("evaluate"), dict):
        from genlab.metrics.base import Settings

        targets["evaluate"] = Settings
    return targets


def format_config_groups(
    groups: dict[str, str | None], folders: list[Path], width: int
) -> list[str]:
    """Return the lines that list the config groups with their choices."""
    lines = []
    for name, choice in groups.items():
        known = list_group_choices(name.partition("@")[0], folders)
        default = "null" if choice is None else choice
        text = f"one of {', '.join(known)}" if known else ""
        lines += [f"  {name}={default}", *wrap_indented(text, width)]
    return ["Groups: choose one file of each", *lines, ""] if lines else []


def format_option(option: Option, width: int) -> list[str]:
    """Return the lines of one option: name, default and type, then its meaning."""
    default = format_cli_value(option.default)
    if "${" in default:  # composed from other options
        default = "…"
    head = f"  {option.name}={default}"
    if not option.type:
        return [truncate_line(head, width), *wrap_indented(option.meaning, width)]
    aligned = f"{head:<{TYPE_COLUMN}}  [{option.type}]"
    if len(aligned) <= width:
        return [aligned, *wrap_indented(option.meaning, width)]
    return [
        truncate_line(head, width),
        *wrap_indented(f"[{option.type}]", width),
        *wrap_indented(option.meaning, width),
    ]


def truncate_line(line: str, width: int) -> str:
    """Return a line cut to the width."""
    return line if len(line) <= width else f"{line[: width - 1]}…"


def wrap_indented(text: str, width: int) -> list[str]:
    """Return a text wrapped below an option."""
    return textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
