"""Lectures: the runs that a comparison needs, trained where they are not there yet, each in a process of its own."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genlab.distributed.environment import ALONE
from genlab.errors import UserError, did_you_mean
from genlab.runs.run_folder import RunFolder
from genlab.signals import Signals, Stopped
from genlab.spec import Positive

RUNS = Path("outputs/lectures/runs")
OWN = (
    "out",
    "resume",
    "device",
    "debug",
    "allow",
)  # what says where and how a run is trained, not what


@dataclass(frozen=True)
class Shown:
    """One column of a lecture's comparison: a run, and the options of its sampler (`name`, `steps`, …), if any."""

    label: str
    run: Path
    sampler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run to be had: its label, its overrides of `genlab train`, and its folder, which its composed config names."""

    label: str
    overrides: list[str]
    folder: Path
    steps: int

    @property
    def done(self) -> bool:
        """Whether the run is there with all of its steps."""
        if not (self.folder / "run.json").exists():
            return False
        last = RunFolder(self.folder).steps()[-1:]
        return bool(last) and int(last[0].stem.removeprefix("step_")) >= self.steps

    def command(self, flags: list[str]) -> list[str]:
        """Return the command that trains it, or goes on with it."""
        if (self.folder / "run.json").exists():
            return genlab("train", f"resume={quoted(self.folder)}")
        return genlab("train", *flags, *self.overrides, f"out={quoted(self.folder)}")


def prepare(
    *,
    train: dict[str, list[str]],
    sample: dict[str, dict[str, Any]] | None = None,
    common: list[str] | None = None,
    folder: Path = RUNS,
    jobs: Positive | None = None,
    flags: list[str] | None = None,
) -> tuple[list[Shown], dict[str, str]]:
    """Have every run of a lecture; return the columns of its comparison, and label -> what went wrong with a run.

    A run's folder is named by its composed config, so that a finished run with the same options is used again, by another
    lecture too, and an interrupted one goes on.

    Args:
        train: label -> the overrides of `genlab train`.
        sample: label -> the options of a sampler and, as `run`, the label of the run that it draws from. A run that has
            such columns is compared by them alone.
        common: overrides for every run.
        jobs: runs trained at a time; None: as many as there are cores. They share the cores evenly.
        flags: of Hydra, such as --config-dir with a folder of one's own models.

    Raises:
        UserError: a wrong lecture, or none of its runs could be trained.
        Stopped: a signal ended it; the runs are saved.
    """
    check(train, sample or {}, common or [])
    asked = {label: [*(common or []), *overrides] for label, overrides in train.items()}
    have, failed = compose(asked, folder, flags or [])
    wanted: dict[Path, Job] = {}
    for job in have.values():
        if not job.done:
            wanted.setdefault(job.folder, job)  # one run, though two labels ask for it
    for job in have.values():
        if job.done:
            say(f"{job.label}: {job.folder} is there already")
    if wanted:
        wrong = train_all(list(wanted.values()), jobs, flags or [])
        failed |= {label: wrong[job.folder] for label, job in have.items() if job.folder in wrong}
    runs = {label: job.folder for label, job in have.items() if label not in failed}
    for label, why in failed.items():
        say(f"{label}: failed: {why}")
    if not runs:
        label, why = next(iter(failed.items()))
        raise UserError(f"none of the runs could be trained; {label}: {why}")
    return columns(runs, sample or {}), failed


def check(
    train: dict[str, list[str]], sample: dict[str, dict[str, Any]], common: list[str]
) -> None:
    """Refuse a lecture that names what is not its to name.

    Raises:
        UserError: says what.
    """
    if not train:
        raise UserError(
            "train: a lecture needs at least one run: label -> the overrides of `genlab train`"
        )
    for label, options in sample.items():
        run = options.get("run")
        if run not in train:
            near = did_you_mean(str(run), train)
            raise UserError(
                f"sample.{label}.run={run}: there is no such run{near}; there are {', '.join(train)}"
            )
        if label in train and run != label:
            raise UserError(f"sample.{label} has the label of another run; give it its own")
    for override in [*common, *(o for overrides in train.values() for o in overrides)]:
        key = override.partition("=")[0].lstrip("+~")
        if override.startswith("-") or key in ("out", "resume") or key.startswith("hydra"):
            raise UserError(
                f"train: {override} is not for a lecture's run: it chooses the folder itself"
            )


def columns(runs: dict[str, Path], sample: dict[str, dict[str, Any]]) -> list[Shown]:
    """Return what is compared: the columns of `sample` in place of their run, every other run as it is."""
    found = []
    for label, folder in runs.items():
        own = [
            Shown(name, folder, {k: v for k, v in options.items() if k != "run"})
            for name, options in sample.items()
            if options["run"] == label
        ]
        found += own or [Shown(label, folder)]
    return found


# --- the processes ----------------------------------------------------------------------------------------------------


def genlab(*arguments: str) -> list[str]:
    """Return a command line of genlab's, in this Python."""
    return [sys.executable, "-m", "genlab", *arguments]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def quoted(path: Path) -> str:
    """Return a path as an override's value, whatever characters it has."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def compose(
    asked: dict[str, list[str]], folder: Path, flags: list[str]
) -> tuple[dict[str, Job], dict[str, str]]:
    """Return label -> its run, named by the config that `genlab train` composes, and label -> why there is none."""
    started = {
        label: subprocess.Popen(
            genlab("train", *flags, *overrides, "--cfg", "job"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ALONE,
        )
        for label, overrides in asked.items()
    }  # fmt: skip
    found, failed, places = {}, {}, {}
    for label, process in started.items():
        out, err = process.communicate()
        if process.returncode:
            failed[label] = last_words(err)
            continue
        config = {key: value for key, value in yaml.safe_load(out).items() if key not in OWN}
        name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        digest = hashlib.sha256(yaml.safe_dump(config).encode()).hexdigest()[:10]
        where = places.setdefault(digest, existing(folder, digest) or folder / f"{name}-{digest}")
        found[label] = Job(label, asked[label], where, config["trainer"]["steps"])
    return found, failed


def existing(folder: Path, digest: str) -> Path | None:
    """Return the folder of a run with this config, whatever label it was trained for."""
    return next(iter(sorted(folder.glob(f"*-{digest}"))), None)


def train_all(wanted: list[Job], jobs: int | None, flags: list[str]) -> dict[Path, str]:
    """Train runs, `jobs` at a time; return folder -> what went wrong."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    jobs = min(jobs or cores, len(wanted))
    threads = (
        {"OMP_NUM_THREADS": str(max(1, cores // jobs))} | os.environ | ALONE
    )  # the user's own threads win
    waiting, failed = list(wanted), {}
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    with Signals() as signals:
        try:
            while (waiting or running) and not signals.name:
                while waiting and len(running) < jobs:
                    job = waiting.pop(0)
                    verb = "goes on" if (job.folder / "run.json").exists() else "trains"
                    say(
                        f"{job.label}: {verb} ({len(wanted) - len(waiting)} of {len(wanted)}): {job.folder}"
                    )
                    job.folder.mkdir(parents=True, exist_ok=True)
                    with open(job.folder / "train.log", "a") as log:
                        process = subprocess.Popen(
                            job.command(flags), stdout=log, stderr=log, env=threads
                        )
                    running[process] = job, time.monotonic()
                time.sleep(0.1)
                for process in [p for p in running if p.poll() is not None]:
                    job, began = running.pop(process)
                    if process.returncode:
                        failed[job.folder] = last_words((job.folder / "train.log").read_text())
                    else:
                        say(f"{job.label}: trained in {time.monotonic() - began:.0f} s")
        finally:  # they save themselves
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        if signals.name:
            raise Stopped(
                f"{signals.name}: the lecture's runs are saved; the same command goes on",
                signals.name,
            )
    return failed


def last_words(text: str) -> str:
    """Return the line in which a process said what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.removeprefix("genlab: ") for line in lines if line.startswith("genlab: ")]
    return (own or lines or ["it said nothing"])[-1]
