"""Run a sweep's jobs on a SLURM cluster, submitted by submitit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.sweeps.job_monitor import print_status
from genlab.sweeps.job_state import Job, record_submission, submitted_job_id

MAX_ARRAY_JOBS = 1000  # clusters accept at most 1,001 by default


class SlurmBackend:
    """A SLURM cluster. Its queue starts the jobs.

    Args:
        submitit_folder: where submitit keeps pickles and logs, with %j for the job's id.
        submit: submits jobs by an executor of submitit, and returns submitit's jobs.
        params: options of sbatch.
    """

    def __init__(
        self,
        submitit_folder: Path,
        submit: Callable[[Any, Sequence[Job]], list[Any]],
        params: dict[str, Any],
    ) -> None:
        self.submitit_folder, self.submit, self.params = submitit_folder, submit, params

    def max_new_jobs(self, running: int) -> int:
        """Return how many jobs one array may have: the queue takes any number of arrays."""
        return MAX_ARRAY_JOBS

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as one array.

        Raises:
            UserError: SLURM refuses them.
        """
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        try:
            executor = AutoExecutor(
                self.submitit_folder, "slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
            )
            common = executor._typed_parameters()
            options = {key: value for key, value in self.params.items() if key != "max_num_timeout"}
            executor.update_parameters(
                **{key if key in common else f"slurm_{key}": v for key, v in options.items()}
            )
            submitted = self.submit(executor, jobs)
        # submitit raises any of these for a wrong option.
        except (AssertionError, RuntimeError, ValueError, FailedJobError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reasons = [line for line in lines if line.startswith("sbatch: ")] or lines[:1]
            raise UserError(f"SLURM refuses the jobs: {' '.join(reasons)}") from error
        for job, submitted_job in zip(jobs, submitted, strict=True):
            record_submission(job.folder, submitted_job.job_id)
        first_id = submitted[0].job_id
        if len(jobs) > 1:
            print_status(f"submitted {len(jobs)} jobs to SLURM, the first as {first_id}")
        else:
            print_status(f"submitted a job to SLURM as {first_id}")

    def has_ended(self, job: Job) -> bool | None:
        """Return None: the jobs are not processes of this one."""
        return None

    def interrupt(self, jobs: Sequence[Job]) -> str:
        """Leave the jobs in the queue; return how to cancel them."""
        arrays = sorted({submitted_job_id(job.folder).partition("_")[0] for job in jobs} - {""})
        return f"SLURM continues {len(jobs)} jobs; `scancel {' '.join(arrays)}` would cancel them"
