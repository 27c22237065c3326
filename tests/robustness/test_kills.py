"""Real processes, killed with no warning at random moments, and asked politely: every resume is bit for bit the whole run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.kill_harness import (
    COMMON,
    RUNS,
    SAVE_EVERY,
    Nursery,
    begun,
    command,
    differences,
    newest,
    promised,
)

from genlab.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """Start the training as the command line does, imports and all."""
    return subprocess.Popen(
        [sys.executable, "-m", "genlab", *command(folder, *overrides, *COMMON)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for the end; return the exit code and what was said."""
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, err


def check_begin(said: str, least: int) -> None:
    at = begun(said)
    assert at is None or at >= least, f"step {least} was saved, and the run went on from {at}"


def check_kills(name: str, tmp_path: Path, kills: int, nursery: Nursery) -> None:
    """Kill a run again and again, in its start-up too, until that was often enough; each run of it must end as the whole one.

    None loses more than the steps since its last checkpoint.
    """
    chance = random.Random(name)
    began = time.monotonic()
    assert nursery.start(*command(tmp_path / "whole", *RUNS[name], *COMMON)).finish() == 0
    lasted, last = time.monotonic() - began, newest(tmp_path / "whole")
    part, done, least = tmp_path / "part", 0, 0
    while done < kills or newest(part) < last:
        process = nursery.start(*command(part, *RUNS[name], *COMMON))
        if done < kills and not process.wait(chance.uniform(0, 0.6 * lasted)):
            process.kill()
            done += 1
            check_begin(process.said, least)
            least = max(least, promised(part))
            continue
        assert process.finish() == 0
        check_begin(process.said, least)
        assert differences(tmp_path / "whole", part) == []
        if done < kills:  # it finished before its kill came: begin another
            part, least = tmp_path / f"part{done}", 0
    print(f"{name}: {done} kills, {len(list(tmp_path.glob('part*')))} runs, all bit for bit")


def test_a_kill_of_a_process_loses_nothing(tmp_path):
    """From the first import on, without the nursery."""
    folder, whole = tmp_path / "part", tmp_path / "whole"
    process = start(folder, *RUNS["vae"])
    while not RunFolder(folder).steps():
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    assert 0 < newest(folder) < 300
    least = promised(folder)
    code, said = finish(start(folder))
    assert code == 0 and begun(said) >= max(least, SAVE_EVERY)
    assert finish(start(whole, *RUNS["vae"]))[0] == 0
    assert differences(whole, folder) == []
    run = RunFolder(folder)
    state = run.load()
    next(iter(state["model"].values())).view(-1)[0] += 1e-6
    run.save(state, keep=1)
    assert differences(whole, folder) == ["model"]  # it would be seen


@pytest.mark.parametrize("name", RUNS)
def test_a_kill_loses_nothing(name, tmp_path, nursery):
    check_kills(name, tmp_path, 1, nursery)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_forty_kills_lose_nothing(name, tmp_path, nursery):
    check_kills(name, tmp_path, 40, nursery)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number, tmp_path, nursery):
    folder = tmp_path / "run"
    options = (
        "model=rbm",
        "trainer.steps=100000000",
        "trainer.save_every=100000000",
        *COMMON[:2],
        *COMMON[3:],
    )
    process = nursery.start(*command(folder, *options))
    while not (folder / "stats.jsonl").exists() or not (folder / "stats.jsonl").stat().st_size:
        time.sleep(0.05)
        assert process.running, process.said
    process.send(number)
    assert process.finish() == 128 + number
    step = RunFolder(folder).load()["step"]
    assert step > 0
    again = nursery.start(
        "train", "model=rbm", *COMMON[:2], f"resume={folder}", f"trainer.steps={step + 5}"
    )
    assert again.finish() == 0, again.said
    assert RunFolder(folder).load()["step"] == step + 5
