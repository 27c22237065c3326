"""Run a sweep's jobs on any backend: start them, watch them, restart lost ones, report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from genlab.console import Progress, format_duration_as_h_mm_ss, print_above_progress
from genlab.errors import UserError, make_printable
from genlab.runs.run_folder import RunFolder
from genlab.signals import SignalCatcher, TrainingInterrupted
from genlab.sweeps.file_locks import is_job_locked, is_lock_conclusive
from genlab.sweeps.job_state import (
    Job,
    JobState,
    current_state,
    is_in_slurm_queue,
    query_slurm_queue,
    read_log_tail,
    read_state,
    submitted_job_id,
)
from genlab.sweeps.sweep_folder import distinguishing_overrides

# The shortest and the longest time between two looks at the jobs' folders. The time grows while
# nothing happens.
POLL_INTERVAL_S = (0.05, 1.0)
# Likewise between two queries to a scheduler, which other users need too.
QUEUE_POLL_INTERVAL_S = (2.0, 30.0)
MAX_SHOWN_JOBS = 2  # running jobs whose step is shown
MAX_NAME_LENGTH = 40  # characters of a job's name in the progress
LOG_TAIL_BYTES = 4096  # of a log, which have its last lines
# After this time a notice reports jobs that only another machine could see running.
UNSEEN_JOB_NOTICE_S = 60.0


class Backend(Protocol):
    """The place where jobs run."""

    def max_new_jobs(self, running: int) -> int:
        """Return how many jobs may start beside those that run or are queued."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs.

        Raises:
            UserError: the backend refuses them.
        """

    def has_ended(self, job: Job) -> bool | None:
        """Whether a job's process has ended; None if this backend did not start it."""

    def interrupt(self, jobs: Sequence[Job]) -> str:
        """Handle the jobs when the launcher is asked to end; return a report."""


def run_jobs(jobs: Sequence[Job], backend: Backend, *, names: dict[int, str], tries: int) -> None:
    """Run jobs that are not done, and wait until all have ended, also if some fail.

    A job that was lost or stopped starts again and resumes from its checkpoint, up to `tries`
    starts in all. A failed job would fail again, so it does not. A job that an earlier launcher
    left running or queued is waited for.

    Args:
        names: the name of each job in messages, by number.
        tries: the maximum number of starts of a job.

    Raises:
        UserError: the backend refuses the jobs.
        TrainingInterrupted: a signal ended the wait.
    """
    JobMonitor(jobs, backend, names, tries).run_all()


