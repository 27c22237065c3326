"""Jobs as processes of this machine, begun by submitit as on a cluster, but forked from one that has torch imported."""

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

from genlab.sweeps.job_monitor import say
from genlab.sweeps.sweep_folder import Job

# What jobs import, which is most of the time that they take to begin. None of it may touch a GPU, which forks cannot share.
WARM = [
    "torch.utils.tensorboard",
    "torch._inductor",
    "sklearn.datasets",
    "submitit.core.submission",
]
WARM += [
    "genlab.builders.entrypoints",
    "genlab.builders.factory",
    "genlab.runs.provenance",
    "genlab.commands.train",
]


class Processes:
    """This machine, with a process for each job in one of its places.

    A process is in a session of its own: Ctrl-C in a terminal reaches the launcher alone, which asks the jobs to save.

    Args:
        kept: where what a job is given and what it prints is kept, with %j for its name.
        submit: hands jobs to an executor of submitit's.
        places: the GPU of each place; None: whatever there is.
    """

    def __init__(
        self,
        kept: Path,
        submit: Callable[[Any, Sequence[Job]], list[Any]],
        places: Sequence[str | None],
    ) -> None:
        self.kept, self.submit, self.places = kept, submit, places
        self.processes: dict[int, BaseProcess] = {}
        self.at: dict[int, int] = {}  # job number -> its place
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(WARM)

    def room(self, running: int) -> int:
        return max(0, len(self.places) - running)

    def start(self, jobs: Sequence[Job]) -> None:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        if (
            len(self.places) > 1
        ):  # they share the cores evenly; read when torch is imported, and the user's own wins
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // len(self.places))))
        for job in jobs:
            place = next(
                place for place in range(len(self.places)) if place not in self.at.values()
            )
            self.submit(executor(self, job, self.places[place]), [job])
            self.at[job.number] = place

    def ended(self, job: Job) -> bool | None:
        if job.number not in self.processes:
            return None
        if self.processes[job.number].is_alive():
            return False
        self.processes.pop(job.number).close()  # it holds files open
        del self.at[job.number]
        return True

    def interrupt(self, jobs: Sequence[Job]) -> str:
        own = [self.processes[job.number] for job in jobs if job.number in self.processes]
        if own:
            say(f"{len(own)} jobs save and end")
        for one in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    one.pid, signal.SIGINT
                )  # not SIGTERM, which submitit keeps from a job that does not train yet
        for one in own:
            one.join()
        return "what the jobs had is saved" if own else "no job was at work"


def executor(machine: Processes, job: Job, gpu: str | None) -> Any:
    """Return an executor of submitit's that starts a job as one process, with no controller above it."""
    from submitit.core.utils import JobPaths
    from submitit.local.local import LocalExecutor, LocalJob

    class Process(LocalExecutor):
        def _submit_command(self, command: str) -> LocalJob:
            name = f"local-{job.number}-{time.time_ns()}"
            paths = JobPaths(self.folder, job_id=name, task_id=0)
            paths.folder.mkdir(parents=True, exist_ok=True)
            own = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": name}
            environment = os.environ | own | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
            given = (
                str(self.folder),
                os.getcwd(),
                environment,
                str(paths.stdout),
                str(paths.stderr),
            )
            machine.processes[job.number] = machine.context.Process(target=work, args=given)
            machine.processes[job.number].start()
            return LocalJob(folder=self.folder, job_id=name)

    return Process(machine.kept)


def work(kept: str, cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    """Do a job in the process that was forked for it."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, stream.fileno())
        os.close(file)
    importlib.import_module("submitit.core.submission").process_job(kept)
