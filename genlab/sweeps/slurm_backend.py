"""Jobs on a SLURM cluster, handed to it by submitit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.sweeps import sweep_folder
from genlab.sweeps.job_monitor import say
from genlab.sweeps.sweep_folder import Job

ARRAY = 1000  # jobs in one array: clusters take no more than 1,001 unless told to


class Cluster:
    """A SLURM cluster, which has a queue."""

    def __init__(
        self, kept: Path, submit: Callable[[Any, Sequence[Job]], list[Any]], params: dict[str, Any]
    ) -> None:
        self.kept, self.submit, self.params = kept, submit, params

    def room(self, running: int) -> int:
        return ARRAY

    def start(self, jobs: Sequence[Job]) -> None:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        try:
            array = AutoExecutor(
                self.kept, "slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
            )
            common = array._typed_parameters()
            options = {key: value for key, value in self.params.items() if key != "max_num_timeout"}
            array.update_parameters(
                **{key if key in common else f"slurm_{key}": v for key, v in options.items()}
            )
            submitted = self.submit(array, jobs)
        except (
            AssertionError,
            RuntimeError,
            ValueError,
            FailedJobError,
        ) as error:  # all that submitit raises of options
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = [line for line in lines if line.startswith("sbatch: ")] or lines[:1]
            raise UserError(f"SLURM does not take the jobs: {' '.join(said)}") from error
        for job, its in zip(jobs, submitted, strict=True):
            sweep_folder.note_submitted(job.folder, its.job_id)
        say(f"{len(jobs)} jobs handed to SLURM, from {submitted[0].job_id} on" if len(jobs) > 1 else
            f"a job handed to SLURM as {submitted[0].job_id}")  # fmt: skip

    def ended(self, job: Job) -> bool | None:
        return None

    def interrupt(self, jobs: Sequence[Job]) -> str:
        arrays = sorted(
            {sweep_folder.submitted(job.folder).partition("_")[0] for job in jobs} - {""}
        )
        return f"SLURM goes on with {len(jobs)} jobs, which `scancel {' '.join(arrays)}` would end"
