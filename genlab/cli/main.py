"""The command line: argv[1] is the command, the rest goes to Hydra; what a user did wrong is one line and exit code 2.

Imports no torch: `genlab --help` answers at once, and `genlab train --cfg job` as fast as Hydra composes.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from genlab.cli.error_messages import explain
from genlab.cli.hydra_args import flags_first, folders_as_runs, refuse_shadows, sweep_name
from genlab.commands import COMMANDS, LISTS
from genlab.distributed.environment import world
from genlab.distributed.supervisor import Said, farewell
from genlab.errors import UserError, did_you_mean, printable


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
            from genlab.commands import sweep

            if again := sweep.sweep(arguments):
                os.chdir(again.cwd)
                compose_and_run("train", again.arguments)
        elif name in LISTS:
            from genlab.commands import listing

            getattr(listing, name)(arguments)
        else:
            raise UserError(
                f"unknown command '{name}'{did_you_mean(name, [*COMMANDS, *LISTS])}; see genlab --help"
            )
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough: `genlab models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (
        KeyboardInterrupt
    ):  # before a training listens for it, in a task that saves at its end, or a second one
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
        from genlab.distributed.process_group import Ranks

        mine = [argument for argument in sys.argv[1:] if not argument.startswith("device.")]
        own, theirs = Ranks().share((own, mine))
        if differ := sorted(set(mine) ^ set(theirs)):
            raise UserError(
                f"the processes of one training were given different options ({', '.join(differ)}); for a training each, "
                "start them with RANK=0 WORLD_SIZE=1 in their environment"
            )
    return own


def compose_and_run(command: str, arguments: list[str]) -> None:
    """Let Hydra read the arguments and compose the config, then run `genlab.builders.entrypoints.<command>`."""
    if command == "train" and world().size > 1:
        stamp()  # every process must join in agreeing on it, whatever its config asks for
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors to `main` instead of printing them
    import hydra
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.register_new_resolver("genlab.stamp", stamp, replace=True)
    OmegaConf.register_new_resolver(
        "genlab.folder", lambda m, d: f"outputs/{m}-{d}/{stamp()}", replace=True
    )

    arguments = flags_first(folders_as_runs(arguments) if command == "compare" else arguments)
    refuse_shadows(arguments)
    for word in arguments:
        if word.startswith("~") and "." not in word.partition("=")[0]:
            raise UserError(
                f"{word}: an option of the command cannot be taken away; set it to another value, or to null"
            )
        if word.lstrip("+").startswith("hydra.mode="):
            raise UserError(f"{word}: `genlab train -m` asks for a sweep, and nothing else does")
    OmegaConf.register_new_resolver("genlab.sweep", lambda: sweep_name(arguments), replace=True)
    failed: list[Exception] = []
    sweeps = command == "train" and bool({"-m", "--multirun"} & set(arguments))
    if sweeps:
        if world().size > 1:
            raise UserError(
                "a sweep starts its own processes: give `genlab train -m` to one, with hydra/launcher=slurm_node"
            )
        from genlab.sweeps import hydra_launchers, optuna_sweeper

        hydra_launchers.register(failed)
        optuna_sweeper.register(failed)

    def task(config: DictConfig) -> object:
        from genlab.builders import entrypoints

        try:
            return getattr(entrypoints, command)(config)
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
    if sweeps:
        main(task)()
    else:
        with composed_once():
            main(kept)()
    for error in failed[:-1]:
        print(f"genlab: {printable(explain(error) or repr(error))}", file=sys.stderr)
    if failed:  # of several jobs, all were run
        raise failed[-1]


@contextmanager
def composed_once() -> Iterator[None]:
    """Spare the composition of everything by which Hydra looks beforehand whether `hydra.mode` asks for a sweep."""
    from hydra._internal.hydra import Hydra

    known = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # as where nothing asks: then it goes by -m
    try:
        yield
    finally:
        Hydra.get_mode = known


if __name__ == "__main__":
    main()
