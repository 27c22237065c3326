"""Start trainings quickly, kill and resume them, and check the result of each."""

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
from types import TracebackType
from typing import Any

from helpers.recipes import RECIPES, compose_config, small_overrides, states_equal

from genlab.runs.run_folder import RunFolder

# The five families, each with options that make a run last some seconds.
RUNS = {
    "vae": ("model=vae", "trainer.steps=300"),
    "dcgan": (
        "model=dcgan",
        "model.width=8",
        "dataset.size=16",
        "trainer.steps=45",
        "trainer.ema_decay=0.9",
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
TIMING_KEYS = {"seconds", "seconds_left", "items_per_s", "memory_mb"}
TIMEOUT_S = 300.0

NEVER = "\n"  # in no path
KILLED = -1  # in place of the exit code of a process that a signal killed

# A process that has imported all that training needs, and forks a child for each command.
FORK_SERVER = """
import contextlib, ctypes, json, os, signal, sys, tempfile
from hydra.core.global_hydra import GlobalHydra
from genlab.cli import main as cli
small = (
    "model=vae model.hidden=[4] trainer.steps=1 trainer.batch_size=4 "
    "device=cpu device.threads=1 out=run"
).split()
cwd = os.getcwd()
with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as devnull:
    os.chdir(folder)
    with contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(devnull):
        for arguments in (["train", *small], ["sample", "run=run", "n=1", "device=cpu"]):
            sys.argv = ["genlab", *arguments]
            cli.main()
            GlobalHydra.instance().clear()
            cli.unique_run_stamp.cache_clear()
    os.chdir(cwd)
os.environ.pop("HYDRA_FULL_ERROR", None)
for line in sys.stdin:
    order = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        continue
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive the server
    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDONLY) if stream == 0 else output, stream)
    sys.argv, code = ["genlab", *order["arguments"]], 1
    renames, replace = 0, os.replace
    def replace_and_maybe_die(old, new):
        # how every file that must not be half-written appears
        global renames
        renames += 1
        if order["kill_at"] == renames - 0.5 or order["kill_before"] in str(new):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)
        if order["kill_at"] == renames or order["kill_after"] in str(new):
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace_and_maybe_die
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
    with open(order["output"] + ".code", "w") as f:
        f.write(f"{code} {renames}")
    os._exit(code)
"""


class Process:
    """A command of genlab in a separate process."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self.path = pid, output

    @property
    def is_running(self) -> bool:
        try:  # the fork server never waits, so a process that has ended stays as a zombie
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def wait(self, seconds: float = TIMEOUT_S) -> bool:
        """Wait until the process ends; return whether it did."""
        until = time.monotonic() + seconds
        while self.is_running:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.send(signal.SIGKILL)
        assert self.wait()

    def finish(self) -> int:
        """Wait for the end, and return the exit code, or KILLED; a traceback is an error."""
        assert self.wait(), f"{self.output}\nit does not end"
        assert "Traceback" not in self.output, self.output
        code = Path(f"{self.path}.code")
        return int(code.read_text().split()[0]) if code.exists() else KILLED

    @property
    def num_renames(self) -> int:
        """The number of files that the ended process has written atomically."""
        return int(Path(f"{self.path}.code").read_text().split()[1])

    @property
    def output(self) -> str:
        """The output of the process so far."""
        return self.path.read_text(errors="replace")


class ForkServer:
    """Starts commands in processes that have done their imports: in 0.1 s instead of seconds."""

    def __enter__(self) -> ForkServer:
        self.folder, self.count = tempfile.TemporaryDirectory(), 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    def start(
        self,
        *arguments: object,
        cwd: Path | None = None,
        kill_at: float = 0.0,
        kill_before: str = NEVER,
        kill_after: str = NEVER,
    ) -> Process:
        """Start `genlab <arguments>`.

        Args:
            kill_at: the process kills itself after so many atomic writes; at n − 0.5, the n-th
                file is complete, but does not have its name yet.
            kill_before, kill_after: it kills itself around the atomic write of a file with this
                in its path.
        """
        self.count += 1
        output = Path(self.folder.name) / str(self.count)
        order = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "output": str(output),
            "kill_at": kill_at,
            "kill_before": kill_before,
            "kill_after": kill_after,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Process(int(self.process.stdout.readline()), output)


class TorchrunTraining:
    """A training by n processes that torchrun starts, the only one in its folder."""

    def __init__(self, n: int, *arguments: object, cwd: Path, output: Path) -> None:
        self.cwd, self.path = cwd, output
        with open(output, "w") as out:
            self.process = subprocess.Popen(
                [*TORCHRUN, f"--nproc-per-node={n}", "-m", "genlab", *map(str, arguments)],
                cwd=cwd,
                stdout=out,
                stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def output(self) -> str:
        """The output of the processes so far."""
        return self.path.read_text(errors="replace")

    def wait(self, condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> bool:
        """Wait for a condition or the time limit; return whether the training is still running."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until and not condition():
            time.sleep(0.02)
        return self.process.poll() is None

    def kill(self, rank: int) -> bool:
        """Kill one of the processes; return whether it was still there."""
        pid = rank_pids(self.cwd).get(f"RANK={rank}")
        if pid:
            os.kill(pid, signal.SIGKILL)
        return pid is not None

    def finish(self) -> int:
        """Wait for the end, and return torchrun's exit code; a traceback of genlab is an error."""
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in (*rank_pids(self.cwd).values(), self.process.pid):
                os.kill(pid, signal.SIGKILL)
            raise
        tracebacks = self.output.count("Traceback")
        of_torchrun = self.output.count("raise ChildFailedError")
        assert tracebacks <= of_torchrun, self.output
        return code


def rank_pids(cwd: Path) -> dict[str, int]:
    """Return the process ids of the trainings in a folder, by the variable that sets the rank."""
    pids = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = process.joinpath("cmdline").read_bytes()
            is_training = b"genlab" in command or b"submitit" in command
            if is_training and process.joinpath("cwd").resolve() == cwd:
                for variable in process.joinpath("environ").read_text().split("\0"):
                    if variable.startswith(("RANK=", "SLURM_PROCID=")):
                        pids[variable] = int(process.name)
    return pids


def train_or_resume(folder: Path, *overrides: str) -> tuple[str, ...]:
    """Return the arguments that start a training, or resume the run in the folder."""
    if (folder / "run.json").exists():
        return "train", f"resume={folder}"
    return "train", *overrides, f"out={folder}"


def newest_step(folder: Path) -> int:
    """Return the step of a run's newest checkpoint, or 0."""
    paths = RunFolder(folder).checkpoint_files()
    return int(paths[-1].stem.removeprefix("step_")) if paths else 0


def min_resume_step(folder: Path, save_every: int = SAVE_EVERY) -> int:
    """Return the earliest step from which a run that is killed now may resume.

    Before it logs a step, it has saved the checkpoints that were due before.
    """
    logged = [line["step"] for line in RunFolder(folder).read_log()]
    return max(0, logged[-1] - 1) // save_every * save_every if logged else 0


def start_step(output: str) -> int | None:
    """Return the step from which a training says that it starts, or None before that."""
    match = re.search(r" parameters\) (?:trains|continues from step ([\d,]+)) on ", output)
    return int((match[1] or "0").replace(",", "")) if match else None


def final_state_and_log(folder: Path) -> tuple[dict, list]:
    """Return the last state and the log of a run, without what may differ after a resume."""
    run = RunFolder(folder)
    state = {k: v for k, v in run.load_checkpoint().items() if k != "seconds"}
    return state, [
        {k: v for k, v in line.items() if k not in TIMING_KEYS} for line in run.read_log()
    ]


def differences(whole: Path, part: Path) -> list[str]:
    """Return the entries in which a run differs, bit for bit, from the uninterrupted one."""
    (state, log), (other_state, other_log) = final_state_and_log(whole), final_state_and_log(part)
    keys = [key for key in state if not states_equal(state[key], other_state.get(key))]
    return keys if log == other_log else [*keys, "stats.jsonl"]


# --- all that a run leaves ------------------------------------------------------------------------

MOMENT_STEPS = 12
MOMENT_OPTIONS = (
    *("trainer.batch_size=8", "device=cpu", "device.threads=1", "out=run"),
    *(f"trainer.steps={MOMENT_STEPS}", "trainer.log_every=4", "trainer.save_every=5"),
    *("trainer.preview_every=8", "trainer.validate_every=3", "trainer.keep_checkpoints=2"),
)
# What makes a trainer do within a few steps all that it ever does.
TRAINER_EXTRA = {
    "debias_vae": ("trainer.resample_every=5", "trainer.resample_after=5"),
    "progressive": ("trainer.fade_steps=2", "trainer.hold_steps=2"),
    "gan": ("trainer.ema_decay=0.9",),
}
# Evaluations, whose decisions are part of a run.
EVALUATED = ("trainer.evaluate_every=5", "evaluate.n=32", "evaluate.features=[pixels]")
RECIPE_EXTRA = {
    "dbn": ("trainer.stage_starts=[0,5]",),
    "dbm": ("trainer.stage_starts=[0,5]",),
    "srgan": ("trainer.stage_starts=[0,5]",),
    "vae": (*EVALUATED, "evaluate.metrics=[likelihood]", "trainer.monitor=nll_elbo"),
}
NEEDS_MORE = {"gpt_text", "next_frame"}  # a download
MOMENT_RECIPES = tuple(recipe for recipe in RECIPES if recipe not in NEEDS_MORE)


def small_training(recipe: str) -> tuple[str, ...]:
    """Return the arguments of a training of a recipe that takes about a second."""
    config = compose_config(f"model={recipe}", "out=unused")
    name, model = config["trainer"]["name"], config["model"]
    # its pictures take as many steps
    noise = ["model.timesteps=8"] if "timesteps" in model else []
    if "timesteps" in (model.get("diffusion") or {}):
        noise = ["model.diffusion.timesteps=8"]
    shrunk = [
        option.replace("'out=unused'", "'trainer.steps=3'")
        for option in small_overrides(recipe)
        if option.partition("=")[0] not in ("out", "device", "trainer.batch_size")
    ]
    extra = (*TRAINER_EXTRA.get(name, ()), *RECIPE_EXTRA.get(recipe, ()))
    return ("train", *shrunk, *noise, *MOMENT_OPTIONS, *extra)


def files_and_state(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves and that does not depend on its speed."""
    run = RunFolder(folder)
    state, log = final_state_and_log(folder)
    found: dict[str, Any] = {"log": log, "state": state}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".txt", ".yaml")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for path in (*run.checkpoint_files(), run.best_checkpoint):
        if path.exists():
            found[path.name] = {
                k: v for k, v in run.load_checkpoint(path).items() if k != "seconds"
            }
    found["files"] = sorted(p.name for p in folder.rglob("*") if p.name.endswith((".pt", ".part")))
    return found | tensorboard_values(folder)


def tensorboard_values(folder: Path) -> dict[str, Any]:
    """Return the curves and pictures that TensorBoard shows of a run, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    events.Reload()
    found: dict[str, Any] = {}
    for tag in events.Tags()["scalars"]:
        if not set(tag.split("/")) & TIMING_KEYS:
            found[f"tensorboard {tag}"] = [(e.step, e.value) for e in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        images = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
        found[f"tensorboard {tag}"] = images
    return found


def all_differences(whole: Path, part: Path) -> list[str]:
    """Return in what a run differs from the uninterrupted one: files, states, log and curves."""
    a, b = files_and_state(whole), files_and_state(part)
    return [key for key in sorted(a.keys() | b.keys()) if not states_equal(a.get(key), b.get(key))]
