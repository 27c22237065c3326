"""Explain errors of genlab, Hydra and the operating system in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from traceback import walk_tb

from genlab.config.config_dir import config_folder
from genlab.errors import UserError, did_you_mean, is_out_of_memory_error

HYDRA_PACKAGES = {"hydra", "omegaconf", "antlr4"}
RECURSION_TAIL = 100  # frames at the end of a RecursionError's traceback that show whose it is


def explain_error(error: Exception, command: str = "train") -> str | None:
    """Return one line for a user's mistake, or None for an error of genlab's own.

    Args:
        command: the command that was run, for the names of renamed options.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, UserError):
        return " ".join(str(cause).splitlines())
    if isinstance(error, OSError) and error.errno:  # a read-only folder, a full disk
        reason = error.strerror or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    if is_out_of_memory_error(error):
        return (
            "out of memory; try a smaller trainer.batch_size or n, a smaller model, "
            "or trainer.grad_accum_steps=2"
        )
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    if isinstance(error, RecursionError) and has_hydra_module(frames[-RECURSION_TAIL:]):
        return "an option is nested too deeply, in brackets or in names"
    # Hydra raises ValueErrors too, so the last frame counts as well as the class.
    if not has_hydra_module([kind.__module__ for kind in type(error).__mro__] + frames[-1:]):
        return None
    return explain_hydra_error(error, command)


def has_hydra_module(modules: Iterable[str]) -> bool:
    """Whether one of the modules belongs to Hydra."""
    return any(module.split(".")[0] in HYDRA_PACKAGES for module in modules)


def explain_hydra_error(error: Exception, command: str) -> str:
    """Return Hydra's message as one line, with the nearest known name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if found := re.search(r"Could not find '(.+?)/([^/']+)'", first):
        group, choice = found.groups()
        known = parse_choices_from_message(group, lines)
        return (
            f"{group}={choice} does not exist{did_you_mean(choice, known)}; "
            f"choose {', '.join(known)}"
        )
    found = re.search(r"Could not override '([^']+)'", first)
    if found and "@" in found[1]:
        group, _, package = found[1].partition("@")
        return (
            f"{found[1]} is set, by the command or its experiment, but the chosen {group} does not "
            f"have a {package}; to replace only that part, give {found[1]}=<{group}> instead of "
            f"{group}=<{group}>, and its options as {package}.<option>=…"
        )
    if found:
        return explain_unknown_option(found[1], error, command)
    is_syntax_error = any(
        sign in str(error).lower() for sign in ("mismatched input", "no viable alternative")
    )
    if is_syntax_error or "parsing" in first.lower():
        return (
            f"{first}; an option is written key=value, and a value with spaces or special "
            "characters in quotes: 'key=\"a b\"'"
        )
    return " ".join(lines[:2])


def explain_unknown_option(key: str, error: Exception, command: str) -> str:
    """Return the line for an option that does not exist: its new name, or the nearest one."""
    from genlab.runs.migrations import present_option_names  # takes a while to import

    if new_names := present_option_names(key, command):
        return f"{key} was renamed to {' or '.join(new_names)}"
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "parent_node", None) is None:
        cause = cause.__cause__
    parent = getattr(cause, "parent_node", None)
    known = config_groups() if parent is None else [str(k) for k in parent]
    section, _, name = key.rpartition(".")
    message = f"unknown option '{key}'"
    if section:
        options = [k for k in known if not k.startswith("_")]
        message += f"{did_you_mean(name, known)}; {section} has {', '.join(options)}"
    else:
        others = [k for k in (*known, *config_groups()) if k != key]
        message += did_you_mean(name, others)
    if choices := choices_with_option(section, name):
        message += f"; it is an option of {section}={', '.join(choices)}"
    return message


def parse_choices_from_message(group: str, lines: list[str]) -> list[str]:
    """Return the files of a config group as Hydra's message lists them, a user's own included."""

    def index_of(start: str) -> int:
        return next((i for i, line in enumerate(lines) if line.startswith(start)), len(lines))

    listed = lines[index_of("Available options") + 1 : index_of("Config search path")]
    return listed or sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))


def choices_with_option(group: str, option: str) -> list[str]:
    """Return the files of a shipped config group that have an option."""
    if group not in config_groups():
        return []
    pattern = re.compile(rf"^{re.escape(option)}:", re.MULTILINE)
    files = sorted((config_folder() / group).glob("*.yaml"))
    return [path.stem for path in files if pattern.search(path.read_text(encoding="utf-8"))]


def config_groups() -> list[str]:
    """Return the names of the shipped config groups."""
    folders = (p.name for p in config_folder().iterdir() if p.is_dir())
    return sorted(name for name in folders if not name.startswith("_"))
