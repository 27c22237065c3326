"""Hydra launchers for `genlab train -m`: workers on this machine or on SLURM.

They extend Hydra's submitit launcher. Workers claim the jobs (`genlab.sweeps.leases`) and run each
in a separate process. A job's outcome is read from its folder instead of its process. So a killed
job is noticed and resumed, and the same command given twice repeats nothing.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import cloudpickle
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf, open_dict

from genlab.distributed.environment import SINGLE_PROCESS_ENV
from genlab.errors import UserError
from genlab.sweeps.file_locks import hold_file_lock
from genlab.sweeps.job_monitor import Backend, job_display_names, print_status, run_jobs
from genlab.sweeps.job_state import (
    RUN_LOG,
    STATUSES,
    Job,
    JobState,
    current_slurm_job_id,
    current_states,
    read_state,
    run_and_record_job,
)
from genlab.sweeps.launches import JobCounts, Launch
from genlab.sweeps.leases import Lease, LeaseWatch, claim_job, read_newest_lease, worker_file
from genlab.sweeps.local_backend import LocalBackend
from genlab.sweeps.slurm_backend import SlurmBackend
from genlab.sweeps.sweep_folder import SweepFolder
from genlab.sweeps.worker import Worker
from genlab.untrusted.hydra_sources import confine_config_groups

confine_config_groups()  # also in the process of a job, which composes the job's config


def register_launchers(failed: list[Exception]) -> None:
    """Register the launchers with Hydra in this process.

    Hydra instantiates only plugins of the package hydra_plugins, and it imports all of that package
    at every start. So the launchers live here and are added to the package in memory.

    Args:
        failed: receives the error of a sweep that has failed jobs.
    """
    module = ModuleType("hydra_plugins.genlab")
    sys.modules["hydra_plugins.genlab"] = module
    for launcher in (LocalLauncher, SlurmLauncher):
        members = {"__module__": module.__name__, "failed": failed}
        plugin = type(launcher.__name__, (launcher,), members)
        setattr(module, launcher.__name__, plugin)
        Plugins.instance().register(plugin)


def rebuild_launcher(kind: type[SweepLauncher], members: dict[str, Any]) -> SweepLauncher:
    """Return a launcher from its pickled members, in the process of a job."""
    launcher = object.__new__(kind)
    launcher.__dict__.update(members)
    return launcher


class JobOutcome(JobReturn):
    """The outcome of a job. The value of a failed job is None, so it does not stop a sweeper."""

    @property
    def return_value(self) -> Any:
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class SweepLauncher(BaseSubmititLauncher):
    """The base class of the launchers.

    Args:
        tries: how often a job is started before it counts as failed; a job that was killed resumes
            from its checkpoint.
        only: numbers of the jobs to run; None runs all that are not done.
        params: options of submitit.
    """

    failed: ClassVar[list[Exception]]

    def __init__(self, *, tries: int, only: Sequence[int] | None, **params: Any) -> None:
        super().__init__(**params)
        self.tries, self.only = require_positive_int("tries", tries), require_list("only", only)

    def __reduce__(self) -> tuple[Any, ...]:
        # A job's process lacks hydra_plugins.genlab: it rebuilds the class of this module.
        kind = next(c for c in type(self).__mro__ if c.__module__ == __name__)
        return rebuild_launcher, (kind, self.__dict__)

    @property
    def num_parallel_jobs(self) -> int:
        """How many trials a search draws at a time by default."""
        return 1

    def make_backend(self, sweep: SweepFolder) -> Backend:
        """Return the backend that the jobs run on."""
        raise NotImplementedError

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run those of these jobs that are not done, and wait for all of them.

        Raises:
            UserError: the folder holds another sweep, it has a link out of it, or the backend
                refuses the jobs.
            TrainingInterrupted: a signal ended the wait.
        """
        sweep = SweepFolder(Path(str(self.config.hydra.sweep.dir)))
        sweep.refuse_links()
        self.refuse_sweep_subdir()
        command = ["train", *(w for w in sys.argv[1:] if not w.startswith("hydra.launcher.only="))]
        jobs = sweep.add_jobs(
            command,
            initial_job_idx,
            [filter_overrides(overrides) for overrides in job_overrides],
            sweeper=self.config.hydra.runtime.choices["hydra/sweeper"],
        )
        selected = [job for job in jobs if self.only is None or job.number in self.only]
        left = [
            job
            for job, state in zip(selected, current_states(selected), strict=True)
            if state.status != "done"
        ]
        if len(left) < len(selected):
            num_done = len(selected) - len(left)
            print_status(f"{num_done} of {len(selected)} jobs are already done: {sweep.path}")
        with hold_file_lock(sweep.path / ".launcher.lock", timeout_s=0):
            launch = Launch.of_jobs(self.tries, left, current_states(left))
            launch.write(sweep.path)
            names = job_display_names(sweep.jobs())
            run_jobs(left, self.make_backend(sweep), names=names, launch=launch)
        states = current_states(jobs)
        print_status(f"{sweep.path}: {format_status_counts(states)}")
        states_of_selected = [s for j, s in zip(jobs, states, strict=True) if j in selected]
        if num_failed := sum(state.status != "done" for state in states_of_selected):
            status_command = f"genlab sweep status {shlex.quote(str(sweep.path))}"
            self.failed.append(
                UserError(f"{num_failed} of {len(selected)} jobs failed; see `{status_command}`")
            )
        return [hydra_job_outcome(job, state) for job, state in zip(jobs, states, strict=True)]

    def refuse_sweep_subdir(self) -> None:
        """Refuse a setting of hydra.sweep.subdir.

        Raises:
            UserError: it is set.
        """
        sweep_options = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        assert isinstance(sweep_options, dict)
        if sweep_options["subdir"] != "${hydra.job.num}":
            raise UserError(
                "hydra.sweep.subdir= cannot be set: the folders of jobs are named by their numbers"
            )

    # --- in the process of a worker, and of a job -------------------------------------------------

    def make_local_backend(self, slots: Sequence[str | None]) -> LocalBackend:
        """Return this machine, whose jobs are processes that compose their own config."""
        payload = cloudpickle.dumps((self, Singleton.get_state()))
        environment = {} if current_slurm_job_id() else SINGLE_PROCESS_ENV

        def submit(backend: LocalBackend, job: Job, lease: Lease) -> None:
            log = job.folder / RUN_LOG
            arguments = (payload, job, lease)
            backend.start_process(
                job, run_pickled_job, arguments, stdout=log, stderr=log, environment=environment
            )

        return LocalBackend(submit, slots)

    def work(
        self,
        sweep: SweepFolder,
        slots: Sequence[str | None],
        *,
        first: int | None = None,
        deadline: float | None = None,
    ) -> Worker:
        """Do jobs of a sweep until none is left to claim; return the worker.

        Args:
            first: the job that is done first, by a worker that does only the jobs of the last
                launch; None for a worker that does all jobs of the plan.
            deadline: see Worker.
        """
        launch, jobs = Launch.read(sweep.path), sweep.jobs()
        names = job_display_names(jobs)
        if first is not None:
            listed = [job for job in jobs if job.number in launch.before]
            jobs = sorted(listed, key=lambda job: job.number != first)
        before = {job.number: launch.before.get(job.number, JobCounts(0, 0)) for job in jobs}
        launch = Launch(self.tries, before)
        backend = self.make_local_backend(slots)
        worker = Worker(jobs, backend, names, launch, deadline=deadline)
        worker.run_all()
        return worker

    def run_job(self, job: Job, singletons: Any) -> Any:
        """Compose a job's config and run it, in its own process; return what it returns."""
        sweep = SweepFolder(job.folder.parent)
        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(
            self.config, [*job.overrides, sweep.dir_override]
        )
        with open_dict(config.hydra.job):
            config.hydra.job.id = f"{socket.gethostname()}-{os.getpid()}"
            config.hydra.job.num = job.number
        outcome = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        return outcome.return_value