class JobMonitor:
    """The loop that starts jobs and waits for them; see `run_jobs`."""

    def __init__(
        self, jobs: Sequence[Job], backend: Backend, names: dict[int, str], tries: int
    ) -> None:
        self.backend, self.tries = backend, tries
        self.queue_poll = QueuePoll()
        self.pause_s, self.began = POLL_INTERVAL_S[0], time.monotonic()
        queue = query_slurm_queue(jobs)
        monitored = [MonitoredJob(job, names[job.number], queue) for job in jobs]
        self.waiting = [job for job in monitored if not job.was_running]
        self.running = [job for job in monitored if job.was_running]
        for job in self.running:
            print_status(f"{job.name}: started earlier, still running")

    def run_all(self) -> None:
        """Run until all jobs have ended or a signal comes."""
        total = len(self.waiting) + len(self.running)
        with SignalCatcher() as signals, Progress("jobs", total, unit="done") as progress:
            while (self.waiting or self.running) and not signals.first_signal_name:
                self.start_waiting_jobs()
                time.sleep(self.pause_s)
                self.pause_s = min(POLL_INTERVAL_S[1], self.pause_s * 1.2)
                for job in self.running:
                    job.refresh_state()
                    if time.monotonic() - self.began > UNSEEN_JOB_NOTICE_S:
                        job.report_if_unseen()
                for job in self.find_ended_jobs():
                    self.report_or_requeue_job(job)
                ended = total - len(self.waiting) - len(self.running)
                progress.update(ended - progress.done)
                progress.note = describe_running_jobs(self.running)
            if signals.first_signal_name:
                report = self.backend.interrupt([job.job for job in self.running])
                raise TrainingInterrupted(
                    f"{signals.first_signal_name}: {report}; run the same command again to resume",
                    signals.first_signal_name,
                )

    def start_waiting_jobs(self) -> None:
        """Start as many waiting jobs as the backend has room for.

        Raises:
            UserError: the backend refuses the jobs, and no other job runs.
        """
        room = self.backend.max_new_jobs(len(self.running)) if self.waiting else 0
        starting, self.waiting = self.waiting[:room], self.waiting[room:]
        if not starting:
            return
        self.pause_s, self.queue_poll = POLL_INTERVAL_S[0], QueuePoll()
        for job in starting:
            job.record_start()
        try:
            self.backend.start([job.job for job in starting])
            self.running += starting
        except UserError as error:
            if not self.running:
                raise
            print_status(f"{', '.join(job.name for job in starting)}: not started again: {error}")

    def find_ended_jobs(self) -> list[MonitoredJob]:
        """Return the running jobs that have ended, by their process, their state or the queue."""
        ended, unknown = [], []
        for job in self.running:
            process_ended = self.backend.has_ended(job.job)
            if process_ended or (process_ended is None and job.is_finished):
                ended.append(job)
            elif process_ended is None:
                unknown.append(job)
        return ended + self.queue_poll.find_gone_jobs(unknown)

    def report_or_requeue_job(self, job: MonitoredJob) -> None:
        """Report a job that has ended, and put it back to the waiting jobs if it may resume."""
        self.running.remove(job)
        self.pause_s = POLL_INTERVAL_S[0]
        job.refresh_state()  # it may have written a last state
        slurm_state = (self.queue_poll.queue or {}).get(submitted_job_id(job.job.folder), "")
        # A cancelled job is not wanted, unless it was cancelled before this command was given.
        cancelled = slurm_state == "CANCELLED" and not job.was_completing
        restarts = not job.is_finished and job.starts < self.tries and not cancelled
        suffix = "; restarting it" if restarts else ""
        print_status(f"{job.name}: {job.describe_outcome(slurm_state)}{suffix}")
        if restarts:
            self.waiting.append(job)


class MonitoredJob:
    """A job that is waited for: how often it was started, and the state of its last start."""

    def __init__(self, job: Job, name: str, queue: dict[str, str] | None) -> None:
        self.job, self.name = job, name
        self.starts = 0  # by this command
        self.state = JobState()
        state = current_state(job, queue)
        self.was_running = state.status == "running" or is_in_slurm_queue(state)
        self.was_completing = (queue or {}).get(submitted_job_id(job.folder)) == "COMPLETING"
        # A state that was there before a start says nothing about that start. The job's own count
        # of its starts tells the two apart.
        self.starts_before = state.starts - (state.status == "running")
        self.is_start_reported = self.is_unseen_reported = False

    def record_start(self) -> None:
        """Note what the job's folder holds before a start."""
        self.starts += 1
        self.starts_before = read_state(self.job.folder).starts
        self.is_start_reported = self.was_completing = False

    def refresh_state(self) -> None:
        """Read the job's state, and report when it starts."""
        self.state = read_state(self.job.folder)
        if self.state.status == "running" and self.has_written_state and not self.is_start_reported:
            self.is_start_reported = True
            slurm_id = f" as {self.state.slurm}" if self.state.slurm else ""
            print_status(f"{self.name}: running on {self.state.host}{slurm_id}")

    def report_if_unseen(self) -> None:
        """Report once if the job may run on a machine that this one cannot see."""
        folder, state = self.job.folder, self.state
        is_unseen = (
            state.status == "running"
            and not state.slurm
            and not is_lock_conclusive(folder, state.host)
            and not is_job_locked(folder)
        )
        if not is_unseen or not self.was_running or self.is_unseen_reported:
            return
        self.is_unseen_reported = True
        print_status(
            f"{self.name}: waiting for process {state.pid} on {state.host}, which cannot be seen "
            f"from here; if it is gone, delete {folder / 'state.json'} to start the job again"
        )

    @property
    def has_written_state(self) -> bool:
        """Whether the state is of the last start."""
        return self.state.starts > self.starts_before

    @property
    def is_finished(self) -> bool:
        """Whether the last start ended for good."""
        return self.has_written_state and self.state.status in ("done", "failed")

    def describe_outcome(self, slurm_state: str) -> str:
        """Return in one line how the job ended.

        Args:
            slurm_state: SLURM's word for it, such as OUT_OF_MEMORY; "" if unknown.
        """
        if self.is_finished or (
            self.has_written_state and self.state.status in ("stopped", "lost")
        ):
            last = self.state.error.splitlines()[-1:]
            return self.state.status + (f": {last[0].strip()}" if last else "")
        last = read_log_tail(self.job)[-1:]
        lost = "lost: its process is gone" + (f" ({slurm_state})" if slurm_state else "")
        return lost + (f"; its last output: {last[0].strip()}" if last else "")


