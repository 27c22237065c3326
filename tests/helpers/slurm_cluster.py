"""A SLURM cluster for tests, and sweeps that run on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.sweep_model import states

from genlab.sweeps import job_state
from genlab.sweeps.sweep_folder import SweepFolder

# Options of a long run that saves rarely.
LONG_RUN = ("trainer.save_every=200", "trainer.log_every=150")
# Options of a SLURM job with one CPU.
ONE_CPU_JOB = (
    "hydra/launcher=slurm_cpu",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=2",  # of a worker and of the job that is forked from it
)


def is_slurm_up() -> bool:
    """Whether a SLURM controller answers."""
    if shutil.which("scontrol") is None:
        return False
    ping = subprocess.run(
        ["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False
    )
    return "is UP" in ping.stdout


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """Provide a SLURM cluster to every test of a module that imports this fixture."""
    yield from running_cluster()


def running_cluster() -> Iterator[None]:
    """Provide a SLURM cluster, or skip the tests; stop the cluster if it was started here."""
    script = os.environ.get("GENLAB_SLURM")
    if is_slurm_up():
        yield
        return
    if not script:
        pytest.skip(
            "no SLURM controller answers `scontrol ping`, and GENLAB_SLURM does not name a script "
            "that starts one"
        )
    if os.geteuid() != 0:
        pytest.skip(f"no SLURM controller answers `scontrol ping`; only root can run {script}")
    subprocess.run([script, "up"], check=True, timeout=300)
    yield
    # A daemon may remove its pid file while `down` reads it, so a failure is retried once.
    if subprocess.run([script, "down"], check=False, timeout=120).returncode:
        subprocess.run([script, "down"], check=True, timeout=120)


class Sweep:
    """A sweep in another process, observed by the files that it writes."""

    def __init__(self, cwd: Path, *command: str, seconds: float = 300) -> None:
        self.deadline = time.monotonic() + seconds
        self.log = open(cwd / "sweep.log", "a+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "genlab", *command], cwd=cwd, stderr=self.log, stdout=self.log
        )
        self.wait(lambda: any(cwd.glob("outputs/sweeps/*/plan.json")))
        (self.folder,) = cwd.glob("outputs/sweeps/*")

    def output(self) -> str:
        """Return what the command has printed."""
        self.log.seek(0)
        return self.log.read()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait for a condition; fail if the sweep ends first or takes too long."""
        while not ready():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < self.deadline, (
                f"the sweep did not end in time\n{self.output()}"
            )
            time.sleep(0.1)

    def has_saved(self, number: int) -> bool:
        """Whether a job is running and has saved a checkpoint."""
        return states(self.folder)[number].status == "running" and bool(
            list(self.folder.glob(f"{number}/checkpoints/*.pt"))
        )

    def wait_for_end(self) -> int:
        """Wait until the command ends, and return its exit code."""
        while self.process.poll() is None:
            assert time.monotonic() < self.deadline, (
                f"the sweep did not end in time\n{self.output()}"
            )
            time.sleep(0.1)
        return self.process.returncode

    def cancel(self) -> None:
        """End the command and cancel its jobs."""
        self.process.kill()
        self.process.wait()
        arrays = {
            job_state.submitted_job_id(job.folder).partition("_")[0]
            for job in SweepFolder(self.folder).jobs()
        } - {""}
        subprocess.run(["scancel", *arrays], check=False)
        self.log.close()
