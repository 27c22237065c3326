"""Run a sweep's jobs on a SLURM cluster, by workers that submitit submits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.sweeps import squeue
from genlab.sweeps.job_monitor import print_status
from genlab.sweeps.job_state import Job, record_submission, submitted_job_id

MAX_ARRAY_JOBS = 1000  # clusters accept at most 1,001 by default
# Between two attempts to submit more, while a limit of the cluster is reached.
RETRY_INTERVAL_S = (5.0, 120.0)
# SLURM's messages when it would accept the jobs later, or fewer of them now.
LIMIT_REACHED = re.compile(
    r"SubmitJob|GrpSubmit|MaxJobCount|job submit limit|slurm temporarily unable|"
    r"temporarily unavailable|too many|try again|queue (is )?full|Job/step already completing",
    re.I,
)
# Likewise if it does not answer.
NO_ANSWER = re.compile(
    r"unable to contact|socket timed out|connection (refused|timed)|zero bytes", re.I
)
# The option to change, by what SLURM says when it refuses jobs for good.
OPTIONS_OF_REFUSALS = {
    r"memory|mem-per": "hydra.launcher.mem_gb",
    r"account": "hydra.launcher.account (or partition)",
    r"partition": "hydra.launcher.partition",
    r"qos": "hydra.launcher.qos",
    r"time ?limit|wall ?(clock|time)|MaxWall|--time": "hydra.launcher.timeout_min",
    r"gres|gpu|generic resource": "hydra.launcher.gpus_per_node (null on a cluster without GPUs)",
    r"feature|constraint": "hydra.launcher.constraint",
    r"node name|exclude": "hydra.launcher.exclude",
    r"processors|cpu|tasks|node configuration|node count": (
        "hydra.launcher.cpus_per_task, gpus_per_node or nodes"
    ),
    r"unrecognized option|invalid option": "hydra.launcher.additional_parameters",
}


class SlurmBackend:
    """A SLURM cluster. Each job gets a worker, as far as the cluster accepts them.

    A worker does other jobs that wait after its own, so that a few workers do any number of jobs.

    Args:
        submitit_folder: where submitit keeps pickles and logs, with %j for the job's id.
        submit: submits workers by an executor of submitit, and returns submitit's jobs.
        params: options of sbatch.
    """

    def __init__(
        self,
        submitit_folder: Path,
        submit: Callable[[Any, Sequence[Job]], list[Any]],
        params: dict[str, Any],
    ) -> None:
        self.submitit_folder, self.submit, self.params = submitit_folder, submit, params
        self.retry_at, self.retry_interval_s = 0.0, RETRY_INTERVAL_S[0]
        self.is_limit_reported = False
        self.arrays: set[str] = set()  # ids of what was submitted

    @cached_property
    def max_array_jobs(self) -> int:
        """How many workers one array may have."""
        return min(MAX_ARRAY_JOBS, squeue.query_max_array_size() or MAX_ARRAY_JOBS)

    @cached_property
    def max_submitted_jobs(self) -> int | None:
        """How many jobs the user may have in the queue; None if SLURM does not say it."""
        return squeue.query_max_submitted_jobs(self.params.get("qos"))

    @property
    def num_tasks(self) -> int:
        """Processes of a job; those of several processes do not take further jobs."""
        return int(self.params.get("nodes") or 1) * int(self.params.get("tasks_per_node") or 1)

    def max_new_jobs(self, running: int) -> int:
        """Return how many workers may be submitted now."""
        if time.monotonic() < self.retry_at:
            return 0
        parallel = self.params.get("array_parallelism")
        room = self.max_array_jobs
        if self.num_tasks == 1 and isinstance(parallel, int):
            room = min(room, max(0, parallel - running))
        limit = self.max_submitted_jobs
        if room and limit is not None:
            room = min(room, max(0, limit - squeue.count_own_jobs()))
            if not room:
                self.wait_for_limit(f"you have {limit:,} jobs in the queue, the most it accepts")
        return room

    def wait_for_limit(self, reason: str) -> None:
        """Note that no more is accepted now; say it the first time."""
        self.retry_at = time.monotonic() + self.retry_interval_s
        self.retry_interval_s = min(RETRY_INTERVAL_S[1], 2 * self.retry_interval_s)
        if not self.is_limit_reported:
            self.is_limit_reported = True
            print_status(
                f"SLURM accepts no more jobs for now ({reason}); the others wait here, and the "
                "workers that run do them too"
            )

    def start(self, jobs: Sequence[Job]) -> list[Job]:
        """Submit a worker for each job, as one array; return the jobs whose worker was accepted.

        Raises:
            UserError: SLURM refuses them for good.
        """
        accepted = list(jobs)
        while True:
            try:
                self.submit_array(accepted)
            except SlurmRefusalError as error:
                if error.is_limit and len(accepted) > 1:  # fewer may fit
                    accepted = accepted[: len(accepted) // 2]
                    continue
                # SLURM's sentence for a limit of jobs also names the size and the time of a job.
                # Without jobs in the queue it cannot be the number of jobs.
                if not error.is_silent and not (error.is_limit and squeue.count_own_jobs()):
                    raise
                self.wait_for_limit(error.reason)
                return []
            self.retry_interval_s = RETRY_INTERVAL_S[0]
            if len(accepted) < len(jobs):
                self.wait_for_limit(f"{len(accepted)} of {len(jobs)} fit")
            return accepted

    def submit_array(self, jobs: Sequence[Job]) -> None:
        """Submit workers as one array.

        Raises:
            SlurmRefusalError: SLURM refuses them.
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
            raise SlurmRefusalError(error) from error
        for job, submitted_job in zip(jobs, submitted, strict=True):
            record_submission(job.folder, submitted_job.job_id)
        first_id = submitted[0].job_id
        self.arrays.add(first_id.partition("_")[0])
        if len(jobs) > 1:
            print_status(f"submitted {len(jobs)} jobs to SLURM, the first as {first_id}")
        else:
            print_status(f"submitted a job to SLURM as {first_id}")

    def has_ended(self, job: Job) -> bool | None:
        """Return None: the jobs are not processes of this one."""
        return None

    def wait(self, seconds: float) -> None:
        """Wait for this time."""
        time.sleep(seconds)

    def finish(self) -> None:
        """Cancel the workers that are still in the queue when all jobs have ended."""
        if self.arrays:
            squeue.run_query(["scancel", "--state=PENDING", *sorted(self.arrays)])

    def kill(self) -> None:
        """Do nothing: no process of this machine belongs to the jobs."""

    def interrupt(self, jobs: Sequence[Job], signal_name: str) -> str:
        """Leave the jobs in the queue; return how to cancel them."""
        arrays = sorted({submitted_job_id(job.folder).partition("_")[0] for job in jobs} - {""})
        return f"SLURM continues {len(jobs)} jobs; `scancel {' '.join(arrays)}` would cancel them"


class SlurmRefusalError(UserError):
    """SLURM refused jobs.

    Args:
        error: what submitit raised, with the output of sbatch.
    """

    def __init__(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reasons = [line for line in lines if line.startswith("sbatch: ")] or lines[:1]
        self.reason = " ".join(reasons)
        self.is_silent = NO_ANSWER.search(self.reason) is not None
        self.is_limit = LIMIT_REACHED.search(self.reason) is not None
        super().__init__(f"SLURM refuses the jobs: {self.reason}{option_to_change(self.reason)}")


def option_to_change(reason: str) -> str:
    """Return "; set …" with the option that SLURM's refusal is about, or "" if unknown."""
    if LIMIT_REACHED.search(reason):
        return "; set hydra.launcher.timeout_min, nodes or qos to what your account may use"
    for pattern, option in OPTIONS_OF_REFUSALS.items():
        if re.search(pattern, reason, re.I):
            return f"; set {option}"
    return ""
