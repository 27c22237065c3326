"""Run jobs as processes of this machine, forked from one that has imported torch."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from genlab.sweeps.job_monitor import print_status
from genlab.sweeps.job_state import Job

# Imported before the fork, because imports take most of the time until a job starts. None of these
# modules may touch a GPU: forked processes cannot share one.
PRELOADED_MODULES = [
    "torch.utils.tensorboard",
    "torch._inductor",
    "sklearn.datasets",
    "submitit.core.submission",
    "genlab.builders.entrypoints",
    "genlab.builders.factory",
    "genlab.runs.provenance",
    "genlab.commands.train",
]


class LocalBackend:
    """This machine, with one process for each job.

    Each process has its own session: Ctrl-C in a terminal reaches only the launcher, which asks the
    jobs to save.

    Args:
        submit: starts the process of one job by `start_process`, given the backend and the job.
        slots: the GPU of each slot; None leaves the GPUs as they are.
    """

    def __init__(
        self, submit: Callable[[LocalBackend, Job], object], slots: Sequence[str | None]
    ) -> None:
        self.submit, self.slots = submit, slots
        self.processes: dict[int, BaseProcess] = {}
        self.slot_of: dict[int, int] = {}  # by job number
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED_MODULES)

    def max_new_jobs(self, running: int) -> int:
        """Return how many jobs may start beside those that run."""
        return max(0, len(self.slots) - running)

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a process for each job, in a free slot."""
        if len(self.slots) > 1:
            # The jobs share the cores evenly. torch reads this when it is imported; the user's own
            # setting wins.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // len(self.slots))))
        for job in jobs:
            taken = self.slot_of.values()
            self.slot_of[job.number] = next(i for i in range(len(self.slots)) if i not in taken)
            self.submit(self, job)

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
        process.start()
        self.processes[job.number] = process

    def has_ended(self, job: Job) -> bool | None:
        """Whether a job's process has ended; None if this backend did not start it."""
        if job.number not in self.processes:
            return None
        if self.processes[job.number].is_alive():
            return False
        self.processes.pop(job.number).close()  # it holds files open
        del self.slot_of[job.number]
        return True

    def interrupt(self, jobs: Sequence[Job]) -> str:
        """Ask the jobs to save, and wait for them; return a report."""
        started = [self.processes[job.number] for job in jobs if job.number in self.processes]
        if started:
            print_status(f"waiting for {len(started)} jobs to save")
        for process in started:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    # Not SIGTERM: submitit ignores it in a job that does not train yet.
                    os.kill(process.pid, signal.SIGINT)
        for process in started:
            process.join()
        return "the jobs are saved" if started else "no job was running"


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def submitit_executor(backend: LocalBackend, job: Job, submitit_folder: Path) -> Any:
    """Return an executor of submitit that starts one job as one process, without a controller."""
    from submitit.core.utils import JobPaths
    from submitit.local.local import LocalExecutor, LocalJob

    class ForkExecutor(LocalExecutor):
        def _submit_command(self, command: str) -> LocalJob:
            job_id = f"local-{job.number}-{time.time_ns()}"
            paths = JobPaths(self.folder, job_id=job_id, task_id=0)
            paths.folder.mkdir(parents=True, exist_ok=True)
            backend.start_process(
                job,
                run_submitit_job,
                (str(self.folder),),
                stdout=paths.stdout,
                stderr=paths.stderr,
                environment={"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": job_id},
            )
            return LocalJob(folder=self.folder, job_id=job_id)

    return ForkExecutor(submitit_folder)


def run_submitit_job(submitit_folder: str) -> None:
    """Do the work that submitit pickled for this process."""
    importlib.import_module("submitit.core.submission").process_job(submitit_folder)


def run_detached(
    target: Callable[..., object],
    args: tuple[Any, ...],
    cwd: str,
    environment: dict[str, str],
    stdout: str,
    stderr: str,
) -> None:
    """Call `target` in a new session, with its own environment and output files."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, stream.fileno())
        os.close(file)
    target(*args)
