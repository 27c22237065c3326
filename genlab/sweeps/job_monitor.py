"""Run a sweep's jobs on any backend: start them, watch them, restart lost ones, report."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from genlab.console import Progress, format_duration_as_h_mm_ss, print_above_progress
from genlab.errors import UserError, make_printable
from genlab.runs.run_folder import RunFolder
from genlab.signals import SignalCatcher, TrainingInterrupted
from genlab.sweeps.file_locks import is_job_locked, is_lock_conclusive
from genlab.sweeps.job_state import (
    Job,
    current_state,
    is_in_slurm_queue,
    query_slurm_queue,
    read_log_tail,
    read_state,
    submitted_job_id,
    write_state,
)
from genlab.sweeps.launches import JobCounts, Launch
from genlab.sweeps.leases import (
    CANCELLED,
    Journal,
    LeaseWatch,
    claim_job,
    read_newest_lease,
    worker_file,
)
from genlab.sweeps.sweep_folder import distinguishing_overrides
from genlab.untrusted.files import open_regular_file

# The shortest and the longest time between two looks at the jobs' folders. The time grows while
# nothing happens.
POLL_INTERVAL_S = (0.05, 1.0)
# Likewise between two queries to a scheduler, which other users need too.
QUEUE_POLL_INTERVAL_S = (2.0, 30.0)
MAX_SHOWN_JOBS = 2  # running jobs whose step is shown
MAX_NAME_LENGTH = 40  # characters of a job's name in the progress
LOG_TAIL_BYTES = 4096  # of a log, which have its last lines
OUT_OF_MEMORY = re.compile(r"exceeded .*memory|out[- ]of[- ]memory|oom[-_ ]kill", re.I)
# After this time a notice reports jobs that only another machine could see running.
UNSEEN_JOB_NOTICE_S = 60.0


class Backend(Protocol):
    """The place where jobs run."""

    def max_new_jobs(self, running: int) -> int:
        """Return how many jobs may start beside those that run or are queued."""

    def start(self, jobs: Sequence[Job]) -> list[Job]:
        """Start jobs; return those that were started, the others stay as they are.

        Raises:
            UserError: the backend refuses them for good.
        """

    def has_ended(self, job: Job) -> bool | None:
        """Whether a job's process has ended; None if this backend did not start it."""

    def wait(self, seconds: float) -> None:
        """Wait for this time, or until a process that this backend started has ended."""

    def finish(self) -> None:
        """Clean up when all jobs have ended."""

    def interrupt(self, jobs: Sequence[Job], signal_name: str) -> str:
        """Handle the jobs when this process is asked to end; return a report."""

    def kill(self) -> None:
        """End the processes that this backend started on this machine, at once."""


def run_jobs(
    jobs: Sequence[Job], backend: Backend, *, names: dict[int, str], launch: Launch
) -> None:
    """Run jobs that are not done, and wait until all have ended, also if some fail.

    A job that was lost or stopped starts again and resumes from its checkpoint, up to
    `launch.tries` starts in all. A failed job would fail again, so it does not. A job that another
    process does is waited for.

    Args:
        names: the name of each job in messages, by number.

    Raises:
        UserError: the backend refuses the jobs.
        TrainingInterrupted: a signal ended the wait.
    """
    JobMonitor(jobs, backend, names, launch).run_all()


