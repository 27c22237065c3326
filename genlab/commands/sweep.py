"""genlab sweep: show a sweep's jobs, rank them by a number, and run unfinished ones again."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from genlab.comparison.run_records import read_evaluation_record
from genlab.config.dotted_keys import flatten_config
from genlab.errors import UserError, did_you_mean, make_printable
from genlab.runs.run_folder import RunFolder
from genlab.sweeps.job_state import (
    MAX_ERROR_LINES,
    STATUSES,
    Job,
    JobState,
    current_states,
    read_log_tail,
)
from genlab.sweeps.launches import DEFAULT_TRIES
from genlab.sweeps.plan_trust import is_own_plan, refuse_foreign_jobs, refuse_untrusted_plan
from genlab.sweeps.sweep_folder import SweepFolder, distinguishing_overrides
from genlab.sweeps.worker import parse_duration_s, seconds_until_slurm_limit
from genlab.tables import print_table, terminal_width, use_nonbreaking_spaces, wrap_words
from genlab.untrusted.records import is_valid_record
from genlab.untrusted.text import replace_unprintable

VERBS = {
    "status": "show the state of each job, and why it failed",
    "best": "rank the jobs by a number",
    "rerun": "run the failed jobs again",
    "resume": "run all jobs again that are not done",
    "work": "do jobs until none is left, beside other workers on any machine",
}
OPTIONS = {
    "best": {
        "metric": "a number of `genlab evaluate`, of an evaluation in training, or a loss",
        "higher": "true or false: whether higher is better; by default what the number says",
        "n": "how many jobs to show; 10",
    },
    "work": {
        "n": "jobs at a time, which share the cores evenly; 1",
        "gpus": "GPUs, each for one job at a time: gpus=0,1",
        "until": "save and end after this time: 90m, 4h, 2d; in a SLURM job before its own end",
        "tries": "starts of a job that is killed or dies, before it has failed; 3",
    },
}
# Logged numbers that do not measure a model.
NOT_A_MEASURE = re.compile(r"lr/|grad_norm/|seconds|items_per_s$|memory_mb$")
MAX_STATUS_NUMBERS = 4  # shown of each job
MAX_STATUS_ROWS = 200  # of a larger sweep only jobs that run or have not ended well are listed


# Options that change the meaning of a training loss, by their last name, in these sections.
OBJECTIVE_SECTIONS = ("model", "trainer", "regularizer")
OBJECTIVE_OPTION = re.compile(
    r"_target_|name|loss|\w+_loss|objective|likelihood|alpha|beta|gamma|variant|free_bits"
    r"|\w+_gamma|kl_warmup|time_distribution|(?!weight_decay)\w*weight|\w*penalty|\w*sigma\w*"
    r"|iwae_samples|conditional|sparsity\w*"
)
# Options of a dataset that change which items are seen, but not what a number means.
SAMPLING_OPTIONS = frozenset(
    {"root", "download", "flip", "n", "seed", "split_seed", "validation", "test", "strict"}
)
MAX_NAMED = 5  # numbers or options in a message


class Measure(NamedTuple):
    """A number of a job.

    Attributes:
        higher_is_better: None if unknown.
        is_loss: whether it is a loss of training.
        kind: the options that determine its meaning.
    """

    value: float
    higher_is_better: bool | None
    is_loss: bool
    kind: dict[str, Any]


@dataclass(frozen=True)
class RerunCommand:
    """A sweep's own command, restricted to some of its jobs, and the folder to run it in."""

    cwd: Path
    arguments: list[str]
    work: WorkOptions | None = None  # of a worker; None gives the command again


@dataclass(frozen=True)
class WorkOptions:
    """The options of `genlab sweep work`.

    Attributes:
        slots: the GPU of each job that runs at a time; None leaves the GPUs as they are.
        until_s: seconds after which the jobs save and the worker ends; None for no limit.
        tries: the maximum number of starts of a job that is lost.
    """

    slots: tuple[str | None, ...]
    until_s: float | None
    tries: int


