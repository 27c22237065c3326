"""A SLURM cluster that answers, and sweeps that are watched on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.sweep_model import states

from genlab.sweeps import sweep_folder
from genlab.sweeps.sweep_folder import SweepFolder

LONG = ("trainer.save_every=200", "trainer.log_every=150")


SMALL = ("hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1")


def answers() -> bool:
    if shutil.which("scontrol") is None:
        return False
    return (
        "is UP"
        in subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    )


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """A SLURM that answers, for every test of a module that has this fixture."""
    yield from answering()


def answering() -> Iterator[None]:
    """Have a SLURM that answers, or skip with why there is none; end the one that was started."""
    script = os.environ.get("GENLAB_SLURM")
    if answers():
        yield
        return
    if not script:
        pytest.skip(
            "no SLURM answers `scontrol ping`, and GENLAB_SLURM names no script that starts one"
        )
    if os.geteuid() != 0:
        pytest.skip(f"no SLURM answers `scontrol ping`, and only root can start one with {script}")
    subprocess.run([script, "up"], check=True, timeout=300)
    yield
    # daemons take their pid files away as they end, which `down` may meet between looking and reading: it is then said again
    ends = [[script, "down"], [script, "down"]]
    while subprocess.run(ends.pop(), check=not ends, timeout=120).returncode:
        pass


class Sweep:
    """A sweep that another process has started, watched by what it leaves behind."""

    def __init__(self, cwd: Path, *command: str, seconds: float = 300) -> None:
        self.until = time.monotonic() + seconds
        self.log = open(cwd / "sweep.log", "a+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "genlab", *command], cwd=cwd, stderr=self.log, stdout=self.log
        )
        self.wait(lambda: list(cwd.glob("outputs/sweeps/*/plan.json")))
        (self.folder,) = cwd.glob("outputs/sweeps/*")

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def wait(self, ready) -> None:
        """Wait until something is so, and fail where the sweep ends before, or lasts too long."""
        while not ready():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < self.until, f"the sweep did not end in time\n{self.said()}"
            time.sleep(0.1)

    def begun(self, number: int) -> bool:
        """Whether a job is at work and has saved something."""
        return states(self.folder)[number].status == "running" and bool(
            list(self.folder.glob(f"{number}/checkpoints/*.pt"))
        )

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        while self.process.poll() is None:
            assert time.monotonic() < self.until, f"the sweep did not end in time\n{self.said()}"
            time.sleep(0.1)
        return self.process.returncode

    def clear(self) -> None:
        """Leave nothing behind, whatever the test has found."""
        self.process.kill()
        self.process.wait()
        arrays = {
            sweep_folder.submitted(job.folder).partition("_")[0]
            for job in SweepFolder(self.folder).jobs()
        } - {""}
        subprocess.run(["scancel", *arrays], check=False)
        self.log.close()