class JobMonitor:
    """The loop that starts jobs and waits for them; see `run_jobs`."""

    def __init__(
        self, jobs: Sequence[Job], backend: Backend, names: dict[int, str], launch: Launch
    ) -> None:
        self.backend, self.launch = backend, launch
        self.queue_poll = QueuePoll()
        self.pause_s, self.began = POLL_INTERVAL_S[0], time.monotonic()
        self.refusal: UserError | None = None
        self.is_write_error_reported = False
        self.journal = Journal(jobs[0].folder.parent) if jobs else None
        self.waiting: dict[int, MonitoredJob] = {}
        self.running: dict[int, MonitoredJob] = {}
        queue = query_slurm_queue(jobs)
        for job in jobs:
            self.add_job(MonitoredJob(job, names[job.number], queue, launch))
        self.total = len(self.waiting) + len(self.running)

    def add_job(self, job: MonitoredJob) -> None:
        """Add a job that is not finished to those that wait or run."""
        if job.was_running:
            print_status(f"{job.name}: started earlier, still running")
        (self.running if job.was_running else self.waiting)[job.job.number] = job

    def run_all(self) -> None:
        """Run until all jobs have ended or a signal comes.

        Raises:
            KeyboardInterrupt: a second Ctrl-C; no process of a job is left on this machine.
        """
        try:
            self.run_until_signal()
        except KeyboardInterrupt:
            self.backend.kill()
            raise

    def run_until_signal(self) -> None:
        """Run until all jobs have ended or a signal comes; see `run_all`."""
        with SignalCatcher() as signals, Progress("jobs", self.total, unit="done") as progress:
            while self.is_work_left() and not self.reason_to_stop(signals):
                self.start_waiting_jobs()
                self.backend.wait(self.pause_s)
                self.pause_s = min(POLL_INTERVAL_S[1], self.pause_s * 1.2)
                self.refresh_running_jobs()
                for job in self.find_ended_jobs():
                    self.report_or_requeue_job(job)
                ended = self.total - len(self.waiting) - len(self.running)
                progress.update(ended - progress.done)
                progress.note = describe_running_jobs([*self.running.values()])
            reason = self.reason_to_stop(signals) if self.is_work_left() else None
            if reason is None:
                signals.received.clear()  # a scheduler need not start this again
                self.backend.finish()
            else:
                report = self.interrupt(reason)
        if reason is not None:
            self.report_interruption(reason, report)

    def reason_to_stop(self, signals: SignalCatcher) -> str | None:
        """Return the name of the first signal received, or None to continue."""
        return signals.first_signal_name

    def report_interruption(self, reason: str, report: str) -> None:
        """Say that a signal has ended this.

        Raises:
            TrainingInterrupted: always.
        """
        raise TrainingInterrupted(
            f"{reason}: {report}; run the same command again to resume", reason
        )

    def is_work_left(self) -> bool:
        """Whether jobs wait or run.

        Raises:
            UserError: the backend has refused those that wait, and no other job runs.
        """
        if self.refusal and not self.running and self.waiting:
            raise self.refusal
        return bool(self.waiting or self.running)

    def interrupt(self, signal_name: str) -> str:
        """Let the backend end or leave the jobs that run; return a report."""
        jobs = [job.job for job in (*self.running.values(), *self.waiting.values())]
        return self.backend.interrupt(jobs, signal_name)

    def start_waiting_jobs(self) -> None:
        """Start as many waiting jobs as the backend has room for."""
        self.take_changes_of_other_workers()
        while self.waiting and not self.refusal:
            room = self.backend.max_new_jobs(len(self.running))
            batch = list(islice(self.waiting.values(), room))
            if not batch:
                return
            for job in batch:
                job.record_start()
            try:
                started = {job.number for job in self.backend.start([job.job for job in batch])}
            except UserError as error:
                self.refusal = error
                if self.running:
                    print_status(f"{len(self.waiting)} jobs are not started: {error}")
                return
            except OSError as error:  # a lease cannot be written
                self.report_write_error(error, batch)
                return
            for job in batch:
                number = job.job.number
                if number in started:
                    self.running[number] = self.waiting.pop(number)
                else:
                    job.starts -= 1
                    self.take_if_done_elsewhere(job)
            self.pause_s = POLL_INTERVAL_S[0]
            if started:
                self.queue_poll.reset()
            else:
                return

    def report_write_error(self, error: OSError, batch: Sequence[MonitoredJob]) -> None:
        """Report once that jobs cannot be claimed; it is tried again while other jobs run.

        Raises:
            OSError: no job runs.
        """
        for job in batch:
            job.starts -= 1
        if not self.running:
            raise error
        if not self.is_write_error_reported:
            print_status(f"no job is started for now: {error.strerror}: {error.filename}")
        self.is_write_error_reported = True

    def take_changes_of_other_workers(self) -> None:
        """Move the waiting jobs that other workers have claimed to those that run."""
        for number in self.journal.changed_jobs() if self.journal else ():
            if job := self.waiting.get(number):
                self.take_if_done_elsewhere(job)
            elif job := self.running.get(number):
                job.refresh_state(force=True)

    def take_if_done_elsewhere(self, job: MonitoredJob) -> None:
        """Move a waiting job to those that run, if another worker does it or has done it."""
        job.refresh_state(force=True)
        lease = read_newest_lease(job.job.folder)
        if job.is_finished or (lease and self.queue_poll.watch.is_held(job.job.folder, lease)):
            self.running[job.job.number] = self.waiting.pop(job.job.number)

    def refresh_running_jobs(self) -> None:
        """Read what the running jobs have written."""
        for job in self.running.values():
            job.refresh_state()
            job.report_start()
            if time.monotonic() - self.began > UNSEEN_JOB_NOTICE_S:
                job.report_if_unseen()

    def find_ended_jobs(self) -> list[MonitoredJob]:
        """Return the running jobs that have ended, by their process, their state or the queue."""
        ended, unknown = [], []
        for job in self.running.values():
            process_ended = self.backend.has_ended(job.job)
            if process_ended or (process_ended is None and job.is_finished):
                ended.append(job)
            elif process_ended is None:
                unknown.append(job)
        return ended + self.queue_poll.find_gone_jobs(unknown)

    def report_or_requeue_job(self, job: MonitoredJob) -> None:
        """Report a job that has ended, and put it back to the waiting jobs if it may resume."""
        del self.running[job.job.number]
        self.pause_s = POLL_INTERVAL_S[0]
        job.refresh_state(force=True)  # it may have written a last state
        slurm_state = (self.queue_poll.queue or {}).get(submitted_job_id(job.job.folder), "")
        # A cancelled job is not wanted, unless it was cancelled before this command was given.
        cancelled = slurm_state == "CANCELLED" and not job.was_completing
        may_resume = not job.is_finished and not cancelled
        restarts = may_resume and job.may_restart()
        outcome = job.describe_outcome(slurm_state)
        self.report_outcome(job, outcome + ("; restarting it" if restarts else ""))
        if restarts:
            self.waiting[job.job.number] = job
        elif may_resume and job.is_lost:
            record_lost_job_as_failed(job, outcome, self.queue_poll.watch)

    def report_outcome(self, job: MonitoredJob, outcome: str) -> None:
        """Print how a job has ended."""
        print_status(f"{job.name}: {outcome}")