def sweep(words: Sequence[str]) -> RerunCommand | None:
    """Run `genlab sweep <verb> <folder> [option=value …]`.

    Returns:
        the command to run again, if the verb asks for one.

    Raises:
        UserError: an unknown verb or option, or a folder that is not a sweep.
    """
    verbs = ", ".join(VERBS)
    if not words:
        raise UserError(f"genlab sweep <verb> <folder>: the verb is missing; choose {verbs}")
    verb, *rest = words
    if {"--help", "-h", "help"} & set(words):
        print(help_text())
        return None
    if verb not in VERBS:
        near = did_you_mean(verb, VERBS)
        raise UserError(f"genlab sweep {verb}: there is no such verb{near}; choose {verbs}")
    folders = [word for word in rest if "=" not in word]
    if len(folders) != 1:
        raise UserError(
            f"genlab sweep {verb} takes one folder, which `genlab train -m` made, "
            f"not {len(folders)}"
        )
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    known = OPTIONS.get(verb, {})
    for key in options:
        if key not in known:
            raise UserError(
                f"genlab sweep {verb}: unknown option '{key}'{did_you_mean(key, known)}; "
                f"{verb}: {VERBS[verb]}" + (f" ({', '.join(known)})" if known else "")
            )
    folder = SweepFolder.open(folders[0])
    if verb == "status":
        print_status_table(folder)
    elif verb == "best":
        print_best_jobs(folder, **options)
    elif verb == "work":
        return make_work_command(folder, parse_work_options(**options))
    else:
        return make_rerun_command(folder, only_failed=verb == "rerun")
    return None


def help_text() -> str:
    """Return the verbs and their options."""
    lines = ["genlab sweep <verb> <folder> [option=value ...]", ""]
    for verb, meaning in VERBS.items():
        lines.append(f"  {verb:<8} {meaning}")
        lines += [f"    {key:<8} {text}" for key, text in OPTIONS.get(verb, {}).items()]
    return "\n".join(
        [*lines, "", "The folder is one that `genlab train -m` made; see docs/sweeps.md"]
    )


# --- status ---------------------------------------------------------------------------------------


def print_status_table(sweep: SweepFolder) -> None:
    """Print each job's options, state, step and last numbers, and the errors of failed jobs.

    Of a large sweep the jobs that are done or wait are only counted.
    """
    jobs = sweep.jobs()
    states = current_states(jobs)
    listed = list(zip(jobs, states, distinguishing_overrides(jobs), strict=True))
    if len(jobs) > MAX_STATUS_ROWS:
        listed = [row for row in listed if row[1].status not in ("done", "waiting")]
        listed = listed[:MAX_STATUS_ROWS]
    rows = []
    for job, state, options in listed:
        step, num_steps = read_step_and_num_steps(job)
        rows.append(
            [
                str(job.number),
                make_printable(" ".join(options)),
                use_nonbreaking_spaces(describe_job_state(state)),
                f"{step:,} of {num_steps:,}" if num_steps else "",
                state.since.replace("T", " ")[:19],
                make_printable(describe_last_numbers(job, state)),
            ]
        )
    print_table(["job", "options", "state", "step", "since", "last numbers"], rows)
    if len(listed) < len(jobs):
        print(f"{len(jobs) - len(listed):,} other jobs are not listed")
    width = terminal_width() - 2  # of a line that is indented
    for job, state, _ in listed:
        lines = state.error.splitlines()[-MAX_ERROR_LINES:]
        if not lines and state.status == "lost":
            lines = read_log_tail(job)
        if state.status in ("failed", "stopped", "lost") and lines:
            print(f"job {job.number} {state.status}:")
            for line in map(printable_with_indent, lines):
                fits = len(line) <= width
                for part in [line] if fits else wrap_words(line, width):
                    print(f"  {part}")
    statuses = [state.status for state in states]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in STATUSES if s in statuses)
    print(f"{len(jobs)} jobs: {counts}")
    if "failed" in statuses:
        print(f"to run the failed jobs again: genlab sweep rerun {sweep.path}")
    if set(statuses) - {"done", "failed"}:
        print(f"to run all jobs that are not done: genlab sweep resume {sweep.path}")
        print(f"to do some of them here: genlab sweep work {sweep.path}")


def printable_with_indent(line: str) -> str:
    """Return a line of a traceback without control characters, with its indentation."""
    return " " * (len(line) - len(line.lstrip(" "))) + make_printable(line)


def describe_job_state(state: JobState) -> str:
    """Return a state in a word or two, with the scheduler's id."""
    if isinstance(state.result, dict) and "pruned" in state.result:
        return f"{state.status}, pruned"  # a trial of a search that was ended early
    if state.status in ("waiting", "running"):
        return f"{state.status} {state.slurm}".strip()
    return state.status


