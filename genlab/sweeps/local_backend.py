"""Run jobs as processes of this machine, forked from one that has imported torch."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from genlab.output_streams import use_safe_streams
from genlab.signals import STOP_SIGNALS
from genlab.sweeps.job_monitor import print_status
from genlab.sweeps.job_state import Job, current_slurm_job_id
from genlab.sweeps.leases import (
    CANCELLED,
    RELEASED,
    Lease,
    LeaseWatch,
    claim_job,
    worker_file,
)
from genlab.system import use_short_temporary_folder

# Imported before the fork, because imports take most of the time until a job starts. None of these
# modules may touch a GPU: forked processes cannot share one.
PRELOADED_MODULES = [
    "torch.utils.tensorboard",
    "torch._inductor",
    "sklearn.datasets",
    "sklearn.decomposition",
    "cloudpickle",
    "hydra.core.utils",
    "genlab.builders.entrypoints",
    "genlab.builders.factory",
    "genlab.runs.provenance",
    "genlab.commands.train",
    "genlab.sweeps.hydra_launchers",
    "genlab.builders.warm_up",  # last: it freezes the imported objects
]

# Starts the process of one job by `LocalBackend.start_process`.
SubmitJob = Callable[["LocalBackend", Job, Lease], object]


class LocalBackend:
    """This machine, with one process for each job.

    Each process has its own session: Ctrl-C in a terminal reaches only the launcher, which asks the
    jobs to save.

    Args:
        submit: starts the process of one job, given this backend, the job and its lease.
        slots: the GPU of each slot; None leaves the GPUs as they are.
    """

    def __init__(self, submit: SubmitJob, slots: Sequence[str | None]) -> None:
        self.submit, self.slots = submit, slots
        self.processes: dict[int, BaseProcess] = {}
        self.slot_of: dict[int, int] = {}  # by job number
        self.leases: dict[int, Lease] = {}  # by job number
        self.watch = LeaseWatch()
        has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
        if has_forkserver:
            self.context.set_forkserver_preload(PRELOADED_MODULES)

    def max_new_jobs(self, running: int) -> int:
        """Return how many jobs may start beside those that run."""
        return max(0, len(self.slots) - len(self.slot_of))

    def start(self, jobs: Sequence[Job]) -> list[Job]:
        """Start a process for each job that no other worker does, in a free slot; return these.

        Raises:
            OSError: a lease cannot be written, as on a full disk.
        """
        if len(self.slots) > 1:
            # The jobs share the cores evenly. torch reads this when it is imported; the user's own
            # setting wins.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // len(self.slots))))
        started: list[Job] = []
        for job in jobs:
            worker = worker_file(job.folder.parent)
            try:
                lease = claim_job(job.folder, worker, self.watch)
            except OSError:
                if started:  # those run; the error comes again with the next job
                    break
                raise
            if lease is None:
                continue
            taken = self.slot_of.values()
            self.slot_of[job.number] = next(i for i in range(len(self.slots)) if i not in taken)
            self.leases[job.number] = lease
            worker.record(job.number)
            try:
                self.submit(self, job, lease)
            except BaseException:
                self.release(job)
                raise
            started.append(job)
        return started

    def start_process(
        self,
        job: Job,
        target: Callable[..., object],
        args: tuple[Any, ...],
        *,
        stdout: Path,
        stderr: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start the process of one job.

        Args:
            target: a function of a module, called with `args` in the new process.
            stdout: the file that its output is appended to.
            stderr: the file that its messages are appended to.
            environment: variables beside those of this process.
        """
        gpu = self.slots[self.slot_of[job.number]]
        gpu_variables = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        variables = os.environ | (environment or {}) | gpu_variables
        process = self.context.Process(
            target=run_detached,
            args=(target, args, os.getcwd(), dict(variables), str(stdout), str(stderr)),
        )
        use_short_temporary_folder()  # processes talk to each other by sockets in it
        start_forkserver()
        process.start()
        self.processes[job.number] = process

    def has_ended(self, job: Job) -> bool | None:
        """Whether a job's process has ended; None if this backend did not start it."""
        if job.number not in self.processes:
            return None
        if self.processes[job.number].is_alive():
            return False
        self.processes.pop(job.number).close()  # it holds files open
        self.release(job)
        return True

    def release(self, job: Job, note: str = RELEASED) -> None:
        """Free the slot and the lease of a job that has ended."""
        del self.slot_of[job.number]
        self.leases.pop(job.number).release(note)
        worker_file(job.folder.parent).record(job.number)

    def wait(self, seconds: float) -> None:
        """Wait for this time, or until a process has ended."""
        sentinels = [process.sentinel for process in self.processes.values()]
        if sentinels:
            multiprocessing.connection.wait(sentinels, timeout=seconds)
        else:
            time.sleep(seconds)

    def finish(self) -> None:
        """Do nothing: no process is left."""

    def interrupt(self, jobs: Sequence[Job], signal_name: str) -> str:
        """Ask the jobs to save, and wait for them; return a report."""
        started = {job: p for job in jobs if (p := self.processes.get(job.number))}
        if started:
            print_status(f"waiting for {len(started)} jobs to save")
        # SLURM sends SIGTERM to a job that the user cancels: it is not wanted any more.
        is_cancelled = signal_name == "SIGTERM" and current_slurm_job_id()
        for process in started.values():
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        for process in started.values():
            process.join()
        for job, process in started.items():
            process.close()
            del self.processes[job.number]
            self.release(job, CANCELLED if is_cancelled else RELEASED)
        return "the jobs are saved" if started else "no job was running"

    def kill(self) -> None:
        """End the jobs' processes at once, with all that they have started."""
        for process in self.processes.values():
            if process.pid is not None and hasattr(os, "killpg"):
                # its group is named by it; before it has its own session, there is none
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        for process in self.processes.values():
            process.join()


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_forkserver() -> None:
    """Start the process that the jobs are forked from, if it does not run.

    SLURM sends its signals to all processes of a job. This one must not end before the jobs, so it
    never receives them; `run_detached` lets the jobs receive them again.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which lacks such a process too
        return
    try:
        for start in (resource_tracker.ensure_running, forkserver.ensure_running):
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the first one unblocks some
            start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def run_detached(
    target: Callable[..., object],
    args: tuple[Any, ...],
    cwd: str,
    environment: dict[str, str],
    stdout: str,
    stderr: str,
) -> None:
    """Call `target` in a new session, with its own environment and output files."""
    if hasattr(os, "setsid"):
        os.setsid()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)  # until the training handles them
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, stream.fileno())
        os.close(file)
    with use_safe_streams():
        target(*args)