def run_pickled_job(payload: bytes, job: Job, lease: Lease | None) -> None:
    """Do one job, and write its state.

    Args:
        payload: the pickled launcher and the state of Hydra's singletons.
    """
    launcher, singletons = cloudpickle.loads(payload)
    run_and_record_job(job.folder, partial(launcher.run_job, job, singletons), lease)


def format_status_counts(states: Sequence[JobState]) -> str:
    """Return how many jobs have each status: "3 done, 1 failed"."""
    statuses = [state.status for state in states]
    return ", ".join(f"{statuses.count(s)} {s}" for s in STATUSES if s in statuses)


def hydra_job_outcome(job: Job, state: JobState) -> JobOutcome:
    """Return a job's outcome as a sweeper of Hydra reads it."""
    return JobOutcome(
        overrides=list(job.overrides),
        status=JobStatus.COMPLETED if state.status == "done" else JobStatus.FAILED,
        _return_value=state.result,
    )


def require_positive_int(name: str, value: Any) -> int:
    """Return the value of a launcher's option that must be 1 or more.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, float) and value.is_integer():  # as 1e1
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"hydra.launcher.{name}={value}: it must be a whole number, 1 or more")
    return value


def require_list(name: str, value: Any) -> list[Any] | None:
    """Return the value of a launcher's option that must be a list with entries, or None.

    Raises:
        UserError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise UserError(
            f"hydra.launcher.{name}={value}: it must be a list, as in hydra.launcher.{name}=[0,1]"
        )
    return list(value)