def read_step_and_num_steps(job: Job) -> tuple[int, int]:
    """Return how many steps a job has logged, and how many it trains; (0, 0) before its start.

    Raises:
        UserError: its config.yaml or its stats.jsonl is damaged.
    """
    run = RunFolder(job.folder)
    try:
        num_steps = run.read_config("trainer")["trainer"].get("steps")
    except FileNotFoundError:
        return 0, 0
    if not isinstance(num_steps, int):
        path = run.path / "config.yaml"
        raise UserError(f"{path} is unreadable: its trainer.steps is not a whole number")
    return max((line["step"] for line in read_log_lines(run)), default=0), num_steps


def read_log_lines(run: RunFolder) -> list[dict[str, Any]]:
    """Return the log of a run, which may be in progress.

    Raises:
        UserError: it is damaged.
    """
    lines = run.read_log()
    for line in lines:
        if not isinstance(line.get("evaluation", {}), dict):
            raise UserError(
                f"{run.stats} is damaged: its evaluation at step {line['step']} is not a mapping "
                "of names to numbers"
            )
    return lines


def describe_last_numbers(job: Job, state: JobState) -> str:
    """Return a job's last numbers that measure its model: its last evaluation, or its losses."""
    last: dict[str, Any] = {}
    is_evaluation = False
    for line in read_log_lines(RunFolder(job.folder)):
        if "evaluation" in line:
            last, is_evaluation = line["evaluation"], True
        elif "seconds" in line and not is_evaluation:
            last = line
    if not last:
        return "" if state.result is None else str(state.result)
    measures = {
        key: value
        for key, value in last.items()
        if isinstance(value, float) and not NOT_A_MEASURE.match(key)
    }
    shown = list(measures.items())[:MAX_STATUS_NUMBERS]
    return ", ".join(f"{key} {value:.4g}" for key, value in shown)


# --- best -----------------------------------------------------------------------------------------


def print_best_jobs(
    sweep: SweepFolder, *, metric: str | None = None, higher: str | None = None, n: str = "10"
) -> None:
    """Print the jobs ranked by a number.

    Args:
        metric: a number of `genlab evaluate`'s record, of an evaluation in training, or a loss;
            None for the loss.
        higher: "true" or "false", whether higher is better; None for what the record says.
        n: how many jobs to print.

    Raises:
        UserError: no job has the number, or a wrong option.
    """
    if higher not in (None, "true", "false"):
        raise UserError(f"higher={higher}: choose true or false")
    if not n.isdigit() or int(n) < 1:
        raise UserError(f"n={n}: it must be a whole number, 1 or more")
    jobs = sweep.jobs()
    measures_of_jobs = [read_final_metrics(job) for job in jobs]
    known = sorted({name for measures in measures_of_jobs for name in measures})
    if not known:
        raise UserError(f"{sweep.path}: no job has numbers yet")
    if metric is None:
        metric = default_ranking_metric(measures_of_jobs, known)
    metric = replace_unprintable(metric)  # as the names in `known` are
    if metric not in known:
        near = did_you_mean(metric, known)
        raise UserError(
            f"metric={metric}: no job has this number{near}; there are {', '.join(known)}"
        )
    refuse_incomparable_metric(sweep, metric, measures_of_jobs)
    directions = [m[metric].higher_is_better for m in measures_of_jobs if metric in m]
    recorded = next((direction for direction in directions if direction is not None), False)
    higher_is_better = recorded if higher is None else higher == "true"
    options_of_jobs = distinguishing_overrides(jobs)
    ranked = [
        (measures[metric].value, job, options)
        for job, measures, options in zip(jobs, measures_of_jobs, options_of_jobs, strict=True)
        if metric in measures
    ]
    # NaN compares as neither better nor worse, which would break the order: it comes last.
    ranked.sort(key=lambda row: (math.isnan(row[0]), -row[0] if higher_is_better else row[0]))
    rows = [
        [str(job.number), f"{value:.6g}", make_printable(" ".join(options)), str(job.folder)]
        for value, job, options in ranked[: int(n)]
    ]
    direction = "higher" if higher_is_better else "lower"
    header = f"{make_printable(metric)} ({direction} is better)"
    print_table(["job", header, "options", "run"], rows)


