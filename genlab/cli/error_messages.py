"""What a user did wrong, in one line: genlab's own errors, Hydra's, the system's."""

from __future__ import annotations

import re
from traceback import walk_tb

from genlab.config.config_dir import config_folder
from genlab.errors import UserError, did_you_mean

OUT_OF_MEMORY = re.compile("allocate memory|out of memory")


def explain(error: Exception) -> str | None:
    """Return one line for what a user did wrong, or None for an error of genlab's own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        seen = seen.__cause__ or seen.__context__
    if isinstance(seen, UserError):
        return " ".join(str(seen).splitlines())
    if isinstance(error, OSError) and error.errno:  # a folder that cannot be written, a full disk
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))
    ):
        return "out of memory; try a smaller trainer.batch_size or n, a smaller model, or trainer.accumulate=2"
    raised = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    hydras = lambda modules: (
        {module.split(".")[0] for module in modules} & {"hydra", "omegaconf", "antlr4"}
    )  # noqa: E731
    if isinstance(error, RecursionError) and hydras(raised[-100:]):
        return "an option is nested too deeply, in brackets or in names"
    if not hydras(
        [kind.__module__ for kind in type(error).__mro__] + raised[-1:]
    ):  # Hydra has ValueErrors of its own
        return None
    return explain_hydra(error)


def explain_hydra(error: Exception) -> str:
    """Return Hydra's message as one line, with the nearest known name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if found := re.search(r"Could not find '(.+?)/([^/']+)'", first):
        group, choice = found.groups()
        known = options_of(group, lines)
        return f"{group}={choice}: there is no such {group}{did_you_mean(choice, known)}; there are {', '.join(known)}"
    if found := re.search(r"Could not override '([^']+)'", first):
        key = found.group(1)
        cause: BaseException | None = error
        while cause is not None and getattr(cause, "parent_node", None) is None:
            cause = cause.__cause__
        parent = getattr(cause, "parent_node", None)
        known = (
            [str(k) for k in parent] if parent is not None and hasattr(parent, "keys") else groups()
        )
        where, _, last = key.rpartition(".")
        listed = (
            f"; {where or 'the command'} has {', '.join(k for k in known if not k.startswith('_'))}"
        )
        if not where:
            known, listed = [k for k in (*known, *groups()) if k != key], ""
        others = having(where, last)
        elsewhere = f"; it is an option of {where}={', '.join(others)}" if others else ""
        return f"unknown option '{key}'{did_you_mean(last, known)}{listed}{elsewhere}"
    if (
        "mismatched input" in str(error)
        or "parsing" in first.lower()
        or "no viable alternative" in str(error)
    ):
        return f"{first}; an option is written key=value, and a value with spaces or special characters in quotes: 'key=\"a b\"'"
    return " ".join(lines[:2])


def options_of(group: str, lines: list[str]) -> list[str]:
    """Return the names in a config group as Hydra listed them, a user's own among them."""
    start = next(
        (i for i, line in enumerate(lines) if line.startswith("Available options")), len(lines)
    )
    end = next(
        (i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines)
    )
    return lines[start + 1 : end] or sorted(
        p.stem for p in (config_folder() / group).glob("*.yaml")
    )


def having(group: str, option: str) -> list[str]:
    """Return the choices of a shipped config group that have the option; none where there is no such group."""
    files = sorted((config_folder() / group).glob("*.yaml")) if group in groups() else []
    return [
        p.stem for p in files if re.search(rf"^{re.escape(option)}:", p.read_text(), re.MULTILINE)
    ]


def groups() -> list[str]:
    """Return the names of the shipped config groups."""
    return sorted(
        p.name for p in config_folder().iterdir() if p.is_dir() and not p.name.startswith("_")
    )
