"""The command line: argv[1] is the command, and Hydra composes its config from the rest.

This module imports no torch, so `genlab --help` answers at once and `genlab train --cfg job` as
fast as Hydra composes. Exit codes: 0 done, 1 an error of genlab, 2 a user's mistake, 128 + n ended
by signal n.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from genlab.cli.error_messages import explain_error
from genlab.cli.hydra_args import (
    add_data_places,
    folders_as_runs,
    is_sweep,
    put_flags_first,
    quote_special_values,
    refuse_shadowed_files,
    refuse_unsupported_overrides,
    sweep_name,
)
from genlab.commands import COMMANDS, RENAMED_COMMANDS
from genlab.console import show_command_progress
from genlab.distributed.environment import SINGLE_PROCESS_ENV, read_environment
from genlab.distributed.supervisor import AlreadyReportedError, agree_on_exit_error
from genlab.errors import UserError, did_you_mean, make_printable
from genlab.output_streams import SafeStream, use_safe_streams
from genlab.tables import terminal_width, wrap_words
from genlab.untrusted.hydra_sources import confine_config_groups

if TYPE_CHECKING:
    from genlab.commands.sweep import WorkOptions

COMMAND_COLUMN = 15  # of `genlab --help`, where the commands are explained


def main() -> None:
    """Run the command in sys.argv."""
    keep_present_folder_out_of_child_imports()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    arguments = sys.argv[2:]
    with use_safe_streams() as (output, _):
        run_command_and_report_errors(name, arguments, output)


def run_command_and_report_errors(name: str, arguments: list[str], output: SafeStream) -> None:
    """Run one command; an error is printed, and exits.

    Args:
        output: standard output.
    """
    show_traceback = wants_traceback(arguments)
    try:
        with show_command_progress(f"genlab {name}", is_main=is_first_process()):
            run_command(name, arguments)
        output.flush()
        # no error: a reader that has seen enough, as in `genlab models | head`; and a training,
        # which has no other output than its run folder
        if output.error and not output.is_reader_gone and name != "train":
            raise UserError(f"standard output: {output.error}; the output is incomplete")
    except KeyboardInterrupt:  # before a training handles signals, or a second Ctrl-C
        if show_traceback:
            raise
        print("genlab: SIGINT: interrupted; what was saved before is kept", file=sys.stderr)
        hard_exit(128 + signal.SIGINT)
    except Exception as error:
        report_error(coordinated_error(error), name, show_traceback=show_traceback)


def keep_present_folder_out_of_child_imports() -> None:
    """Let Python processes that are started from here import nothing from the present folder.

    It may be the folder of another person, with a file `torch.py` in it. genlab itself stays
    importable if it was started in its own checkout.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    own = str(Path(__file__).resolve().parents[2])
    if own in (os.path.realpath(path or os.curdir) for path in sys.path[:1]):
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if own not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join([own, *filter(None, paths)])


def run_command(name: str, arguments: list[str]) -> None:
    """Run one command.

    Raises:
        UserError: the command does not exist.
    """
    if name in ("--help", "-h", "help"):
        print(usage_text())
    elif name == "--version":
        from genlab import __version__

        print(f"genlab {__version__}")
    elif name not in COMMANDS:
        if name in RENAMED_COMMANDS:
            raise UserError(f"`genlab {name}` was renamed to `genlab {RENAMED_COMMANDS[name]}`")
        near = did_you_mean(name, COMMANDS)
        raise UserError(f"unknown command '{name}'{near}; see genlab --help")
    elif name == "sweep":
        from genlab.commands.sweep import sweep

        if again := sweep(arguments):
            os.chdir(again.cwd)
            if again.work:  # each task of an srun is a worker by itself
                os.environ.update(SINGLE_PROCESS_ENV)
            compose_and_run("train", again.arguments, work=again.work)
    elif not COMMANDS[name].composed:
        COMMANDS[name].import_function()(arguments)
    elif {"--help", "-h"} & set(arguments):
        from genlab.cli.help import command_help

        print(command_help(name, arguments))
    else:
        compose_and_run(name, arguments)


def usage_text() -> str:
    """Return the text of `genlab --help`."""
    width = terminal_width()
    below = "\n" + " " * COMMAND_COLUMN
    rows = "\n".join(
        f"  {name:<{COMMAND_COLUMN - 2}}"
        + below.join(wrap_words(command.help, width - COMMAND_COLUMN))
        for name, command in COMMANDS.items()
    )
    closing = wrap_words(
        "`genlab <command> --help` lists the options, `--cfg job` prints their values; -m runs a "
        "sweep; --config-dir adds a folder of your own group files. debug=true shows tracebacks.",
        width,
    )
    return "\n".join(
        [
            "genlab <command> [option=value ...]\n",
            f"{rows}\n",
            "Without options, `genlab train` trains a VAE on scikit-learn's digits.",
            *closing,
        ]
    )


# --- how a command ends ---------------------------------------------------------------------------


def wants_traceback(arguments: list[str]) -> bool:
    """Whether the user asked for tracebacks of errors."""
    return "HYDRA_FULL_ERROR" in os.environ or any(a.lower() == "debug=true" for a in arguments)


def report_error(error: Exception, command: str, *, show_traceback: bool) -> NoReturn:
    """Print an error, a user's mistake as one line, and exit.

    Raises:
        Exception: the error itself, if it is genlab's own and this process is the only one.
    """
    line = explain_error(error, command)
    if show_traceback or line is None:
        if not is_distributed():
            raise error
        traceback.print_exception(error)
    elif not isinstance(error, AlreadyReportedError):
        print(f"genlab: {make_printable(line)}", file=sys.stderr)
    hard_exit(1 if line is None else getattr(error, "exit_code", 2))