def default_ranking_metric(measures_of_jobs: list[dict[str, Measure]], known: list[str]) -> str:
    """Return the number to rank by: a comparable loss, else a metric that all jobs have."""
    if "loss" in known and len(distinct_kinds_of_metric(measures_of_jobs, "loss")) == 1:
        return "loss"
    shared = comparable_metric_names(measures_of_jobs)
    return "loss" if "loss" in known and not shared else (shared or known)[0]


def comparable_metric_names(measures_of_jobs: list[dict[str, Measure]]) -> list[str]:
    """Return the measured numbers, not losses, that all jobs have and that compare."""
    first, *others = measures_of_jobs
    return [
        name
        for name in first
        if not first[name].is_loss
        and all(name in measures for measures in others)
        and len(distinct_kinds_of_metric(measures_of_jobs, name)) == 1
    ]


def distinct_kinds_of_metric(
    measures_of_jobs: list[dict[str, Measure]], name: str
) -> dict[str, dict[str, Any]]:
    """Return the different kinds of a number among the jobs, by their text."""
    kinds = [measures[name].kind for measures in measures_of_jobs if name in measures]
    return {json.dumps(kind, sort_keys=True, default=str): kind for kind in kinds}


def refuse_incomparable_metric(
    sweep: SweepFolder, metric: str, measures_of_jobs: list[dict[str, Measure]]
) -> None:
    """Refuse to rank numbers that mean different things, such as the losses of two models.

    Raises:
        UserError: names the options that differ, and numbers that compare.
    """
    kinds = list(distinct_kinds_of_metric(measures_of_jobs, metric).values())
    if len(kinds) < 2:
        return
    keys = sorted({key for kind in kinds for key in kind})
    changed = [key for key in keys if len({str(kind.get(key)) for kind in kinds}) > 1]
    shown = ", ".join(changed[:MAX_NAMED]) + (", …" if len(changed) > MAX_NAMED else "")
    if shared := comparable_metric_names(measures_of_jobs):
        others = f" (these compare: {', '.join(shared[:MAX_NAMED])})" if len(shared) > 1 else ""
        remedy = f"give metric={shared[0]}{others}"
    else:
        remedy = (
            f"measure all runs with `genlab compare {shlex.quote(str(sweep.path))}`, then give "
            "metric= with a number that all of them have, such as frechet_classifier or "
            "bits_per_dim"
        )
    raise UserError(
        f"metric={metric} is not the same quantity in all jobs, which differ in {shown}; {remedy}"
    )