class LocalLauncher(SweepLauncher):
    """Runs jobs as processes of this machine, `n` at a time, or one on each of `gpus`."""

    def __init__(self, *, n: int | None, gpus: Sequence[int | str] | None, **params: Any) -> None:
        super().__init__(**params)
        if n is not None and gpus is not None:
            raise UserError(
                "give hydra.launcher.n= or hydra.launcher.gpus=, not both: "
                "each GPU takes one job at a time"
            )
        gpu_list = require_list("gpus", gpus)
        self.slots: list[str | None]
        if gpu_list is None:
            self.slots = [None] * require_positive_int("n", 1 if n is None else n)
        else:
            self.slots = [str(gpu) for gpu in gpu_list]

    @property
    def num_parallel_jobs(self) -> int:
        """The number of slots."""
        return len(self.slots)

    def make_backend(self, sweep: SweepFolder) -> LocalBackend:
        """Return this machine."""
        return self.make_local_backend(self.slots)


class SlurmLauncher(SweepLauncher):
    """Runs jobs on SLURM by workers in arrays, which continue when the launcher ends."""

    def make_backend(self, sweep: SweepFolder) -> SlurmBackend:
        """Return the cluster."""
        return SlurmBackend(sweep.path / ".submitit" / "%j", self.submit, self.params)

    def submit(self, executor: Any, jobs: Sequence[Job]) -> list[Any]:
        """Submit a worker for each job, several as one array; return submitit's jobs."""
        from submitit.helpers import clean_env

        rows = [(job, Singleton.get_state()) for job in jobs]
        # The jobs do not belong to the SLURM job or the torchrun that this launcher may be in.
        with clean_env():
            return executor.map_array(self, *zip(*rows, strict=True))

    def __call__(self, job: Job, singletons: Any) -> Any:
        """Work in a task of SLURM: first on one job, then on others that no worker has started.

        The processes of a job on several GPUs do this one job only.
        """
        import submitit

        environment = submitit.JobEnvironment()
        Singleton.set_state(singletons)
        if environment.num_tasks == 1:
            self.work(SweepFolder(job.folder.parent), [None], first=job.number)
            return None
        work = partial(self.run_job, job, singletons)
        if environment.global_rank > 0:
            return None if read_state(job.folder).status == "done" else work()
        lease = claim_job(job.folder, worker_file(job.folder.parent), LeaseWatch())
        if lease is None and read_newest_lease(job.folder) is not None:
            raise UserError(f"another worker does {job.folder}")
        return run_and_record_job(job.folder, work, lease)
