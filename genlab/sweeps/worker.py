"""Workers: processes that do a sweep's jobs one after the other, until none is left.

Any number of them may work on one folder, on any machines that share it: `genlab sweep work`, and
the tasks of a SLURM array that `hydra/launcher=slurm` submits. A worker claims a job by a lease,
runs it in a separate process, and takes over the jobs of workers that are gone.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence

from genlab.errors import UserError
from genlab.signals import SignalCatcher
from genlab.sweeps.job_monitor import JobMonitor, MonitoredJob, print_status
from genlab.sweeps.job_state import Job
from genlab.sweeps.launches import Launch
from genlab.sweeps.local_backend import LocalBackend

TIME_LIMIT = "time limit"
SAVE_MARGIN_S = 120.0  # before the end of a SLURM job: enough for a step and a checkpoint
QUERY_TIMEOUT_S = 30.0
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Worker(JobMonitor):
    """The loop of a worker.

    It ends when no job is left that it could claim, and it has seen that the others are at work.

    Args:
        deadline: the time, of time.monotonic(), at which the jobs save and the worker ends.
    """

    backend: LocalBackend

    def __init__(
        self,
        jobs: Sequence[Job],
        backend: LocalBackend,
        names: dict[int, str],
        launch: Launch,
        *,
        deadline: float | None = None,
    ) -> None:
        self.deadline = deadline
        self.num_ended = 0
        super().__init__(jobs, backend, names, launch)

    def add_job(self, job: MonitoredJob) -> None:
        """Add a job that is not finished to those that wait or run elsewhere."""
        if job.state.status == "done" or job.is_finished or not job.may_restart():
            return
        is_running = job.state.status == "running"
        (self.running if is_running else self.waiting)[job.job.number] = job

    def is_own(self, job: MonitoredJob) -> bool:
        """Whether this worker runs the job."""
        return job.job.number in self.backend.slot_of

    def is_work_left(self) -> bool:
        """Whether this worker runs jobs, could claim some, or may have to take some over."""
        if self.waiting or self.backend.slot_of:
            return True
        watch = self.queue_poll.watch
        return any(not watch.is_confirmed_alive(job.job.folder) for job in self.running.values())

    def reason_to_stop(self, signals: SignalCatcher) -> str | None:
        """Return the name of the first signal, TIME_LIMIT, or None to continue."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            return TIME_LIMIT
        return super().reason_to_stop(signals)

    def report_interruption(self, reason: str, report: str) -> None:
        """Say that the time or a signal has ended this.

        Raises:
            TrainingInterrupted: it was a signal.
        """
        if reason != TIME_LIMIT:
            super().report_interruption(reason, report)
        print_status(f"{reason}: {report}; another worker resumes them")

    def refresh_running_jobs(self) -> None:
        """Read what the running jobs have written; report the starts of the own ones."""
        for job in self.running.values():
            job.refresh_state()
            if self.is_own(job):
                job.report_start()

    def report_outcome(self, job: MonitoredJob, outcome: str) -> None:
        """Print how a job of this worker has ended."""
        if job.starts:
            self.num_ended += 1
            super().report_outcome(job, outcome)


def parse_duration_s(text: str) -> float:
    """Return a duration such as 90m, 3.5h, 2d, 600s or 600 in seconds.

    Raises:
        UserError: it is not one.
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS_S else (text, "s")
    try:
        seconds = float(number) * UNITS_S[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"until={text}: give a duration from now on, such as 90m, 3.5h or 2d")
    return seconds


def seconds_until_slurm_limit(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds until a worker in a SLURM job must save; None without a limit."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return None
    end = environment.get("SLURM_JOB_END_TIME", "")
    if not end.isdigit():
        command = ["squeue", "--noheader", f"--jobs={job}", "--format=%e"]
        try:
            result = subprocess.run(
                command, capture_output=True, timeout=QUERY_TIMEOUT_S, check=False
            )
            end_time = time.strptime(result.stdout.decode().strip(), "%Y-%m-%dT%H:%M:%S")
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return None
        end = str(int(time.mktime(end_time)))
    return max(1.0, int(end) - time.time() - SAVE_MARGIN_S)