def options_that_define_metric(name: str, is_loss: bool, config: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run that determine what one of its numbers means.

    A loss depends on the model and its objective, and like a likelihood on the values of the data.
    """
    if not is_loss and not name.startswith(("nll", "loss")):
        return {}
    options = {}
    for key, value in config.items():
        section, _, option = key.partition(".")
        is_data = section == "dataset" and option not in SAMPLING_OPTIONS
        is_objective = OBJECTIVE_OPTION.fullmatch(key.rpartition(".")[2]) is not None
        if is_data or (is_loss and section in OBJECTIVE_SECTIONS and is_objective):
            options[key] = value
    return options


def read_final_metrics(job: Job) -> dict[str, Measure]:
    """Return the final numbers of a job by name.

    Raises:
        UserError: its stats.jsonl or its metrics.json is damaged.
    """
    run = RunFolder(job.folder)
    try:
        config = flatten_config(run.read_config())
    except FileNotFoundError:  # not started yet
        config = {}
    found: dict[str, Measure] = {}
    for line in read_log_lines(run):
        is_loss = "evaluation" not in line
        numbers = line.get("evaluation", line if "seconds" in line else {})
        for key, value in numbers.items():
            is_number = isinstance(value, int | float) and key not in ("step", "partial")
            if is_number and not NOT_A_MEASURE.match(key):
                quantity = options_that_define_metric(key, is_loss, config)
                found[key] = Measure(recorded_number_to_float(value), None, is_loss, quantity)
    path = run.path / "metrics.json"
    if not path.exists():
        return found
    record = read_evaluation_record(path)
    if not is_valid_record(record):
        raise UserError(
            f"{path} is unreadable: it is not a record that `genlab evaluate` writes; "
            "measure the run again"
        )
    for row in record["metrics"]:
        name, better = row["name"], row.get("better") == "higher"
        quantity = options_that_define_metric(name, False, config)
        found[name] = Measure(recorded_number_to_float(row["value"]), better, False, quantity)
    return found


def recorded_number_to_float(value: float | None) -> float:
    """Return a record's number as a float: null is NaN, and a huge integer is infinite."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf if value is not None and value > 0 else -math.inf


# --- rerun and resume -----------------------------------------------------------------------------


def make_rerun_command(sweep: SweepFolder, *, only_failed: bool) -> RerunCommand | None:
    """Return the sweep's own command for its failed jobs, or for all that are not done.

    Returns:
        None without such jobs.

    Raises:
        UserError: the plan is not trusted, its working directory is gone, or its sweeper chooses
            jobs by the results of earlier ones.
    """
    refuse_untrusted_plan(sweep.read_stored_plan(), sweep.path)
    jobs, plan = sweep.jobs(), sweep.read_plan()
    numbers = [
        job.number
        for job, state in zip(jobs, current_states(jobs), strict=True)
        if (state.status == "failed" if only_failed else state.status != "done")
    ]
    is_search = plan["sweeper"] != "basic"
    if is_search and only_failed:
        raise UserError(
            f"{sweep.path} is a search: {plan['sweeper']} learns from failed trials; "
            "resume it with `genlab sweep resume`"
        )
    if not numbers and not is_search:
        print(f"{sweep.path}: no job {'failed' if only_failed else 'is left'}")
        return None
    words = own_command_words(sweep)
    if only_failed:
        words.append(f"hydra.launcher.only=[{','.join(map(str, numbers))}]")
    return RerunCommand(working_directory(sweep), words)


def own_command_words(sweep: SweepFolder) -> list[str]:
    """Return the arguments of a sweep's own command, with its folder as it is called now.

    Raises:
        UserError: the plan is not trusted.
    """
    refuse_untrusted_plan(sweep.read_stored_plan(), sweep.path)
    plan = sweep.read_plan()
    replaced = ("hydra.launcher.only=", "hydra.sweep.dir=")
    words = [word for word in plan["command"][1:] if not word.startswith(replaced)]
    return [*words, sweep.dir_override]


def working_directory(sweep: SweepFolder) -> Path:
    """Return the folder where a sweep continues: where it was started, if this user did that.

    The plan of another person does not choose it: Python imports a user's models from there.

    Raises:
        UserError: it does not exist any more.
    """
    plan = sweep.read_stored_plan()
    if not is_own_plan(plan):
        return Path.cwd()
    if not Path(plan["cwd"]).is_dir():
        raise UserError(
            f"{sweep.path} was started in {plan['cwd']}, but that folder does not exist"
        )
    return Path(plan["cwd"])


# --- work -----------------------------------------------------------------------------------------


def parse_work_options(
    *,
    n: str | None = None,
    gpus: str | None = None,
    until: str | None = None,
    tries: str = str(DEFAULT_TRIES),
) -> WorkOptions:
    """Return the options of a worker.

    Args:
        n: jobs at a time; None is 1.
        gpus: GPUs as in CUDA_VISIBLE_DEVICES, each for one job at a time.
        until: a duration, such as 90m; None is until the end of the SLURM job around it, if any.
        tries: maximum number of starts of a job that is killed or dies.

    Raises:
        UserError: an option is wrong.
    """
    for name, value in (("n", n), ("tries", tries)):
        if value is not None and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise UserError(f"{name}={value}: it must be a whole number, 1 or more")
    if n is not None and gpus is not None:
        raise UserError("give n= or gpus=, not both: each GPU takes one job at a time")
    slots: tuple[str | None, ...] = (None,) * int(n or 1)
    if gpus is not None:
        slots = tuple(word.strip() for word in gpus.strip("[]").split(","))
        if not all(slots):
            raise UserError(f"gpus={gpus}: give the numbers of GPUs, such as gpus=0,1")
    until_s = seconds_until_slurm_limit() if until is None else parse_duration_s(until)
    return WorkOptions(slots, until_s, int(tries))


def make_work_command(sweep: SweepFolder, options: WorkOptions) -> RerunCommand:
    """Return the sweep's own command, to be composed by a worker.

    Raises:
        UserError: the plan is not trusted, or its working directory is gone.
    """
    words = own_command_words(sweep)
    refuse_foreign_jobs(sweep.read_plan(), sweep.path)
    return RerunCommand(working_directory(sweep), words, options)
