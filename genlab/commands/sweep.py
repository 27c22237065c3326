"""genlab sweep: what became of a sweep's jobs, which of them are best, and those that are not done once more."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.comparison.run_records import well_formed
from genlab.console import show
from genlab.errors import UserError, did_you_mean, printable
from genlab.fileio import read_json
from genlab.runs.run_folder import RunFolder
from genlab.sweeps import sweep_folder
from genlab.sweeps.sweep_folder import Job, State, SweepFolder
from genlab.sweeps.trust import check

VERBS = {
    "status": "what runs, waits, is done or failed, and why",
    "best": "the jobs by a number: metric=… higher=true n=5",
    "rerun": "the failed jobs once more",
    "resume": "all jobs that are not done once more",
}
# Of numbers that are logged, what is no measure of a model.
NO_MEASURE = re.compile(r"lr/|grad_norm/|seconds|items_per_s$|memory_mb$")


@dataclass(frozen=True)
class Again:
    """A sweep's own command, for some of its jobs, and the folder that it belongs to."""

    cwd: Path
    arguments: list[str]


def sweep(words: Sequence[str]) -> Again | None:
    """Do `genlab sweep <verb> <folder> [key=value …]`; return the command that is to be run again, if one is.

    Raises:
        UserError: an unknown verb or option, or no sweep.
    """
    known = ", ".join(VERBS)
    if not words:
        raise UserError(f"genlab sweep <verb> <folder>: which verb? {known}")
    verb, *rest = words
    if verb not in VERBS:
        raise UserError(
            f"genlab sweep {verb}: there is no such verb{did_you_mean(verb, VERBS)}; there are {known}"
        )
    where = [word for word in rest if "=" not in word]
    if len(where) != 1:
        raise UserError(
            f"genlab sweep {verb} takes one folder, which `genlab train -m` made, not {len(where)}"
        )
    given = dict(word.split("=", 1) for word in rest if "=" in word)
    for key in given if verb != "best" else given.keys() - {"metric", "higher", "n"}:
        near = did_you_mean(key, ["metric", "higher", "n"]) if verb == "best" else ""
        raise UserError(f"genlab sweep {verb}: unknown option '{key}'{near}; {VERBS[verb]}")
    found = SweepFolder.find(where[0])
    if verb == "status":
        return status(found)
    if verb == "best":
        return best(found, **given)
    return again(found, failed=verb == "rerun")


# --- what became of the jobs --------------------------------------------------------------------------------------------


def status(sweep: SweepFolder) -> None:
    """Print each job with its own options, its state, its step and its last numbers; of a failed one why."""
    jobs = sweep.jobs()
    states = sweep_folder.standing(jobs)
    rows = []
    for job, state, own in zip(jobs, states, sweep_folder.own_options(jobs), strict=True):
        done, of = steps(job)
        since = state.since.replace("T", " ")[:19]
        own, last = printable(" ".join(own)), printable(numbers(job, state))
        rows.append(
            [job.number, own, named(state), f"{done:,} of {of:,}" if of else "", since, last]
        )
    show(["job", "options", "state", "step", "since", "last numbers"], rows)
    for job, state in zip(jobs, states, strict=True):
        why = state.error.splitlines()[-sweep_folder.LINES :] or (
            sweep_folder.last_words(job) if state.status == "lost" else []
        )
        if state.status in ("failed", "stopped", "lost") and why:
            print(
                f"job {job.number} {state.status}:",
                *(f"  {indented(line)}" for line in why),
                sep="\n",
            )
    every = [state.status for state in states]
    counts = ", ".join(f"{every.count(s)} {s}" for s in sweep_folder.STATUSES if s in every)
    print(f"{len(jobs)} jobs: {counts}")
    if "failed" in every:
        print(f"the failed ones again: genlab sweep rerun {sweep.path}")
    if set(every) - {"done", "failed"}:
        print(f"all that is not done: genlab sweep resume {sweep.path}")


def indented(line: str) -> str:
    """Return a line without characters that a terminal would act on, as far in as it was: it may be of a traceback."""
    return " " * (len(line) - len(line.lstrip(" "))) + printable(line)


def named(state: State) -> str:
    """Return a state in a word or two, with the scheduler's id."""
    if (
        isinstance(state.result, dict) and "pruned" in state.result
    ):  # a trial of a search that was not worth its last steps
        return f"{state.status}, pruned"
    return (
        f"{state.status} {state.slurm}".strip()
        if state.status in ("waiting", "running")
        else state.status
    )


def steps(job: Job) -> tuple[int, int]:
    """Return how many steps a job has logged, and of how many: 0 of 0 before it began.

    Raises:
        UserError: its config.yaml or its stats.jsonl is damaged.
    """
    run = RunFolder(job.folder)
    try:
        of = run.options("trainer")["trainer"].get("steps")
    except FileNotFoundError:
        return 0, 0
    if not isinstance(of, int):
        raise UserError(
            f"{run.path / 'config.yaml'} is unreadable: its trainer.steps is no whole number"
        )
    return max((line["step"] for line in lines(run)), default=0), of


def lines(run: RunFolder) -> list[dict[str, Any]]:
    """Return what a run has logged so far: of one that is at work the last line may be half written.

    Raises:
        UserError: it is damaged.
    """
    found = run.history()
    for line in found:
        if not isinstance(line.get("evaluation", {}), dict):
            raise UserError(
                f"{run.stats} is damaged: its evaluation at step {line['step']} holds no numbers by name"
            )
    return found


