"""Real processes, killed with no warning at random moments, and asked politely: every resume is bit for bit the whole run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipes import same

from genlab.training.run import RunFolder

# The five families, each with what makes a run last a few seconds.
RUNS = {
    "vae": ("model=vae", "trainer.steps=600"),
    "dcgan": ("model=dcgan", "model.width=8", "dataset.size=16", "trainer.steps=60", "trainer.ema=0.9"),
    "realnvp": ("model=realnvp_points", "trainer.steps=150"),
    "rbm": ("model=rbm", "trainer.steps=1000"),
    "ddpm": ("model=ddpm_small", "model.timesteps=100", "trainer.steps=60", "trainer.batch_size=16"),
}
COMMON = ("device=cpu", "device.threads=1", "trainer.save_every=10", "trainer.log_every=15", "trainer.preview_every=40")
NOISE = {"seconds", "seconds_left", "items_per_s", "memory_mb"}


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """Start the training, or go on with what an earlier start left in the folder."""
    goes_on = (folder / "run.json").exists()
    what = (f"resume={folder}",) if goes_on else (*overrides, *COMMON, f"out={folder}")
    return subprocess.Popen(
        [sys.executable, "-m", "genlab", "train", *what],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> int:
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode


def outcome(folder: Path) -> tuple[dict, list]:
    """Return all that must not depend on the kills: the last state, and the log."""
    run = RunFolder(folder)
    state = {k: v for k, v in run.load().items() if k != "seconds"}
    return state, [{k: v for k, v in line.items() if k not in NOISE} for line in run.history()]


def check_kills(name: str, tmp_path: Path, kills: int) -> None:
    chance = random.Random(name)
    began = time.monotonic()
    assert finish(start(tmp_path / "whole", *RUNS[name])) == 0
    lasted = time.monotonic() - began
    part, done = tmp_path / "part", 0
    while done < kills:
        process = start(part, *RUNS[name])
        try:
            process.wait(chance.uniform(0, 1.1 * lasted))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            continue
        assert finish(process) == 0
        check_equal(tmp_path / "whole", part)  # it finished before its kill came: begin another
        part = tmp_path / f"part{done}"
    while not RunFolder(part).steps() or RunFolder(part).load()["step"] < RunFolder(tmp_path / "whole").load()["step"]:
        assert finish(start(part, *RUNS[name])) == 0
    check_equal(tmp_path / "whole", part)


def check_equal(whole: Path, part: Path) -> None:
    (a, lines_a), (b, lines_b) = outcome(whole), outcome(part)
    assert [key for key in a if not same(a[key], b[key])] == []
    assert lines_a == lines_b


@pytest.mark.parametrize("name", RUNS)
def test_a_kill_loses_nothing(name, tmp_path):
    check_kills(name, tmp_path, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twenty_kills_lose_nothing(name, tmp_path):
    check_kills(name, tmp_path, kills=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "model=rbm", "trainer.steps=100000000", "trainer.save_every=100000000")
    while not (folder / "stats.jsonl").exists() or not (folder / "stats.jsonl").stat().st_size:
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    assert finish(process) == 128 + number
    step = RunFolder(folder).load()["step"]
    assert step > 0
    again = subprocess.run(
        [sys.executable, "-m", "genlab", "train", "model=rbm", *COMMON, f"resume={folder}", f"trainer.steps={step + 5}"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert RunFolder(folder).load()["step"] == step + 5
