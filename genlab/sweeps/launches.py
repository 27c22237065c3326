"""Launches: what a command asks of a sweep, for the workers that it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.sweeps.job_state import Job, JobState
from genlab.sweeps.leases import WORKERS_FOLDER
from genlab.untrusted.files import read_json

LAUNCH_FILE = "launch.json"  # in WORKERS_FOLDER
DEFAULT_TRIES = 3


class JobCounts(NamedTuple):
    """How often a job was started, and lost without a message."""

    starts: int
    losses: int


@dataclass(frozen=True)
class Launch:
    """The jobs that a command runs, and how often each may start.

    Attributes:
        tries: the maximum number of starts of a job that is lost or stopped.
        before: the counts of the jobs when the command was given, by number. What a job's state
            said then, such as that it has failed, does not count any more.
    """

    tries: int = DEFAULT_TRIES
    before: dict[int, JobCounts] = field(default_factory=dict)

    @classmethod
    def of_jobs(cls, tries: int, jobs: Sequence[Job], states: Sequence[JobState]) -> Launch:
        """Return the launch of jobs in their present states."""
        counts = {
            job.number: JobCounts(state.starts - (state.status == "running"), state.losses)
            for job, state in zip(jobs, states, strict=True)
        }
        return cls(tries, counts)

    @classmethod
    def read(cls, sweep: Path) -> Launch:
        """Return the last launch of a sweep; the default if there was none.

        Raises:
            UserError: its file is damaged.
        """
        path = sweep / WORKERS_FOLDER / LAUNCH_FILE
        if not path.exists():
            return cls()
        content = read_json(path)
        try:
            before = {int(n): JobCounts(*map(int, pair)) for n, pair in content["jobs"].items()}
            return cls(int(content["tries"]), before)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is unreadable: {error}; delete it") from error

    def write(self, sweep: Path) -> None:
        """Write the launch to a sweep's folder, for workers on any machine."""
        path = sweep / WORKERS_FOLDER / LAUNCH_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"tries": self.tries, "jobs": self.before}
        atomic_write(path, json.dumps(content).encode())
