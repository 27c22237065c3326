"""Prepare command-line arguments for Hydra: flags, folders given as runs, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
from itertools import pairwise
from pathlib import Path

from genlab.config.config_dir import config_folder
from genlab.config.override_keys import (
    DATA_PATH_KEYS,
    is_path_option,
    is_runtime_override,
    is_text_option,
    override_key,
    quote_override_value,
)
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
SWEEP_OPTION = re.compile(r"hydra[./](launcher|sweep|sweeper)\b")  # of no meaning without -m
PLAIN_VALUE = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.-]*")  # Hydra reads it as the text that it is
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
        and not is_runtime_override(word)
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
    runs = ",".join(quote_override_value(arguments[i]) for i in folders)
    others = [word for i, word in enumerate(arguments) if i not in folders]
    return [*others, f"runs=[{runs}]"]


# --- values that Hydra would not read as they are typed -------------------------------------------


def quote_special_values(arguments: list[str]) -> list[str]:
    """Return the overrides with quotes around text that Hydra's grammar does not accept.

    Such as `dataset.path=фото`, `out=~/runs`, `run=a=b` or `prompt=it's`. The value of an option
    that takes a file or a folder is its name, whatever brackets and commas it has, if it exists or
    could not be anything else. The value of an option that takes a text is the text.

    Raises:
        UserError: a mapping has a key that Hydra cannot read.
    """
    sweep = is_sweep(arguments)
    return [
        word if word.startswith("-") else quote_special_value(word, sweep=sweep)
        for word in arguments
    ]


def quote_special_value(word: str, *, sweep: bool = False) -> str:
    """Return one override with quotes around its value if that is needed.

    Args:
        sweep: whether commas separate the values of a sweep.
    """
    key, equals, value = word.partition("=")
    if not equals or not value or value[0] in "'\"" or PLAIN_VALUE.fullmatch(value):
        return word
    parsed = parse_value(value)
    is_path = is_path_option(override_key(word))
    if is_path and value != "null" and path_needs_quotes(value, parsed, sweep):
        return f"{key}={quote_override_value(value)}"
    is_list = value.startswith("[") and value.endswith("]")
    if is_text_option(override_key(word)) and value != "null" and not (sweep or is_list):
        return f"{key}={quote_override_value(value)}"
    is_function = sweep and re.fullmatch(r"\w+\(.*\)", value)
    if parsed is not UNREADABLE or is_function:
        return word
    quoted = quote_text(value, word)
    return word if parse_value(quoted) is UNREADABLE else f"{key}={quoted}"


UNREADABLE = object()


def parse_value(value: str) -> object:
    """Return a value as Hydra reads it on the command line, or UNREADABLE."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return UNREADABLE


def path_needs_quotes(value: str, parsed: object, sweep: bool) -> bool:
    """Whether the value of a path option is one name that Hydra would split.

    Args:
        parsed: what Hydra reads.
    """
    if isinstance(parsed, str) or parsed is True or parsed is False:
        return False
    if Path(value).expanduser().exists() or isinstance(parsed, int | float):
        return True
    is_list = value.startswith("[") and value.endswith("]")
    return not sweep and not is_list and "${" not in value


def quote_text(value: str, word: str) -> str:
    """Return a value with quotes around it, or around the parts of a list that need them.

    Args:
        word: the override, for a message.

    Raises:
        UserError: a key of a mapping needs quotes, which Hydra does not take there.
    """
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(quote_part(part, word) for part in split_elements(value[1:-1]))}]"
    if value.startswith("{") and value.endswith("}"):
        entries = [part.partition(":") for part in split_elements(value[1:-1])]
        for name, *_ in entries:
            if parse_value(f"{{{name}:0}}") is UNREADABLE:
                raise UserError(
                    f"{word}: {name} cannot be a name in {{…}}; a class may be given by its number"
                )
        return f"{{{','.join(name + colon + quote_part(v, word) for name, colon, v in entries)}}}"
    return value if value[0] in "[{" else quote_override_value(value)


def quote_part(part: str, word: str) -> str:
    """Return an element of a list with quotes if it needs them."""
    is_readable = not part or parse_value(f"[{part}]") is not UNREADABLE
    return part if is_readable else quote_text(part.strip(), word)


def split_elements(text: str) -> list[str]:
    """Return the elements of a list, split at the commas outside of brackets and quotes."""
    elements, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and not elements[-1].strip():
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and not depth:
            elements.append("")
            continue
        elements[-1] += char
    return [element.strip() for element in elements]


def add_data_places(command: str, arguments: list[str]) -> list[str]:
    """Return the overrides with `++` before the place of a run's data.

    Where `dataset=` is not given, the composed config need not have such an option, but the run has
    it: `genlab train resume=<run> dataset.path=<new place>`.
    """
    keys = {override_key(word) for word in arguments}
    if "dataset" in keys or (command == "train" and "resume" not in keys):
        return arguments
    return [f"++{word}" if word.partition("=")[0] in DATA_PATH_KEYS else word for word in arguments]


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
        flags.append(os.path.expanduser(value))  # a shell keeps the ~ of --config-dir=~/own
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
    only_shows = {"--cfg", "-c", "--info", "-i"} & set(arguments)  # the config of a sweep
    for word in arguments:
        key = override_key(word)
        value = word.partition("=")[2]
        if SWEEP_OPTION.match(key) and not (is_sweep(arguments) or only_shows):
            raise UserError(f"{word}: only a sweep has launchers and sweepers; `genlab train -m`")
        if word.startswith("~") and "." not in key:
            raise UserError(
                f"{word}: an option of the command cannot be deleted; set it to another value, "
                "or to null"
            )
        if key == "hydra.mode":
            raise UserError(f"{word}: a sweep is started by `genlab train -m`, not by hydra.mode")
        if key == "hydra.run.dir":
            raise UserError(f"{word}: the run folder is set by out=; give out={value}")
