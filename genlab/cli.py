"""The command line: argv[1] is the command, the rest goes to Hydra; what a user did wrong is one line and exit code 2.

Imports no torch: `genlab --help` answers at once, and `genlab train --cfg job` as fast as Hydra composes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import traceback
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from traceback import walk_tb

from genlab.errors import UserError, did_you_mean, printable
from genlab.tasks import COMMANDS, LISTS
from genlab.training.watch import Said, farewell
from genlab.training.world import world

FLAGS: dict[str, tuple[str, ...] | None] = {  # Hydra's, with the values that each takes: none, any (None), or these
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--version", "--resolve"), ()),
    **dict.fromkeys(("--run", "-r", "--multirun", "-m", "--shell-completion", "-sc"), ()),
    **dict.fromkeys(("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"), None),
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
OUT_OF_MEMORY = re.compile("allocate memory|out of memory")


def main() -> None:
    """Run the command in sys.argv."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    full = "HYDRA_FULL_ERROR" in os.environ or any(a.lower() == "debug=true" for a in arguments)
    try:
        if name in ("--help", "-h", "help"):
            print(usage())
        elif name == "--version":
            from genlab import __version__

            print(f"genlab {__version__}")
        elif name in COMMANDS:
            compose_and_run(name, arguments)
        elif name == "sweep":
            from genlab.tasks import sweep

            if again := sweep.sweep(arguments):
                os.chdir(again.cwd)
                compose_and_run("train", again.arguments)
        elif name in LISTS:
            from genlab.tasks import listing

            getattr(listing, name)(arguments)
        else:
            raise UserError(f"unknown command '{name}'{did_you_mean(name, [*COMMANDS, *LISTS])}; see genlab --help")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough: `genlab models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:  # before a training listens for it, in a task that saves at its end, or a second one
        if full:
            raise
        print("genlab: SIGINT: interrupted; what was saved before stays", file=sys.stderr)
        leave(128 + signal.SIGINT)
    except Exception as error:
        end = parted(error)
        line = explain(end)
        if full or line is None:
            if not several():
                raise
            traceback.print_exception(end)
        elif not isinstance(end, Said):
            print(f"genlab: {printable(line)}", file=sys.stderr)
        leave(1 if line is None else getattr(end, "exit_code", 2))


def several() -> bool:
    """Return whether this is one of several processes, as far as the environment makes sense."""
    try:
        return world().size > 1
    except UserError:
        return False


def parted(error: Exception) -> Exception:
    """Return what this process ends with, after an error that all the others have heard of."""
    return farewell(error, explain(error)) if several() else error


def leave(code: int) -> None:
    """Exit; one of several processes without Python's clearing up, which could wait for messages of those that are gone."""
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def usage() -> str:
    """Return the text of `genlab --help`."""
    rows = "\n".join(f"  {name:<13}{what}" for name, what in (COMMANDS | LISTS).items())
    return (
        "genlab <command> [key=value ...]\n\n"
        f"{rows}\n\n"
        "With no options, `genlab train` trains a VAE on scikit-learn's digits. `genlab train --help` shows every option\n"
        "and `--cfg job` the composed values; -m runs a sweep; --config-dir adds a folder of your own group files.\n"
        "HYDRA_FULL_ERROR=1 or debug=true shows the traceback of an error."
    )


def config_folder() -> Path:
    """Return the folder of the YAML files that ship with genlab."""
    return Path(find_spec("genlab.configs").submodule_search_locations[0])


@cache
def stamp() -> str:
    """Return this start's date, time and a unique id: the same one in every process of a training.

    Raises:
        UserError: the processes were not given the same options.
    """
    import secrets
    from datetime import datetime

    own = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(4)}"
    if world().size > 1:
        from genlab.training.ranks import Ranks

        mine = [argument for argument in sys.argv[1:] if not argument.startswith("device.")]
        own, theirs = Ranks().share((own, mine))
        if differ := sorted(set(mine) ^ set(theirs)):
            raise UserError(
                f"the processes of one training were given different options ({', '.join(differ)}); for a training each, "
                "start them with RANK=0 WORLD_SIZE=1 in their environment"
            )
    return own


def compose_and_run(command: str, arguments: list[str]) -> None:
    """Let Hydra read the arguments and compose the config, then run `genlab.build.<command>`."""
    if command == "train" and world().size > 1:
        stamp()  # every process must join in agreeing on it, whatever its config asks for
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors to `main` instead of printing them
    import hydra
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.register_new_resolver("genlab.stamp", stamp, replace=True)
    OmegaConf.register_new_resolver("genlab.folder", lambda m, d: f"outputs/{m}-{d}/{stamp()}", replace=True)

    arguments = flags_first(folders_as_runs(arguments) if command == "compare" else arguments)
    refuse_shadows(arguments)
    for word in arguments:
        if word.startswith("~") and "." not in word.partition("=")[0]:
            raise UserError(f"{word}: an option of the command cannot be taken away; set it to another value, or to null")
    OmegaConf.register_new_resolver("genlab.sweep", lambda: sweep_name(arguments), replace=True)
    failed: list[Exception] = []
    sweeps = command == "train" and bool({"-m", "--multirun"} & set(arguments))
    if sweeps:
        if world().size > 1:
            raise UserError("a sweep starts its own processes: give `genlab train -m` to one, with hydra/launcher=slurm_node")
        from genlab.sweeps import launchers, search

        launchers.register(failed)
        search.register(failed)

    def task(config: DictConfig) -> object:
        from genlab import build

        try:
            return getattr(build, command)(config)
        except Exception as error:
            end = parted(error)
            if end is error:
                raise
            raise end from error

    def kept(config: DictConfig) -> object:
        try:
            return task(config)
        except Exception as error:  # from Hydra, which would print it its own way
            return failed.append(error)

    sys.argv = [sys.argv[0], *arguments]
    main = hydra.main(version_base="1.3", config_path="pkg://genlab.configs", config_name=command)
    main(task if sweeps else kept)()
    for error in failed[:-1]:
        print(f"genlab: {printable(explain(error) or repr(error))}", file=sys.stderr)
    if failed:  # of several jobs, all were run
        raise failed[-1]


def sweep_name(arguments: list[str]) -> str:
    """Return the name of a sweep's folder: the same for the same command, however and wherever its jobs run."""
    besides = ("-m", "--multirun", "debug", "device", "hydra/launcher", "hydra.launcher", "hydra.sweep")
    besides += ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")  # of a search, which may grow
    words = [word for word in arguments if not re.match(rf"[+~]*({'|'.join(map(re.escape, besides))})(?![\w-])", word)]
    readable = re.sub(r"[^a-z0-9]+", "-", " ".join(word for word in words if not word.startswith("-")).lower())
    return f"{readable[:48].strip('-') or 'train'}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]}"


def folders_as_runs(arguments: list[str]) -> list[str]:
    """Return the arguments with the folders among them as `runs=`: genlab compare outputs/sweeps/mine."""
    after = {i + 1 for i, word in enumerate(arguments) if FLAGS.get(word, ()) != ()}  # a flag's value
    folders = [i for i, word in enumerate(arguments) if word[:1] != "-" and i not in after and Path(word).exists()]
    quoted = ("'" + arguments[i].replace("\\", "\\\\").replace("'", "\\'") + "'" for i in folders)
    return [word for i, word in enumerate(arguments) if i not in folders] + [f"runs=[{','.join(quoted)}]"] * bool(folders)


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
            raise UserError(f"unknown flag '{flag}'{did_you_mean(flag, FLAGS)}; --hydra-help lists them")
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
                raise UserError(f"{own} has the name of a file of genlab's, which Hydra would keep instead; rename yours")


def explain(error: Exception) -> str | None:
    """Return one line for what a user did wrong, or None for an error of genlab's own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        seen = seen.__cause__ or seen.__context__
    if isinstance(seen, UserError):
        return " ".join(str(seen).splitlines())
    if isinstance(error, OSError) and error.errno:  # a folder that cannot be written, a full disk
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "out of memory; try a smaller trainer.batch_size or n, a smaller model, or trainer.accumulate=2"
    raised = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    hydras = lambda modules: {module.split(".")[0] for module in modules} & {"hydra", "omegaconf", "antlr4"}  # noqa: E731
    if isinstance(error, RecursionError) and hydras(raised[-100:]):
        return "an option is nested too deeply, in brackets or in names"
    if not hydras([kind.__module__ for kind in type(error).__mro__] + raised[-1:]):  # Hydra has ValueErrors of its own
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
        known = [str(k) for k in parent] if parent is not None and hasattr(parent, "keys") else groups()
        where, _, last = key.rpartition(".")
        listed = f"; {where or 'the command'} has {', '.join(k for k in known if not k.startswith('_'))}"
        if not where:
            known, listed = [k for k in (*known, *groups()) if k != key], ""
        return f"unknown option '{key}'{did_you_mean(last, known)}{listed}"
    if "mismatched input" in str(error) or "parsing" in first.lower() or "no viable alternative" in str(error):
        return f"{first}; an option is written key=value, and a value with spaces or special characters in quotes: 'key=\"a b\"'"
    return " ".join(lines[:2])


def options_of(group: str, lines: list[str]) -> list[str]:
    """Return the names in a config group as Hydra listed them, a user's own among them."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Available options")), len(lines))
    end = next((i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines))
    return lines[start + 1 : end] or sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))


def groups() -> list[str]:
    """Return the names of the shipped config groups."""
    return sorted(p.name for p in config_folder().iterdir() if p.is_dir() and not p.name.startswith("_"))

if __name__ == "__main__":
    main()