class MonitoredJob:
    """A job that is waited for: how often it was started, and the state of its last start."""

    def __init__(self, job: Job, name: str, queue: dict[str, str] | None, launch: Launch) -> None:
        self.job, self.name, self.launch = job, name, launch
        self.starts = 0  # by this command
        self.state = current_state(job, queue)
        self.was_running = self.state.status == "running" or is_in_slurm_queue(self.state)
        self.was_completing = (queue or {}).get(submitted_job_id(job.folder)) == "COMPLETING"
        # A state that was there before a start says nothing about that start. The job's own count
        # of its starts tells the two apart.
        before = JobCounts(self.state.starts - (self.state.status == "running"), self.state.losses)
        self.starts_before, self.losses_before = launch.before.get(job.number, before)
        self.is_start_reported = self.is_unseen_reported = False
        self.state_file: tuple[int, ...] | None = None  # what identifies the state that was read

    def record_start(self) -> None:
        """Note what the job's folder holds before a start."""
        self.starts += 1
        self.starts_before = read_state(self.job.folder).starts
        self.is_start_reported = self.was_completing = False

    def refresh_state(self, *, force: bool = False) -> None:
        """Read the job's state, if its file has changed.

        Args:
            force: read it in any case; a network file system may show an old file for a while.
        """
        try:
            status = os.stat(self.job.folder / "state.json")
            state_file: tuple[int, ...] = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            state_file = ()
        if force or state_file != self.state_file:
            self.state_file, self.state = state_file, read_state(self.job.folder)

    def report_start(self) -> None:
        """Report once that the job has started."""
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
            and read_newest_lease(folder) is None
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
        return self.has_written_state and (
            self.state.status in ("done", "failed") or self.is_cancelled
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether the job's worker was cancelled, which means that the job is not wanted."""
        if self.state.status != "stopped":
            return False
        lease = read_newest_lease(self.job.folder)
        return lease is not None and lease.note == CANCELLED

    @property
    def is_lost(self) -> bool:
        """Whether the last start ended without a message."""
        return not self.has_written_state or self.state.status in ("running", "lost")

    def may_restart(self) -> bool:
        """Whether the job was not started, and not lost, as often as is allowed."""
        losses = self.state.losses - self.losses_before + (self.state.status == "running")
        return self.starts < self.launch.tries and losses < self.launch.tries

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
        if slurm_state == "OUT_OF_MEMORY" or (last and OUT_OF_MEMORY.search(last[0])):
            lost += "; set hydra.launcher.mem_gb to more" if self.is_on_slurm else ""
        return lost + (f"; its last output: {last[0].strip()}" if last else "")

    @property
    def is_on_slurm(self) -> bool:
        """Whether the job was submitted to SLURM."""
        return bool(self.state.slurm or submitted_job_id(self.job.folder))


def record_lost_job_as_failed(job: MonitoredJob, outcome: str, watch: LeaseWatch) -> None:
    """Write that a job has failed which was lost as often as it may be, with the reason."""
    with suppress(OSError):  # on a full disk it stays lost
        lease = claim_job(job.job.folder, worker_file(job.job.folder.parent), watch)
        if lease is None:
            return
        state = read_state(job.job.folder)
        if state.status not in ("done", "failed"):
            starts = max(state.starts, job.starts_before + 1)
            state = replace(state, status="failed", starts=starts, error=outcome)
            write_state(job.job.folder, state)
        lease.release()


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
        with open_regular_file(RunFolder(folder).stats) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = file.read().splitlines()
    except (OSError, UserError):
        return {}
    for line in reversed(lines):
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and "seconds_left" in record:
                return record
    return {}


class QueuePoll:
    """Find jobs that are gone and whose process is not a child of this one.

    It looks at their leases, and queries SLURM. It does so the more rarely, the longer nothing
    happens.
    """

    def __init__(self) -> None:
        self.watch = LeaseWatch()
        self.missing: set[int] = set()
        self.queue: dict[str, str] | None = None
        self.reset()

    def reset(self) -> None:
        """Look often again, since jobs were started."""
        self.queried_at, self.interval_s = time.monotonic(), QUEUE_POLL_INTERVAL_S[0]

    def find_gone_jobs(self, jobs: Sequence[MonitoredJob]) -> list[MonitoredJob]:
        """Return the jobs that were gone in the last two looks.

        After a single one, the job's folder may not show yet what it wrote a moment ago.
        """
        if not jobs or time.monotonic() - self.queried_at < self.interval_s:
            return []
        self.queue = query_slurm_queue([job.job for job in jobs])
        self.queried_at = time.monotonic()
        longest = QUEUE_POLL_INTERVAL_S[1] if self.queue else QUEUE_POLL_INTERVAL_S[0]
        self.interval_s = min(longest, self.interval_s * 1.5)
        missing = [job for job in jobs if self.is_gone(job.job)]
        gone = [job for job in missing if job.job.number in self.missing]
        self.missing = {job.job.number for job in missing}
        if self.missing:
            self.interval_s = QUEUE_POLL_INTERVAL_S[0]
        return gone

    def is_gone(self, job: Job) -> bool:
        """Whether no process does a job, and none is about to; False where that is unknown."""
        state = current_state(job, self.queue)
        if is_in_slurm_queue(state):
            return False
        lease = read_newest_lease(job.folder)
        is_held = lease is not None and self.watch.is_held(job.folder, lease)
        if state.status != "running":
            return not is_held
        if state.slurm and self.queue is not None:  # the queue says that it runs
            return False
        return lease is not None and not is_held


def job_display_names(jobs: Sequence[Job]) -> dict[int, str]:
    """Return number -> name in messages: the number, and the distinguishing overrides."""
    return {
        job.number: " ".join([f"job {job.number}", *overrides])
        for job, overrides in zip(jobs, distinguishing_overrides(jobs), strict=True)
    }


def print_status(line: str) -> None:
    """Print a line on stderr, without control characters of errors and logs."""
    print_above_progress(make_printable(line))
