"""Train the runs that a comparison lacks, as jobs of this machine.

A run's folder is named by its composed config. So a run that exists is used again, by another
comparison too, and an interrupted one resumes. The folder is also the folder of its job: it holds
state.json and the job's lock, as those of a sweep do.
"""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from genlab.config.override_keys import (
    RUNTIME_KEYS,
    is_runtime_override,
    override_key,
    quote_override_value,
    root_key,
)
from genlab.distributed.environment import SINGLE_PROCESS_ENV
from genlab.errors import UserError, did_you_mean
from genlab.runs.run_folder import RunFolder
from genlab.signals import TrainingInterrupted
from genlab.spec import Positive
from genlab.sweeps.job_monitor import print_status, run_jobs
from genlab.sweeps.job_state import (
    RUN_LOG,
    Job,
    current_states,
    read_log_tail,
    read_state,
    run_and_record_job,
)
from genlab.sweeps.launches import Launch
from genlab.sweeps.leases import Lease
from genlab.sweeps.local_backend import LocalBackend, cpu_count
from genlab.untrusted.files import read_bytes

RUNS_FOLDER = Path("outputs/lectures/runs")


@dataclass(frozen=True)
class ComparisonColumn:
    """One column of a comparison: a run, and the options of its sampler (`name`, `steps`, …)."""

    label: str
    run: Path
    sampler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """A run that a comparison needs.

    Attributes:
        label: its name in the comparison.
        overrides: of `genlab train`.
        folder: named by the composed config.
        steps: of the whole training.
    """

    label: str
    overrides: list[str]
    folder: Path
    steps: int

    @property
    def has_started(self) -> bool:
        """Whether the run folder exists."""
        return (self.folder / "run.json").exists()

    @property
    def is_trained(self) -> bool:
        """Whether the run has a checkpoint, and all its steps or a job that is done."""
        if not self.has_started:
            return False
        checkpoints = RunFolder(self.folder).checkpoint_files()
        if not checkpoints:
            return False
        step = int(checkpoints[-1].stem.removeprefix("step_"))
        return step >= self.steps or read_state(self.folder).status == "done"

    def train_arguments(self, flags: Sequence[str]) -> list[str]:
        """Return the arguments of `genlab train` that train the run, or resume it."""
        if not self.has_started:
            return [*flags, *self.overrides, f"out={quote_override_value(self.folder)}"]
        # A resume takes what is trained from the run's own config.
        runtime = [override for override in self.overrides if is_runtime_override(override)]
        return [*flags, *runtime, f"resume={quote_override_value(self.folder)}"]


def train_missing_runs(
    *,
    train: dict[str, list[str]],
    sample: dict[str, dict[str, Any]] | None = None,
    common: list[str] | None = None,
    folder: Path = RUNS_FOLDER,
    jobs: Positive | None = None,
    flags: list[str] | None = None,
) -> tuple[list[ComparisonColumn], dict[str, str]]:
    """Train those runs of a comparison that do not exist yet.

    Args:
        train: label -> the overrides of `genlab train`.
        sample: label -> the options of a sampler and, as `run`, the label of the run that it
            samples from. A run with such columns appears in the comparison only as these.
        common: overrides for every run.
        folder: where the run folders are.
        jobs: the number of runs trained at a time; None for as many as there are cores. They share
            the cores evenly.
        flags: Hydra flags, such as --config-dir with a folder of the user's own models.

    Returns:
        the columns of the comparison, and label -> error of the runs that failed.

    Raises:
        UserError: the comparison is not valid, or none of its runs could be trained.
        TrainingInterrupted: a signal ended the training; the runs are saved.
    """
    check_comparison_options(train, sample or {}, common or [])
    overrides = {label: [*(common or []), *words] for label, words in train.items()}
    trained, failed = train_labeled_runs(overrides, folder=folder, jobs=jobs, flags=flags)
    if not trained:
        label, error = next(iter(failed.items()))
        raise UserError(f"none of the runs could be trained; {label}: {error}")
    return make_comparison_columns(trained, sample or {}), failed


