"""A sweep's folder: plan.json, and a run folder with a state.json for each job."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.config.override_keys import non_runtime_overrides, quote_override_value
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.runs.migrations import FORMAT, migrate_overrides
from genlab.sweeps import plan_trust
from genlab.sweeps.file_locks import hold_file_lock
from genlab.sweeps.job_state import Job
from genlab.untrusted.files import read_json, refuse_links_and_special_files

# Links that submitit and optuna make. They point elsewhere once the sweep is moved, but genlab
# neither reads nor writes through them.
ALLOWED_LINKS = re.compile(r"\.submitit/[^/]*\.pkl|study\.journal\.lock")


class SweepFolder:
    """A sweep's plan and its jobs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, where: str | Path) -> SweepFolder:
        """Return the sweep in a folder.

        Raises:
            UserError: the folder is not a sweep, or it has a link that points out of it.
        """
        sweep = cls(Path(where))
        if not (sweep.path / "plan.json").exists():
            raise UserError(
                f"{where} is not a sweep: it has no plan.json; "
                "give a folder that `genlab train -m` made"
            )
        sweep.refuse_links()
        return sweep

    def refuse_links(self) -> None:
        """Refuse a sweep with a link out of it: an untrusted sweep could reach other files by it.

        Raises:
            UserError: names the link.
        """
        refuse_links_and_special_files(self.path, "sweep", ALLOWED_LINKS)

    def read_stored_plan(self) -> dict[str, Any]:
        """Return plan.json as it was written.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / "plan.json"
        return plan_trust.check_plan_schema(read_json(path), path)

    def read_plan(self) -> dict[str, Any]:
        """Return the plan: command, working directory, sweeper, and each job's overrides.

        Overrides of an older format have the present names.

        Raises:
            UserError: plan.json is damaged.
        """
        plan = self.read_stored_plan()
        version = plan.get("format", 1)
        jobs = [migrate_overrides(overrides, version) for overrides in plan["jobs"]]
        return plan | {"command": migrate_overrides(plan["command"], version), "jobs": jobs}

    @property
    def dir_override(self) -> str:
        """The override that selects this folder."""
        return f"hydra.sweep.dir={quote_override_value(self.path.resolve())}"

    def jobs(self) -> list[Job]:
        """Return the planned jobs, by number."""
        return [
            Job(number, tuple(overrides), self.path / str(number))
            for number, overrides in enumerate(self.read_plan()["jobs"])
        ]

    def add_jobs(
        self,
        command: Sequence[str],
        first: int,
        overrides: Sequence[Sequence[str]],
        *,
        sweeper: str = "basic",
    ) -> list[Job]:
        """Add the jobs from number `first` on to the plan, and return them.

        Jobs that are planned already stay. The plan keeps the newest command.

        Raises:
            UserError: the folder holds another sweep, in which a number means something else.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with hold_file_lock(self.path / ".plan.lock"):
            planned = self.refuse_other_jobs(first, overrides)
            jobs = [*planned[:first], *map(list, overrides), *planned[first + len(overrides) :]]
            plan = {
                "format": FORMAT,
                "command": list(command),
                "cwd": os.getcwd(),
                "sweeper": sweeper,
                "jobs": jobs,
            }
            atomic_write(self.path / "plan.json", json.dumps(plan, indent=2).encode())
            plan_trust.remember_trusted_plan(plan)
        return self.jobs()[first : first + len(overrides)]

    def refuse_other_jobs(self, first: int, overrides: Sequence[Sequence[str]]) -> list[list[str]]:
        """Refuse jobs that are not those of the plan; return the jobs that are planned already.

        Args:
            first: the number of the first job.
            overrides: of each job.

        Raises:
            UserError: the folder holds another sweep.
        """
        planned: list[list[str]] = []
        if (self.path / "plan.json").exists():
            planned = self.read_plan()["jobs"]
        for number, wanted in enumerate(overrides, first):
            if number >= len(planned):
                break
            if non_runtime_overrides(planned[number]) != non_runtime_overrides(wanted):
                raise UserError(
                    f"{self.path} holds another sweep: "
                    f"its job {number} is {' '.join(planned[number])}, "
                    f"and here it would be {' '.join(wanted)}; give another hydra.sweep.dir="
                )
        return planned


def distinguishing_overrides(jobs: Sequence[Job]) -> list[list[str]]:
    """Return for each job the overrides that not all jobs share.

    A single job keeps all overrides that say what is trained.
    """
    shared: set[str] = set()
    if len(jobs) > 1:
        shared = set.intersection(*(set(job.overrides) for job in jobs))
    return [[o for o in non_runtime_overrides(job.overrides) if o not in shared] for job in jobs]
