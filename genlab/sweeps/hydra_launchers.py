"""Hydra's launchers for `genlab train -m`: each job a process of its own, on this machine or on a SLURM cluster.

They are Hydra's submitit launcher but for the wait: a job is known by its folder and not by what its process returns, so
that a killed one is noticed and goes on, and the same command twice repeats nothing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf

from genlab.errors import UserError
from genlab.sweeps import sweep_folder
from genlab.sweeps.file_locks import hold
from genlab.sweeps.job_monitor import Machine, named, say, watch
from genlab.sweeps.local_backend import Processes
from genlab.sweeps.slurm_backend import Cluster
from genlab.sweeps.sweep_folder import Job, SweepFolder


def register(failed: list[Exception]) -> None:
    """Make the launchers known to Hydra in this process; of a sweep with failed jobs `failed` receives the error.

    Hydra takes plugins from the package hydra_plugins alone, and reads all of that at every start: no place for genlab's.
    """
    module = sys.modules["hydra_plugins.genlab"] = ModuleType("hydra_plugins.genlab")
    for kind in (Local, Slurm):
        plugin = type(kind.__name__, (kind,), {"__module__": module.__name__, "failed": failed})
        setattr(module, kind.__name__, plugin)
        Plugins.instance().register(plugin)


def restored(kind: type[Jobs], members: dict[str, Any]) -> Jobs:
    """Return the launcher of which a job's process was given the members."""
    launcher = object.__new__(kind)
    launcher.__dict__.update(members)
    return launcher


class Ended(JobReturn):
    """What became of a job; one that failed has no value and interrupts no sweeper: its `status` says so."""

    @property
    def return_value(self) -> Any:
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class Jobs(BaseSubmititLauncher):
    """What the launchers share.

    Args:
        tries: how often one job is started before it counts as failed: one that was killed goes on from its checkpoint.
        only: the numbers of the jobs to run; None: all that are not done.
        params: of submitit.
    """

    failed: ClassVar[list[Exception]]

    def __init__(self, *, tries: int, only: Sequence[int] | None, **params: Any) -> None:
        super().__init__(**params)
        self.tries, self.only = positive("tries", tries), listed("only", only)

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (
            type(self).__base__,
            self.__dict__,
        )  # a job's process has no hydra_plugins.genlab

    def machine(self, sweep: SweepFolder) -> Machine:
        """Return where the jobs run."""
        raise NotImplementedError

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run what is not done of these jobs, and wait for all of them.

        Raises:
            UserError: another sweep lies in the folder, it has a link out of it, or the machine refuses the jobs.
            Stopped: a signal ended the wait.
        """
        sweep = SweepFolder(Path(str(self.config.hydra.sweep.dir)))
        sweep.refuse_links()
        if (
            OmegaConf.to_container(self.config.hydra.sweep, resolve=False)["subdir"]
            != "${hydra.job.num}"
        ):
            raise UserError(
                "hydra.sweep.subdir= cannot be set: a sweep's jobs lie in folders named by their numbers"
            )
        command = [
            "train",
            *(word for word in sys.argv[1:] if not word.startswith("hydra.launcher.only=")),
        ]
        rows = [filter_overrides(overrides) for overrides in job_overrides]
        jobs = sweep.extend(
            command,
            initial_job_idx,
            rows,
            sweeper=self.config.hydra.runtime.choices["hydra/sweeper"],
        )
        wanted = [job for job in jobs if self.only is None or job.number in self.only]
        left = [
            job
            for job, state in zip(wanted, sweep_folder.standing(wanted), strict=True)
            if state.status != "done"
        ]
        if len(left) < len(wanted):
            say(f"{len(wanted) - len(left)} of {len(wanted)} jobs are done already: {sweep.path}")
        with hold(sweep.path / ".launcher.lock", patience=0):
            watch(left, self.machine(sweep), names=named(sweep.jobs()), tries=self.tries)
        states = sweep_folder.standing(jobs)
        counted = [state.status for state in states]
        say(
            f"{sweep.path}: "
            + ", ".join(f"{counted.count(s)} {s}" for s in sweep_folder.STATUSES if s in counted)
        )
        asked = [state for job, state in zip(jobs, states, strict=True) if job in wanted]
        if broken := [state for state in asked if state.status != "done"]:
            see = f"see `genlab sweep status {shlex.quote(str(sweep.path))}`"
            self.failed.append(UserError(f"{len(broken)} of {len(asked)} jobs failed; {see}"))
        status = {True: JobStatus.COMPLETED, False: JobStatus.FAILED}
        return [
            Ended(
                overrides=list(job.overrides),
                status=status[state.status == "done"],
                _return_value=state.result,
            )
            for job, state in zip(jobs, states, strict=True)
        ]

    def submit(self, executor: Any, jobs: Sequence[Job]) -> list[Any]:
        """Hand jobs to an executor of submitit's, several as one array; return its jobs."""
        from submitit.helpers import clean_env

        where = SweepFolder(jobs[0].folder.parent).quoted
        rows = [
            (
                [*job.overrides, where],
                "hydra.sweep.dir",
                job.number,
                str(job.folder.resolve()),
                Singleton.get_state(),
            )
            for job in jobs
        ]
        with clean_env():  # a launcher inside a job of SLURM's or of torchrun's is not its jobs
            return executor.map_array(self, *zip(*rows, strict=True))

    def __call__(
        self, overrides: list[str], dir_key: str, number: int, where: str, singletons: Any
    ) -> Any:
        """Do one job, in its own process, where its state is written; what fails is an error of the process too."""
        import submitit

        def work() -> Any:
            return (
                super(Jobs, self)
                .__call__(overrides, dir_key, number, where, singletons)
                .return_value
            )

        if submitit.JobEnvironment().global_rank == 0:
            return sweep_folder.run(Path(where), work)
        return None if sweep_folder.read(Path(where)).status == "done" else work()


def positive(name: str, value: Any) -> int:
    """Return a number that has to be 1 or more.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, int) or value < 1:
        raise UserError(f"hydra.launcher.{name}={value}: it must be a whole number, 1 or more")
    return value


def listed(name: str, value: Any) -> list[Any] | None:
    """Return a list that has something in it, or None.

    Raises:
        UserError: it is neither.
    """
    if value is not None and (
        isinstance(value, str) or not isinstance(value, Sequence) or not value
    ):
        raise UserError(
            f"hydra.launcher.{name}={value}: it must be a list, as in hydra.launcher.{name}=[0,1]"
        )
    return None if value is None else list(value)


class Local(Jobs):
    """Jobs as processes of this machine, `n` at a time, or one on each of `gpus`."""

    def __init__(self, *, n: int | None, gpus: Sequence[int | str] | None, **params: Any) -> None:
        super().__init__(**params)
        if n is not None and gpus is not None:
            raise UserError(
                "give hydra.launcher.n= or hydra.launcher.gpus=, not both: each GPU takes one job at a time"
            )
        own = listed("gpus", gpus)
        self.places = (
            [None] * positive("n", 1 if n is None else n)
            if own is None
            else [str(gpu) for gpu in own]
        )

    def machine(self, sweep: SweepFolder) -> Machine:
        return Processes(sweep.path / ".submitit" / "%j", self.submit, self.places)


class Slurm(Jobs):
    """Jobs of a SLURM cluster, as arrays; they go on when the launcher ends."""

    def machine(self, sweep: SweepFolder) -> Machine:
        return Cluster(sweep.path / ".submitit" / "%j", self.submit, self.params)