def train_labeled_runs(
    overrides: dict[str, list[str]],
    *,
    folder: Path = RUNS_FOLDER,
    jobs: int | None = None,
    flags: Sequence[str] | None = None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Train those runs that do not exist yet.

    Args:
        overrides: label -> the overrides of `genlab train`.
        folder, jobs, flags: as of `train_missing_runs`.

    Returns:
        label -> run folder, and label -> error of the runs that failed.

    Raises:
        TrainingInterrupted: a signal ended the training; the runs are saved.
    """
    planned, failed = plan_runs(overrides, folder, flags or [])
    missing: dict[Path, PlannedRun] = {}
    for run in planned.values():
        if run.is_trained:
            print_status(f"{run.label}: already trained: {run.folder}")
        else:
            missing.setdefault(run.folder, run)  # once, even if two labels need it
    if missing:
        errors = train_runs(list(missing.values()), jobs, flags or [])
        failed |= {
            label: errors[run.folder] for label, run in planned.items() if run.folder in errors
        }
    return {label: run.folder for label, run in planned.items() if label not in failed}, failed


def check_comparison_options(
    train: Mapping[str, Sequence[str]], sample: dict[str, dict[str, Any]], common: Sequence[str]
) -> None:
    """Refuse a comparison whose labels or overrides are not allowed.

    Raises:
        UserError: names the label or the override.
    """
    if not train:
        raise UserError(
            "train: a comparison needs at least one run: label -> the overrides of `genlab train`"
        )
    for label, options in sample.items():
        run = options.get("run")
        if run not in train:
            near = did_you_mean(str(run), train)
            raise UserError(
                f"sample.{label}.run={run}: there is no such run{near}; "
                f"there are {', '.join(train)}"
            )
        if label in train and run != label:
            raise UserError(f"sample.{label} has the label of another run; give it its own")
    for override in [*common, *(o for overrides in train.values() for o in overrides)]:
        key = override_key(override)
        is_hydra_option = override.startswith("-") or root_key(key).startswith("hydra")
        if is_hydra_option or key in ("out", "resume"):
            raise UserError(
                f"train: {override} is not allowed for a comparison's run: "
                "the comparison chooses the run's folder itself"
            )


def make_comparison_columns(
    runs: dict[str, Path], sample: dict[str, dict[str, Any]]
) -> list[ComparisonColumn]:
    """Return the columns of a comparison: runs, or the columns of `sample` in their place.

    Args:
        runs: label -> run folder.
        sample: as `train_missing_runs` takes it.
    """
    columns: list[ComparisonColumn] = []
    for label, folder in runs.items():
        sampled = [
            ComparisonColumn(name, folder, {k: v for k, v in options.items() if k != "run"})
            for name, options in sample.items()
            if options["run"] == label
        ]
        columns += sampled or [ComparisonColumn(label, folder)]
    return columns


# --- planning -------------------------------------------------------------------------------------


def plan_runs(
    overrides: dict[str, list[str]], folder: Path, flags: Sequence[str]
) -> tuple[dict[str, PlannedRun], dict[str, str]]:
    """Compose the config of each run, as `genlab train` does, and find its folder.

    Returns:
        label -> run, and label -> error of those whose config does not compose.
    """
    with ThreadPoolExecutor(cpu_count()) as pool:  # a process each, of which many would not fit
        processes = dict(
            zip(overrides, pool.map(partial(compose_run, flags), overrides.values()), strict=True)
        )
    planned: dict[str, PlannedRun] = {}
    failed: dict[str, str] = {}
    folders: dict[str, Path] = {}  # by digest
    for label, process in processes.items():
        if process.returncode:
            failed[label] = last_error_line(process.stderr.splitlines())
            print_status(f"{label}: failed: {failed[label]}")
            continue
        config = yaml.safe_load(process.stdout)
        digest = config_digest(config)
        name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        if digest not in folders:
            folders[digest] = (
                find_run_folder_by_digest(folder, digest) or folder / f"{name}-{digest}"
            )
        planned[label] = PlannedRun(
            label, overrides[label], folders[digest], config["trainer"]["steps"]
        )
    return planned, failed


def compose_run(flags: Sequence[str], overrides: list[str]) -> subprocess.CompletedProcess[str]:
    """Compose the config of a run in a separate process, which prints it as YAML."""
    return subprocess.run(
        [sys.executable, "-m", "genlab", "train", *flags, *overrides, "--cfg", "job"],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env=os.environ
        | SINGLE_PROCESS_ENV
        | {"PYTHONIOENCODING": "utf-8:surrogateescape"},  # a config may name any file
    )


def config_digest(config: dict[str, Any]) -> str:
    """Return a digest of the options that say what is trained."""
    identity = {key: value for key, value in config.items() if key not in RUNTIME_KEYS}
    return hashlib.sha256(yaml.safe_dump(identity).encode()).hexdigest()[:10]


def find_run_folder_by_digest(folder: Path, digest: str) -> Path | None:
    """Return the folder of a run with this config, whatever label it was trained for."""
    return next(iter(sorted(folder.glob(f"*-{digest}"))), None)


# --- training -------------------------------------------------------------------------------------


def train_runs(
    runs: Sequence[PlannedRun], num_parallel: int | None, flags: Sequence[str]
) -> dict[Path, str]:
    """Train runs as jobs of this machine; return folder -> error of those that failed.

    Raises:
        TrainingInterrupted: a signal ended the training; the runs are saved.
    """
    jobs = [Job(number, tuple(run.overrides), run.folder) for number, run in enumerate(runs)]
    for run in runs:
        # A run that was done, but whose checkpoints are gone, is trained again.
        if read_state(run.folder).status == "done":
            (run.folder / "state.json").unlink()

    def submit(backend: LocalBackend, job: Job, lease: Lease) -> None:
        run = runs[job.number]
        verb = "resuming" if run.has_started else "training"
        print_status(f"{run.label}: {verb} ({job.number + 1} of {len(runs)}): {run.folder}")
        run.folder.mkdir(parents=True, exist_ok=True)
        log = run.folder / RUN_LOG
        arguments = (lease, run.train_arguments(flags))
        backend.start_process(
            job, run_train_job, arguments, stdout=log, stderr=log, environment=SINGLE_PROCESS_ENV
        )

    num_slots = min(num_parallel or cpu_count(), len(runs))
    names = {number: run.label for number, run in enumerate(runs)}
    try:
        run_jobs(jobs, LocalBackend(submit, [None] * num_slots), names=names, launch=Launch(1))
    except TrainingInterrupted as error:
        name = signal.Signals(error.exit_code - 128).name
        raise TrainingInterrupted(
            f"{name}: the comparison's runs are saved; run the same command again to resume", name
        ) from None
    errors: dict[Path, str] = {}
    for job, state in zip(jobs, current_states(jobs), strict=True):
        if state.status != "done":
            errors[job.folder] = last_error_line(state.error.splitlines() or read_log_tail(job))
    return errors


def run_train_job(lease: Lease, arguments: list[str]) -> None:
    """Train one run in the process of its job, and write the job's state."""
    folder = lease.folder
    try:
        run_and_record_job(folder, partial(run_train_command, folder, arguments), lease)
    except TrainCommandError as error:
        sys.exit(error.exit_code)


def run_train_command(folder: Path, arguments: list[str]) -> None:
    """Run `genlab train` in this process, as the command line does.

    Raises:
        TrainCommandError: the command ended with an exit code other than 0.
    """
    sys.argv = ["genlab", "train", *arguments]
    try:
        runpy.run_module("genlab", run_name="__main__")
    except SystemExit as end:
        if end.code:
            lines = read_bytes(folder / RUN_LOG).decode(errors="replace").splitlines()
            raise TrainCommandError(last_error_line(lines), int(end.code)) from None


class TrainCommandError(UserError):
    """`genlab train` ended with an error, which it has printed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def last_error_line(lines: Sequence[str]) -> str:
    """Return the line in which genlab printed an error, or else the last line of the output."""
    lines = [line.strip() for line in lines if line.strip()]
    messages = [line.removeprefix("genlab: ") for line in lines if line.startswith("genlab: ")]
    return (messages or lines or ["the process printed no error"])[-1]
