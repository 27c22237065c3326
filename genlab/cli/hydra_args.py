"""The words of a command line before Hydra reads them: its flags, a sweep's name, folders in the place of runs."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

from genlab.config.config_dir import config_folder
from genlab.errors import UserError, did_you_mean

FLAGS: dict[
    str, tuple[str, ...] | None
] = {  # Hydra's, with the values that each takes: none, any (None), or these
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--version", "--resolve"), ()),
    **dict.fromkeys(("--run", "-r", "--multirun", "-m", "--shell-completion", "-sc"), ()),
    **dict.fromkeys(
        ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"),
        None,
    ),
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(
        ("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    ),
}


def sweep_name(arguments: list[str]) -> str:
    """Return the name of a sweep's folder: the same for the same command, however and wherever its jobs run."""
    besides = (
        "-m",
        "--multirun",
        "debug",
        "device",
        "hydra/launcher",
        "hydra.launcher",
        "hydra.sweep",
    )
    besides += ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")  # of a search, which may grow
    words = [
        word
        for word in arguments
        if not re.match(rf"[+~]*({'|'.join(map(re.escape, besides))})(?![\w-])", word)
    ]
    readable = re.sub(
        r"[^a-z0-9]+", "-", " ".join(word for word in words if not word.startswith("-")).lower()
    )
    return f"{readable[:48].strip('-') or 'train'}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]}"


def folders_as_runs(arguments: list[str]) -> list[str]:
    """Return the arguments with the folders among them as `runs=`: genlab compare outputs/sweeps/mine."""
    after = {
        i + 1 for i, word in enumerate(arguments) if FLAGS.get(word, ()) != ()
    }  # a flag's value
    folders = [
        i
        for i, word in enumerate(arguments)
        if word[:1] != "-" and i not in after and Path(word).exists()
    ]
    quoted = ("'" + arguments[i].replace("\\", "\\\\").replace("'", "\\'") + "'" for i in folders)
    return [word for i, word in enumerate(arguments) if i not in folders] + [
        f"runs=[{','.join(quoted)}]"
    ] * bool(folders)


def flags_first(arguments: list[str]) -> list[str]:
    """Return the arguments with Hydra's flags before the overrides: its parser takes no flag between two of them.

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
            raise UserError(
                f"unknown flag '{flag}'{did_you_mean(flag, FLAGS)}; --hydra-help lists them"
            )
        values = FLAGS[flag]
        flags.append(flag)
        if values == () and equals:
            raise UserError(f"{flag} takes no value")
        if values == ():
            continue
        if not equals:
            value = rest.pop(0) if rest and (values is None or rest[0] in values) else ""
        if not value and flag in ("--info", "-i"):
            value = "all"
        if not value or (values is not None and value not in values):
            raise UserError(f"{flag} needs a value" + (f": {', '.join(values)}" if values else ""))
        flags.append(value)
    return [*flags, *overrides]


def refuse_shadows(arguments: list[str]) -> None:
    """Refuse a user's group file that has a shipped one's name: Hydra would silently keep genlab's.

    Raises:
        UserError: names the file.
    """
    shipped = config_folder()
    for flag, folder in pairwise(arguments):
        if flag not in ("--config-dir", "-cd"):
            continue
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
        for path in shipped.rglob("*.yaml"):
            if (own := Path(folder) / path.relative_to(shipped)).exists():
                raise UserError(
                    f"{own} has the name of a file of genlab's, which Hydra would keep instead; rename yours"
                )