def is_distributed() -> bool:
    """Whether this is one of several processes, as far as the environment makes sense."""
    try:
        return read_environment().size > 1
    except UserError:
        return False


def is_first_process() -> bool:
    """Whether this process speaks for all: rank 0, or the only one."""
    try:
        return read_environment().rank == 0
    except UserError:
        return True


def coordinated_error(error: Exception) -> Exception:
    """Return the error that this process ends with, once the other ranks know of it."""
    return agree_on_exit_error(error, explain_error(error)) if is_distributed() else error


def hard_exit(code: int) -> NoReturn:
    """Exit; one of several ranks skips Python's cleanup, which could wait for lost ranks."""
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# --- composing a config ---------------------------------------------------------------------------


@cache
def unique_run_stamp() -> str:
    """Return this start's date, time and a unique id: the same in every process of a training.

    Raises:
        UserError: the processes were given different options.
    """
    import secrets
    from datetime import datetime

    own = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(4)}"
    if read_environment().size == 1:
        return own
    from genlab.distributed.process_group import ProcessGroup

    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("device.")]
    first_stamp, first_arguments = ProcessGroup().broadcast((own, arguments))
    if differing := sorted(set(arguments) ^ set(first_arguments)):
        raise UserError(
            "the processes of one training were given different options "
            f"({', '.join(differing)}); to train a run in each, start them with RANK=0 WORLD_SIZE=1"
        )
    return first_stamp


def register_omegaconf_resolvers(arguments: list[str]) -> None:
    """Register the functions that the YAML files use as ${genlab.…}."""
    from omegaconf import OmegaConf

    resolvers: dict[str, Callable[..., str]] = {
        "genlab.stamp": unique_run_stamp,
        "genlab.folder": lambda model, dataset: f"outputs/{model}-{dataset}/{unique_run_stamp()}",
        "genlab.sweep": lambda: sweep_name(arguments),
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, resolve, replace=True)


def compose_and_run(command: str, arguments: list[str], *, work: WorkOptions | None = None) -> None:
    """Let Hydra compose the config of a command, then run the command with it.

    Args:
        work: do jobs of the sweep that the command has planned, instead of planning it.

    Raises:
        Exception: the last error, after every job of a sweep has run; earlier ones are printed.
    """
    if command == "train" and read_environment().size > 1:
        unique_run_stamp()  # a collective call: every process must make it, whatever its config
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on instead of printing them
    import hydra
    from omegaconf import DictConfig

    if command == "compare":
        arguments = folders_as_runs(arguments)
    arguments = quote_special_values(put_flags_first(arguments))
    arguments = add_data_places(command, arguments)
    refuse_shadowed_files(arguments)
    refuse_unsupported_overrides(arguments)
    register_omegaconf_resolvers(arguments)
    confine_config_groups()
    errors: list[Exception] = []
    sweeps = command in ("train", "plan") and is_sweep(arguments)
    if sweeps:
        register_sweep_plugins(errors, work=work, is_preview=command == "plan")

    def run_job(config: DictConfig) -> object:
        from genlab.builders.entrypoints import run_command_with_config

        try:
            return run_command_with_config(command, config)
        except Exception as error:
            end = coordinated_error(error)
            if end is error:
                raise
            raise end from error

    def run_job_and_collect(config: DictConfig) -> object:
        try:
            return run_job(config)
        except Exception as error:  # collected, since Hydra would print it in its own way
            errors.append(error)
            return None

    sys.argv = [sys.argv[0], *arguments]
    as_hydra_main = hydra.main(
        version_base="1.3",
        config_path="pkg://genlab.configs",
        config_name="train" if sweeps else command,
    )
    with composed_once():
        as_hydra_main(run_job if sweeps else run_job_and_collect)()
    for error in errors[:-1]:
        print(f"genlab: {make_printable(explain_error(error) or repr(error))}", file=sys.stderr)
    if errors:
        raise errors[-1]


@contextmanager
def composed_once() -> Iterator[None]:
    """Let Hydra compose a config once; otherwise it composes it first to look up `hydra.mode`.

    `hydra.mode` is refused on the command line, and only -m starts a sweep. The method is private
    to Hydra; replacing it saves 0.12 of the 0.38 s that a command takes before it imports torch.
    """
    from hydra._internal.hydra import Hydra

    original = Hydra.get_mode
    setattr(Hydra, "get_mode", lambda *arguments, **options: None)  # noqa: B010  # mypy: a method
    try:
        yield
    finally:
        setattr(Hydra, "get_mode", original)  # noqa: B010


def register_sweep_plugins(
    errors: list[Exception], *, work: WorkOptions | None, is_preview: bool
) -> None:
    """Register genlab's launchers and sweepers with Hydra; they collect the jobs' errors.

    Args:
        work: the options of a worker; None for a launcher.
        is_preview: show the sweep instead.

    Raises:
        UserError: this is one of several processes of one training.
    """
    if read_environment().size > 1:
        raise UserError(
            "a sweep starts its own processes: run `genlab train -m` once, "
            "with hydra/launcher=slurm_node for several GPUs per job"
        )
    from genlab.sweeps import hydra_launchers, hydra_sweepers, optuna_sweeper

    hydra_launchers.register_launchers(errors)
    optuna_sweeper.register_sweeper(errors)
    hydra_sweepers.probe_each_choice_once()
    if is_preview:
        hydra_sweepers.replace_sweeper_by_preview()
    elif work:
        hydra_sweepers.replace_sweeper_by_worker(work.slots, until_s=work.until_s, tries=work.tries)
    else:
        hydra_sweepers.restore_sweeper()


if __name__ == "__main__":
    main()
