"""genlab plan -m: show the jobs that a sweep would run; nothing is started or written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from genlab.console import format_duration_as_h_mm_ss
from genlab.errors import make_printable
from genlab.sweeps.job_state import STATUSES, Job, JobState, current_states
from genlab.sweeps.sweep_folder import SweepFolder, distinguishing_overrides
from genlab.tables import print_table

MAX_SHOWN_ROWS = 50  # jobs of a table
MAX_SHOWN_VALUES = 12  # of an option


def print_sweep_preview(
    sweep: SweepFolder, overrides: Sequence[Sequence[str]], launcher: Mapping[str, Any]
) -> None:
    """Print the number of jobs, their choices, what is done, and the time if it is known.

    Args:
        overrides: of each job.
        launcher: the launcher's options.

    Raises:
        UserError: the folder holds another sweep.
    """
    sweep.refuse_other_jobs(0, overrides)
    jobs = [Job(n, tuple(words), sweep.path / str(n)) for n, words in enumerate(overrides)]
    states = current_states(jobs)
    statuses = [state.status for state in states]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in STATUSES if s in statuses)
    print(f"{len(jobs):,} jobs in {sweep.path}: {counts}")
    for key, values in choices_by_key(overrides).items():
        shown = ", ".join(values[:MAX_SHOWN_VALUES])
        others = f", … ({len(values):,} in all)" if len(values) > MAX_SHOWN_VALUES else ""
        print(f"  {make_printable(key)}: {make_printable(shown)}{others}")
    rows = [
        [str(job.number), make_printable(" ".join(options)), state.status]
        for job, options, state in zip(jobs, distinguishing_overrides(jobs), states, strict=True)
    ]
    print_table(["job", "options", "state"], rows[:MAX_SHOWN_ROWS])
    if len(rows) > MAX_SHOWN_ROWS:
        print(f"… and {len(rows) - MAX_SHOWN_ROWS:,} others")
    print(describe_time_left(jobs, states, launcher))


def choices_by_key(overrides: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Return the different values of each option, in order; only options with several values."""
    values: dict[str, dict[str, None]] = {}
    for word in (word for job in overrides for word in job):
        key, _, value = word.partition("=")
        values.setdefault(key, {})[value] = None
    return {key: list(found) for key, found in values.items() if len(found) > 1}


def describe_time_left(
    jobs: Sequence[Job], states: Sequence[JobState], launcher: Mapping[str, Any]
) -> str:
    """Return the time that the jobs which are left take, by those that are done."""
    durations = [
        seconds
        for job, state in zip(jobs, states, strict=True)
        if state.status == "done" and (seconds := job_duration_s(job)) is not None
    ]
    num_left = sum(state.status not in ("done", "failed") for state in states)
    if not num_left:
        return "no job is left"
    if not durations:
        return "time: unknown before a job is done; `genlab plan` without -m measures one training"
    parallel = max(1, len(launcher.get("gpus") or []), launcher.get("n") or 1)
    if "array_parallelism" in launcher:
        parallel = max(1, min(num_left, launcher["array_parallelism"] or num_left))
    mean = sum(durations) / len(durations)
    left = format_duration_as_h_mm_ss(mean * num_left / parallel)
    return (
        f"time: {num_left:,} jobs take about {left}, {parallel} at a time, at the mean time of the "
        f"{len(durations):,} that are done ({format_duration_as_h_mm_ss(mean)})"
    )


def job_duration_s(job: Job) -> float | None:
    """Return the seconds between a run's start and end, by its files; None if unknown."""
    try:
        start = os.stat(job.folder / "run.json").st_mtime
        return max(0.0, os.stat(job.folder / "state.json").st_mtime - start)
    except OSError:
        return None


def print_search_preview(
    sweep: SweepFolder, overrides: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Print what a search would try: its trials are drawn one after the other.

    Args:
        overrides: the search space and the fixed options.
        options: of the search.
    """
    folders = [path for path in sweep.path.glob("*/state.json") if path.parent.name.isdigit()]
    jobs = [Job(int(path.parent.name), (), path.parent) for path in folders]
    num_done = sum(state.status == "done" for state in current_states(jobs))
    print(f"a search of {options['n_trials']:,} trials in {sweep.path}: {num_done} done")
    for word in overrides:
        print(f"  {make_printable(word)}")
    print(
        f"sampler {options.get('sampler')}, pruner {options.get('pruner')}; trials are drawn later"
    )
