"""Prepare command-line arguments for Hydra: flags, folders given as runs, refusals."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

from genlab.config.config_dir import config_folder
from genlab.config.keys import is_runtime_option, override_key, quote_value
from genlab.errors import UserError, did_you_mean

# Hydra's flags, with the values that each takes: none (), any (None), or one of these.
FLAGS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--version", "--resolve"), ()),
    **dict.fromkeys(("--run", "-r", "--multirun", "-m", "--shell-completion", "-sc"), ()),
    **dict.fromkeys(("--config-dir", "-cd", "--config-name", "-cn"), None),
    **dict.fromkeys(("--config-path", "-cp", "--package", "-p"), None),
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(
        ("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    ),
}
SWEEP_FLAGS = {"-m", "--multirun"}
# Hydra's options that change how or how far a sweep runs, but not what its jobs train.
SWEEP_RUNTIME = re.compile(
    r"hydra/launcher|hydra\.launcher(\..+)?|hydra\.sweep(\..+)?|hydra\.sweeper\.n_(trials|jobs)"
)
MAX_NAME_LENGTH = 48  # characters of the readable part of a sweep's name


def is_sweep(arguments: list[str]) -> bool:
    """Whether the arguments ask for a sweep."""
    return bool(SWEEP_FLAGS & set(arguments))


def sweep_name(arguments: list[str]) -> str:
    """Return the name of a sweep's folder: the same for the same jobs, wherever they run."""
    words = [
        word
        for word in arguments
        if word not in SWEEP_FLAGS
        and not SWEEP_RUNTIME.fullmatch(override_key(word))
        and not is_runtime_option(word)
    ]
    overrides = " ".join(word for word in words if not word.startswith("-")).lower()
    readable = re.sub(r"[^a-z0-9]+", "-", overrides)[:MAX_NAME_LENGTH].strip("-") or "train"
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    return f"{readable}-{digest[:8]}"


def folders_as_runs(arguments: list[str]) -> list[str]:
    """Return the arguments with existing paths given as `runs=`: genlab compare outputs/a."""
    flag_values = {i + 1 for i, word in enumerate(arguments) if FLAGS.get(word, ()) != ()}
    folders = [
        i
        for i, word in enumerate(arguments)
        if not word.startswith("-") and i not in flag_values and Path(word).exists()
    ]
    if not folders:
        return arguments
    runs = ",".join(quote_value(arguments[i]) for i in folders)
    others = [word for i, word in enumerate(arguments) if i not in folders]
    return [*others, f"runs=[{runs}]"]


def put_flags_first(arguments: list[str]) -> list[str]:
    """Return the arguments with the flags before the overrides, as Hydra's parser requires.

    Raises:
        UserError: an unknown flag, or a flag without its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            near = did_you_mean(flag, FLAGS)
            raise UserError(f"unknown flag '{flag}'{near}; --hydra-help lists them")
        flags.append(flag)
        values = FLAGS[flag]
        if values == ():
            if equals:
                raise UserError(f"{flag} does not take a value")
            continue
        if not equals and rest and (values is None or rest[0] in values):
            value = rest.pop(0)
        if not value and flag in ("--info", "-i"):
            value = "all"
        if not value or (values is not None and value not in values):
            raise UserError(f"{flag} needs a value" + (f": {', '.join(values)}" if values else ""))
        flags.append(value)
    return [*flags, *overrides]


def refuse_shadowed_files(arguments: list[str]) -> None:
    """Refuse a user's group file with the name of a shipped one: Hydra would use genlab's.

    Raises:
        UserError: names the file.
    """
    shipped = config_folder()
    for flag, folder in pairwise(arguments):
        if flag not in ("--config-dir", "-cd"):
            continue
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: this folder does not exist")
        for path in shipped.rglob("*.yaml"):
            own = Path(folder) / path.relative_to(shipped)
            if own.exists():
                raise UserError(
                    f"{own} has the name of a file that ships with genlab, which Hydra would use "
                    "instead; rename yours"
                )


def refuse_unsupported_overrides(arguments: list[str]) -> None:
    """Refuse overrides that Hydra accepts but that genlab would ignore or that would break it.

    Raises:
        UserError: names the override, and what to give instead.
    """
    for word in arguments:
        key = override_key(word)
        value = word.partition("=")[2]
        if word.startswith("~") and "." not in key:
            raise UserError(
                f"{word}: an option of the command cannot be deleted; set it to another value, "
                "or to null"
            )
        if key == "hydra.mode":
            raise UserError(f"{word}: a sweep is started by `genlab train -m`, not by hydra.mode")
        if key == "hydra.run.dir":
            raise UserError(f"{word}: the run folder is set by out=; give out={value}")
