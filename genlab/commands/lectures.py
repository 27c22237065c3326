"""genlab lectures: list the figures of the lectures, make them, and write the course page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import yaml

from genlab.commands import COMMANDS
from genlab.comparison.lecture_figures import (
    FigureRecord,
    FigureState,
    LectureFigure,
    choose_figures,
    figure_state,
    find_figure_pictures,
    format_command,
    list_lecture_figures,
    quote_folder,
    read_durations,
    read_figure_numbers,
    read_figure_record,
)
from genlab.comparison.lecture_page import write_lecture_page
from genlab.config.config_dir import config_folder
from genlab.console import Progress, describe_duration, print_above_progress
from genlab.distributed.environment import SINGLE_PROCESS_ENV
from genlab.errors import UserError, make_printable
from genlab.runs.run_folder import RunFolder
from genlab.signals import SignalCatcher, TrainingInterrupted
from genlab.spec import Positive
from genlab.sweeps.local_backend import cpu_count
from genlab.sweeps.train_missing import last_error_line, train_labeled_runs
from genlab.tables import TableRow, print_table, use_nonbreaking_spaces
from genlab.untrusted.files import read_text

PAGE_NAME = "index.html"
ONLY_PAGE = "page"  # in make=
POLL_INTERVAL_S = 0.2  # for signals, while figures are drawn
SKIPPED: tuple[FigureState, ...] = ("needs data", "needs package")


def lectures(
    *,
    make: str | list[str] | None = None,
    figures_dir: str | None = None,
    output_dir: str = "outputs/lectures",
    jobs: Positive | None = None,
    device: Sequence[str] = (),
) -> Path | None:
    """List the figures of the lectures, or make some and write the page of all.

    Args:
        make: names of figures, "all", or "page" to make none; None lists them.
        figures_dir: a folder with entries of the user.
        output_dir: the folder of the page and the figures.
        jobs: the number of trainings and figures at a time; None for as many as there are cores.
        device: overrides of the device, for the trainings and the commands.

    Returns:
        The page, if it was written.

    Raises:
        UserError: a name is not one of a figure, or some could not be made.
        TrainingInterrupted: a signal ended the work; what was made is kept.
    """
    listed = list_lecture_figures(Path(figures_dir) if figures_dir else None)
    folder = Path(output_dir)
    names = [make] if isinstance(make, str) else make
    if names is None:
        print_figures(listed, folder)
        return None
    chosen = choose_figures([name for name in names if name != ONLY_PAGE], listed)
    num_jobs = jobs or cpu_count()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; give a folder")
    page = folder / PAGE_NAME
    for _, group in groupby(chosen, key=lambda figure: figure.topic):
        make_figures(list(group), folder, num_jobs, list(device))
        write_lecture_page(listed, folder, page)  # what is ready can be looked at meanwhile
    if chosen:
        print_summary(chosen, folder)
    else:
        write_lecture_page(listed, folder, page)
    print(f"open: {page}")
    states = {f.name: figure_state(f, read_record(f, folder))[0] for f in chosen}
    if failed := [name for name, state in states.items() if state == "failed"]:
        raise UserError(
            f"{len(failed)} of the figures could not be made: {', '.join(failed)}; the page says "
            "why and shows the others"
        )
    return page


# --- the list -------------------------------------------------------------------------------------


def print_figures(figures: Sequence[LectureFigure], folder: Path) -> None:
    """Print the figures by topic, with state, measured time and commands."""
    durations = read_durations()
    rows: list[TableRow] = []
    for topic, group in groupby(figures, key=lambda figure: figure.topic):
        rows.append(topic)
        for figure in group:
            record = read_record(figure, folder)
            state, _ = figure_state(figure, record)
            seconds = record.seconds if record and state == "made" else durations.get(figure.name)
            commands = "; ".join(f"genlab {shown_command(c)}" for c in figure.commands)
            rows.append(
                [
                    use_nonbreaking_spaces(figure.name),
                    use_nonbreaking_spaces(state),
                    "" if seconds is None else f"{seconds:,.0f}",
                    commands,
                ]
            )
    print_table(["figure", "state", "seconds", "commands"], rows)
    print_state_counts(figures, folder)
    print("to make them and the page: genlab lectures make=all, or make=[name,…]")


def shown_command(command: str) -> str:
    """Return a command with angle brackets around the labels of its runs."""
    return command.replace("{", "<").replace("}", ">")


def print_state_counts(figures: Sequence[LectureFigure], folder: Path) -> None:
    """Print how many figures are in each state, and the reasons of those that cannot be made."""
    counts: dict[str, int] = defaultdict(int)
    reasons: dict[str, list[str]] = defaultdict(list)
    for figure in figures:
        state, reason = figure_state(figure, read_record(figure, folder))
        counts[state] += 1
        if reason:
            reasons[reason].append(figure.name)
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(f"{len(figures)} figures: {states}")
    for reason, names in reasons.items():
        print(make_printable(f"{', '.join(names)}: {reason}"))


def print_summary(figures: Sequence[LectureFigure], folder: Path) -> None:
    """Print the states of figures, and how long they took."""
    print_state_counts(figures, folder)
    records = [record for figure in figures if (record := read_record(figure, folder))]
    trained = sum(record.training_s for record in records)
    drawn = sum(record.drawing_s for record in records)
    if records:
        print(
            f"the trainings took {describe_duration(trained)} of processes in all, "
            f"drawing {describe_duration(drawn)}"
        )


# --- making ---------------------------------------------------------------------------------------


def figure_folder(figure: LectureFigure, folder: Path) -> Path:
    """Return the folder of a figure's files."""
    return folder / "figures" / figure.folder_name