def describe_running_jobs(jobs: Sequence[MonitoredJob]) -> str:
    """Return the last logged step of the jobs that have waited longest, and their time left."""
    texts = []
    for job in jobs[:MAX_SHOWN_JOBS]:
        record = last_log_record(job.job.folder)
        if "seconds_left" in record:
            left = format_duration_as_h_mm_ss(float(record["seconds_left"]))
            texts.append(f"{shorten(job.name)} step {record['step']:,}, {left} left")
        else:
            texts.append(f"{shorten(job.name)} starting")
    hidden = len(jobs) - len(texts)
    return "; ".join(texts) + (f"; {hidden} others running" if hidden > 0 else "")


def shorten(name: str) -> str:
    """Return a job's name, cut so that a line has room for several."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"


def last_log_record(folder: Path) -> dict[str, Any]:
    """Return the last line of a run's log with losses, of those that were written last; or {}."""
    try:
        with open(RunFolder(folder).stats, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "seconds_left" in record:
                return record
    return {}


class QueuePoll:
    """Find jobs that are gone and whose process this machine cannot see, by querying SLURM.

    It queries the more rarely, the longer nothing happens.
    """

    def __init__(self) -> None:
        self.queried_at, self.interval_s = time.monotonic(), QUEUE_POLL_INTERVAL_S[0]
        self.missing: set[int] = set()
        self.queue: dict[str, str] | None = None

    def find_gone_jobs(self, jobs: Sequence[MonitoredJob]) -> list[MonitoredJob]:
        """Return the jobs that were gone in the last two queries.

        After a single one, the job's folder may not show yet what it wrote a moment ago.
        """
        if not jobs or time.monotonic() - self.queried_at < self.interval_s:
            return []
        self.queue = query_slurm_queue([job.job for job in jobs])
        self.queried_at = time.monotonic()
        self.interval_s = min(QUEUE_POLL_INTERVAL_S[1], self.interval_s * 1.5)
        if self.queue is None:  # no answer: it may be the scheduler that is gone
            return []
        missing = []
        for job in jobs:
            state = current_state(job.job, self.queue)
            if not (state.status == "running" or is_in_slurm_queue(state)):
                missing.append(job)
        gone = [job for job in missing if job.job.number in self.missing]
        self.missing = {job.job.number for job in missing}
        if self.missing:
            self.interval_s = QUEUE_POLL_INTERVAL_S[0]
        return gone


def job_display_names(jobs: Sequence[Job]) -> dict[int, str]:
    """Return number -> name in messages: the number, and the distinguishing overrides."""
    return {
        job.number: " ".join([f"job {job.number}", *overrides])
        for job, overrides in zip(jobs, distinguishing_overrides(jobs), strict=True)
    }


def print_status(line: str) -> None:
    """Print a line on stderr, without control characters of errors and logs."""
    print_above_progress(make_printable(line))