def numbers(job: Job, state: State) -> str:
    """Return a job's last numbers that measure its model: its last evaluation, else its losses."""
    logged = lines(RunFolder(job.folder))
    evaluated = [line["evaluation"] for line in logged if "evaluation" in line]
    last = (
        evaluated[-1]
        if evaluated
        else next((line for line in reversed(logged) if "seconds" in line), {})
    )
    if not last:
        return "" if state.result is None else str(state.result)
    measures = {
        key: value
        for key, value in last.items()
        if isinstance(value, float) and not NO_MEASURE.match(key)
    }
    return ", ".join(f"{key} {value:.4g}" for key, value in list(measures.items())[:4])


# --- the best -----------------------------------------------------------------------------------------------------------


def best(
    sweep: SweepFolder, *, metric: str | None = None, higher: str | None = None, n: str = "10"
) -> None:
    """Print the jobs by a number of theirs: of `genlab evaluate`'s record, an evaluation in training, or a loss.

    Raises:
        UserError: no job has it, or a wrong option.
    """
    from rich.markup import escape

    if higher not in (None, "true", "false"):
        raise UserError(f"higher={higher}: true or false")
    if not n.isdigit() or int(n) < 1:
        raise UserError(f"n={n}: it must be a whole number, 1 or more")
    jobs = sweep.jobs()
    measured = [measures(job) for job in jobs]
    known = sorted({name for found in measured for name in found})
    if not known:
        raise UserError(f"{sweep.path}: no job has numbers yet")
    if metric is None:
        metric = "loss" if "loss" in known else known[0]
    if metric not in known:
        raise UserError(
            f"metric={metric}: no job has it{did_you_mean(metric, known)}; there are {', '.join(known)}"
        )
    upward = next(
        (
            found[metric][1]
            for found in measured
            if metric in found and found[metric][1] is not None
        ),
        False,
    )
    upward = upward if higher is None else higher == "true"
    ranked = [(found[metric][0], job, own) for job, found, own in zip(jobs, measured, sweep_folder.own_options(jobs), strict=True)
              if metric in found]  # fmt: skip
    # No number is better or worse than NaN, which would leave the others in no order: it comes last.
    ranked.sort(key=lambda row: (math.isnan(row[0]), -row[0] if upward else row[0]))
    rows = [
        [job.number, f"{value:.6g}", printable(" ".join(own)), job.folder]
        for value, job, own in ranked[: int(n)]
    ]
    show(
        [
            "job",
            escape(f"{printable(metric)} ({'higher' if upward else 'lower'} is better)"),
            "options",
            "run",
        ],
        rows,
    )


def measures(job: Job) -> dict[str, tuple[float, bool | None]]:
    """Return name -> (a job's final number, whether higher is better where that is known).

    Raises:
        UserError: its stats.jsonl or its metrics.json is damaged.
    """
    run = RunFolder(job.folder)
    found: dict[str, tuple[float, bool | None]] = {}
    for line in lines(run):
        row = line.get("evaluation", line if "seconds" in line else {})
        measured = {
            k: v
            for k, v in row.items()
            if isinstance(v, int | float) and k != "step" and not NO_MEASURE.match(k)
        }
        found |= {k: (number(v), None) for k, v in measured.items()}
    path = run.path / "metrics.json"
    record = (
        read_json(path)
        if path.exists()
        else {"metrics": [], "absent": {}, "settings": {}, "step": 0}
    )
    if not well_formed(record):
        raise UserError(
            f"{path} is unreadable: it is no record that `genlab evaluate` writes now; measure the run again"
        )
    return found | {
        row["name"]: (number(row["value"]), row.get("better") == "higher")
        for row in record["metrics"]
    }


def number(value: float | None) -> float:
    """Return a number of a record as a float: null stands for one that is not finite, and digits may be too many."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# --- once more ----------------------------------------------------------------------------------------------------------


def again(sweep: SweepFolder, *, failed: bool) -> Again | None:
    """Return the sweep's own command, for its failed jobs, or for all that are not done.

    Raises:
        UserError: its folder is gone, or its sweeper chooses jobs by what became of earlier ones.
    """
    jobs, plan = sweep.jobs(), sweep.plan()
    check(plan, sweep.path)
    states = sweep_folder.standing(jobs)
    left = [
        job
        for job, s in zip(jobs, states, strict=True)
        if (s.status == "failed" if failed else s.status != "done")
    ]
    searches = plan["sweeper"] != "basic"
    if searches and failed:
        raise UserError(
            f"{sweep.path} is a search: {plan['sweeper']} learns from what failed; go on with `genlab sweep resume`"
        )
    if not left and not searches:
        print(f"{sweep.path}: no job {'failed' if failed else 'is left'}")
        return None
    if not Path(plan["cwd"]).is_dir():
        raise UserError(f"{sweep.path} was begun in {plan['cwd']}, and there is no such folder now")
    ours = ("hydra.launcher.only=", "hydra.sweep.dir=")
    words = [word for word in plan["command"][1:] if not word.startswith(ours)]
    only = (
        [] if searches else [f"hydra.launcher.only=[{','.join(str(job.number) for job in left)}]"]
    )
    return Again(Path(plan["cwd"]), [*words, sweep.quoted, *only])