def read_record(figure: LectureFigure, folder: Path) -> FigureRecord | None:
    """Return the record of a figure, or None."""
    return read_figure_record(figure_folder(figure, folder))


def make_figures(
    figures: Sequence[LectureFigure], folder: Path, num_jobs: int, device: list[str]
) -> None:
    """Train what figures need, and draw those that are not made yet; each gets a record.

    Raises:
        TrainingInterrupted: a signal ended the work.
    """
    todo: list[LectureFigure] = []
    for figure in figures:
        state, reason = figure_state(figure, read_record(figure, folder))
        if state in SKIPPED:
            print_above_progress(make_printable(f"{figure.name}: skipped: {reason}"))
        elif state != "made":
            todo.append(figure)
    if not todo:
        return
    overrides = {
        f"{figure.name}: {label}": [*words, *device]
        for figure in todo
        for label, words in figure.all_trainings().items()
    }
    trained, failed = train_labeled_runs(overrides, jobs=num_jobs) if overrides else ({}, {})
    ready: dict[str, dict[str, Path]] = {}
    for figure in todo:
        keys = {label: f"{figure.name}: {label}" for label in figure.all_trainings()}
        errors = [f"{label}: {failed[key]}" for label, key in keys.items() if key in failed]
        if errors:
            error = f"a run could not be trained: {'; '.join(errors)}"
            save_failure(figure, folder, error)
        else:
            ready[figure.name] = {label: trained[key] for label, key in keys.items()}
    drawn = [figure for figure in todo if figure.name in ready]
    draw_figures(drawn, ready, folder, num_jobs, device)


def save_failure(figure: LectureFigure, folder: Path, error: str) -> None:
    """Record that a figure could not be made, and print why."""
    place = figure_folder(figure, folder)
    place.mkdir(parents=True, exist_ok=True)
    FigureRecord([], [], error=error).save(place)
    print_above_progress(make_printable(f"{figure.name}: failed: {error}"))


