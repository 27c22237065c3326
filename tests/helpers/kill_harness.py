"""Trainings that are disturbed: how to start many of them quickly, and what must come of each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from helpers.recipes import same

from genlab.runs.run_folder import RunFolder

# The five families, each with what makes a run last some seconds.
RUNS = {
    "vae": ("model=vae", "trainer.steps=300"),
    "dcgan": (
        "model=dcgan",
        "model.width=8",
        "dataset.size=16",
        "trainer.steps=45",
        "trainer.ema=0.9",
    ),
    "realnvp": ("model=realnvp_points", "trainer.steps=100"),
    "rbm": ("model=rbm", "trainer.steps=450"),
    "ddpm": (
        "model=ddpm_small",
        "model.timesteps=100",
        "trainer.steps=45",
        "trainer.batch_size=16",
    ),
}
SAVE_EVERY = 10
COMMON = (
    "device=cpu",
    "device.threads=1",
    f"trainer.save_every={SAVE_EVERY}",
    "trainer.log_every=7",
    "trainer.preview_every=40",
)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
NOISE = {"seconds", "seconds_left", "items_per_s", "memory_mb"}

UNHEARD = -1  # the end of a process that a signal killed

NURSERY = """
import contextlib, ctypes, json, os, signal, sys, tempfile
from hydra.core.global_hydra import GlobalHydra
from genlab.cli import main as cli
small = "model=vae model.hidden=[4] trainer.steps=1 trainer.batch_size=4 device=cpu device.threads=1 out=run".split()
here = os.getcwd()
with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:  # what a training imports is there from now on
    os.chdir(folder)
    with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        for words in (["train", *small], ["sample", "run=run", "n=1", "device=cpu"]):
            sys.argv = ["genlab", *words]
            cli.main()
            GlobalHydra.instance().clear()
            cli.stamp.cache_clear()
    os.chdir(here)
os.environ.pop("HYDRA_FULL_ERROR", None)
for line in sys.stdin:
    order = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        continue
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: none outlives who asked for it
    os.setsid()
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDONLY) if stream == 0 else said, stream)
    sys.argv, code = ["genlab", *order["words"]], 1
    try:
        os.chdir(order["cwd"])
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    with open(order["said"] + ".code", "w") as f:
        f.write(str(code))
    os._exit(code)
"""


class Process:
    """One command of genlab's in a process of its own."""

    def __init__(self, pid: int, said: Path) -> None:
        self.pid, self.path = pid, said

    @property
    def running(self) -> bool:
        try:  # the nursery never waits: who has ended stays as a zombie
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def wait(self, seconds: float = 300) -> bool:
        """Wait until the process ends; return whether it did."""
        until = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.wait()

    def finish(self) -> int:
        """Wait for the end, and return the exit code, or UNHEARD; a traceback is an error."""
        assert self.wait(), f"{self.said}\nit does not end"
        assert "Traceback" not in self.said, self.said
        code = Path(f"{self.path}.code")
        return int(code.read_text()) if code.exists() else UNHEARD

    @property
    def said(self) -> str:
        return self.path.read_text(errors="replace")


class Nursery:
    """Starts commands in processes that have their imports behind them: a tenth of a second instead of some."""

    def __enter__(self) -> Nursery:
        self.folder, self.count = tempfile.TemporaryDirectory(), 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    def start(self, *words: object, cwd: Path | None = None) -> Process:
        """Start `genlab <words>`."""
        self.count += 1
        said = Path(self.folder.name) / str(self.count)
        order = {
            "words": [str(word) for word in words],
            "cwd": str(cwd or Path.cwd()),
            "said": str(said),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Process(int(self.process.stdout.readline()), said)


class Together:
    """One training by n processes that torchrun starts, in a folder where no other processes have a rank."""

    def __init__(self, n: int, *words: object, cwd: Path, said: Path) -> None:
        self.cwd, self.path = cwd, said
        with open(said, "w") as out:
            self.process = subprocess.Popen(
                [*TORCHRUN, f"--nproc-per-node={n}", "-m", "genlab", *map(str, words)],
                cwd=cwd, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.path.read_text(errors="replace")

    def wait(self, ready: Callable[[], bool], seconds: float = 300) -> bool:
        """Wait until something is so, or so long; return whether the training is at work."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until and not ready():
            time.sleep(0.02)
        return self.process.poll() is None

    def kill(self, rank: int) -> bool:
        """Kill one of the processes; return whether it was still there."""
        process = workers(self.cwd).get(f"RANK={rank}")
        if process:
            os.kill(process, signal.SIGKILL)
        return process is not None

    def finish(self) -> int:
        """Wait for the end, and return torchrun's exit code; a traceback of genlab's is an error."""
        try:
            code = self.process.wait(300)
        except subprocess.TimeoutExpired:
            for one in (*workers(self.cwd).values(), self.process.pid):
                os.kill(one, signal.SIGKILL)
            raise
        assert self.said.count("Traceback") <= self.said.count("raise ChildFailedError"), (
            self.said
        )  # torchrun's own
        return code


def workers(cwd: Path) -> dict[str, int]:
    """Return the process ids of the trainings in a folder by the variable that tells each its rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = process.joinpath("cmdline").read_bytes()
            if process.joinpath("cwd").resolve() == cwd and (
                b"genlab" in command or b"submitit" in command
            ):
                for variable in process.joinpath("environ").read_text().split("\0"):
                    if variable.startswith(("RANK=", "SLURM_PROCID=")):
                        found[variable] = int(process.name)
    return found


def command(folder: Path, *overrides: str) -> tuple[str, ...]:
    """Return what starts the training, or goes on with what an earlier start left in the folder."""
    goes_on = (folder / "run.json").exists()
    return ("train", f"resume={folder}") if goes_on else ("train", *overrides, f"out={folder}")


def newest(folder: Path) -> int:
    """Return the step of a run's newest checkpoint, 0 where there is none."""
    steps = RunFolder(folder).steps()
    return int(steps[-1].stem.removeprefix("step_")) if steps else 0


def promised(folder: Path, save_every: int = SAVE_EVERY) -> int:
    """Return the step at or after which a run that dies now goes on: before it logs a step, it has saved what was due."""
    logged = [line["step"] for line in RunFolder(folder).history()]
    return max(0, logged[-1] - 1) // save_every * save_every if logged else 0


def begun(said: str) -> int | None:
    """Return the step at which a training says that it begins or goes on; None: it has not come so far."""
    found = re.search(r" parameters\) (?:trains|goes on from step ([\d,]+)) on ", said)
    return found and int((found[1] or "0").replace(",", ""))


def outcome(folder: Path) -> tuple[dict, list]:
    """Return all that must not depend on what disturbed a run: the last state, and the log."""
    run = RunFolder(folder)
    state = {k: v for k, v in run.load().items() if k != "seconds"}
    return state, [{k: v for k, v in line.items() if k not in NOISE} for line in run.history()]


def differences(whole: Path, part: Path) -> list[str]:
    """Return in what a run is not the undisturbed one, bit for bit."""
    (a, lines_a), (b, lines_b) = outcome(whole), outcome(part)
    return [key for key in a if not same(a[key], b.get(key))] + ["stats.jsonl"] * (
        lines_a != lines_b
    )