def draw_figures(
    figures: Sequence[LectureFigure],
    runs: Mapping[str, Mapping[str, Path]],
    folder: Path,
    num_jobs: int,
    device: list[str],
) -> None:
    """Run the commands of figures, several figures at a time.

    Args:
        runs: name of the figure -> label -> run folder.

    Raises:
        TrainingInterrupted: a signal ended the work.
    """
    if not figures:
        return
    num_jobs = min(num_jobs, len(figures))
    threads = str(max(1, cpu_count() // num_jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **SINGLE_PROCESS_ENV}
    environment.pop("HYDRA_FULL_ERROR", None)  # set by this command; it would print tracebacks
    processes: set[subprocess.Popen[bytes]] = set()
    signals = SignalCatcher()

    def draw(figure: LectureFigure) -> None:
        try:
            draw_figure(figure, runs[figure.name], folder, device, environment, processes)
        except UserError as error:
            if not signals.received:  # an interruption is not a failure
                save_failure(figure, folder, str(error))

    topic = figures[0].topic
    with (
        signals,
        ThreadPoolExecutor(num_jobs) as pool,
        Progress(f"figures of {topic}", len(figures)) as progress,
    ):
        waiting: set[Future[None]] = {pool.submit(draw, figure) for figure in figures}
        while waiting:
            done, waiting = wait(waiting, POLL_INTERVAL_S, "FIRST_COMPLETED")
            progress.update(len(done))
            if name := signals.first_signal_name:
                for future in waiting:
                    future.cancel()
                for process in list(processes):
                    process.terminate()
                raise TrainingInterrupted(
                    f"{name}: what was made is kept; run the same command again to continue", name
                )
            for future in done:
                future.result()


def draw_figure(
    figure: LectureFigure,
    runs: Mapping[str, Path],
    folder: Path,
    device: list[str],
    environment: dict[str, str],
    processes: set[subprocess.Popen[bytes]],
) -> None:
    """Run the commands of a figure, and write its record.

    Args:
        runs: label -> run folder.
        folder: of the page.
        processes: those that run now, which an interruption ends.

    Raises:
        UserError: a command failed, or wrote no picture.
    """
    place = figure_folder(figure, folder)
    shutil.rmtree(place, ignore_errors=True)  # left by an interrupted or failed start
    place.mkdir(parents=True)
    commands = []
    start = time.monotonic()
    for number, command in enumerate(figure.commands, 1):
        out = place / str(number)
        out.mkdir()
        arguments = figure.arguments(command, runs, place)
        if takes_output_folder(arguments[0]):
            arguments.append(f"output_dir={quote_folder(out)}")
        if COMMANDS[arguments[0]].composed:
            arguments += device
        log = place / f"{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "genlab", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            processes.add(process)
            code = process.wait()
            processes.discard(process)
        commands.append(format_command(arguments))
        if code:
            error = last_error_line(read_text(log).splitlines())
            raise UserError(f"genlab {arguments[0]}: {error} (see {log})")
    seconds = time.monotonic() - start
    overrides = figure.all_trainings()
    record = FigureRecord(
        trainings=[
            format_command(["train", *overrides[label], f"out={quote_folder(run)}"])
            for label, run in runs.items()
        ],
        commands=commands,
        training_s=round(sum(map(training_seconds, dict.fromkeys(runs.values()))), 1),
        drawing_s=round(seconds, 1),
        cores=cpu_count(),
    )
    pictures = find_figure_pictures(figure, place)
    replace(record, pictures=pictures, numbers=read_figure_numbers(figure, place)).save(place)


def takes_output_folder(command: str) -> bool:
    """Whether a command has the option output_dir."""
    path = config_folder() / f"{command}.yaml"
    return path.exists() and "output_dir" in yaml.safe_load(read_text(path))


def training_seconds(run: Path) -> float:
    """Return how long a run was trained."""
    seconds = [line["seconds"] for line in RunFolder(run).read_log() if "seconds" in line]
    return float(seconds[-1]) if seconds else 0.0
