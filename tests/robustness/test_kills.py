"""Processes that are killed or stopped at random moments resume bit for bit."""

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
    KILLED,
    MOMENT_RECIPES,
    MOMENT_STEPS,
    RUNS,
    SAVE_EVERY,
    TIMEOUT_S,
    ForkServer,
    all_differences,
    differences,
    min_resume_step,
    newest_step,
    small_training,
    start_step,
    train_or_resume,
)

from genlab.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """Start the training as the command line does, with all imports."""
    return subprocess.Popen(
        [sys.executable, "-m", "genlab", *train_or_resume(folder, *overrides, *COMMON)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for the end; return the exit code and the standard error."""
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in err, err
    return process.returncode, err


def check_start(output: str, least: int) -> None:
    """Check that a run did not resume from before step `least`."""
    step = start_step(output)
    assert step is None or step >= least, f"step {least} was saved, but the run resumed from {step}"


def check_kills(name: str, tmp_path: Path, kills: int, fork_server: ForkServer) -> None:
    """Kill and resume a run again and again, also during its start.

    Each finished run must equal the uninterrupted one, and a kill must not lose more than the steps
    since the last checkpoint.
    """
    rng = random.Random(name)
    began = time.monotonic()
    whole = tmp_path / "whole"
    assert fork_server.start(*train_or_resume(whole, *RUNS[name], *COMMON)).finish() == 0
    duration, last = time.monotonic() - began, newest_step(whole)
    part, done, least = tmp_path / "part", 0, 0
    while done < kills or newest_step(part) < last:
        process = fork_server.start(*train_or_resume(part, *RUNS[name], *COMMON))
        if done < kills and not process.wait(rng.uniform(0, 0.6 * duration)):
            process.kill()
            done += 1
            check_start(process.output, least)
            least = max(least, min_resume_step(part))
            continue
        assert process.finish() == 0
        check_start(process.output, least)
        assert differences(whole, part) == []
        if done < kills:  # it finished before its kill: start another run
            part, least = tmp_path / f"part{done}", 0
    print(f"{name}: {done} kills, {len(list(tmp_path.glob('part*')))} runs, all bit for bit")


def test_a_killed_process_resumes_exactly(tmp_path):
    """Started by the command line, without the fork server."""
    folder, whole = tmp_path / "part", tmp_path / "whole"
    process = start(folder, *RUNS["vae"])
    while not RunFolder(folder).checkpoint_files():
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    assert 0 < newest_step(folder) < 300
    least = min_resume_step(folder)
    code, err = finish(start(folder))
    assert code == 0 and start_step(err) >= max(least, SAVE_EVERY)
    assert finish(start(whole, *RUNS["vae"]))[0] == 0
    assert differences(whole, folder) == []
    # a difference of one weight would be detected
    run = RunFolder(folder)
    state = run.load_checkpoint()
    next(iter(state["model"].values())).view(-1)[0] += 1e-6
    run.save_checkpoint(state, keep=1)
    assert differences(whole, folder) == ["model"]


# The other families are killed forty times by the slow test below.
@pytest.mark.parametrize("name", ["vae", pytest.param("dcgan", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_exactly(name, tmp_path, fork_server):
    check_kills(name, tmp_path, 1, fork_server)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_forty_times_resumes_exactly(name, tmp_path, fork_server):
    check_kills(name, tmp_path, 40, fork_server)


def check_moments(
    recipe: str, tmp_path: Path, fork_server: ForkServer, moments: list[dict[str, object]]
) -> None:
    """Kill a training of each recipe at each moment: all that the resumed run leaves is equal."""
    whole, command = tmp_path / "whole", small_training(recipe)
    whole.mkdir()
    process = fork_server.start(*command, cwd=whole)
    assert process.finish() == 0, process.output
    rng = random.Random(recipe)
    for number, moment in enumerate(moments):
        part = tmp_path / f"part{number}"
        part.mkdir()
        if not moment:
            moment = {"kill_at": rng.randrange(1, 2 * process.num_renames) / 2}
        killed = fork_server.start(*command, cwd=part, **moment)
        if killed.finish() == 0:  # the model has no samples, so there is no such picture
            continue
        assert killed.finish() == KILLED, killed.output
        again = ["train", "resume=run"] if (part / "run" / "run.json").exists() else command
        resumed = fork_server.start(*again, cwd=part)
        assert resumed.finish() == 0, resumed.output
        found = all_differences(whole / "run", part / "run")
        assert found == [], f"{moment}: {found}\n{killed.output}\n{resumed.output}"
    done = fork_server.start("train", "resume=run", cwd=whole)
    assert done.finish() == 0 and "is done" in done.output, done.output


LAST_SAVE = f"step_{MOMENT_STEPS:09d}.pt"
LAST_PICTURE = f"step_{MOMENT_STEPS:09d}.png"


@pytest.mark.parametrize(
    ("recipe", "moment"),
    [
        ("debias_vae", {"kill_after": "step_000000005.pt"}),
        ("vae", {"kill_after": LAST_SAVE}),
        pytest.param("vae", {"kill_after": "step_000000010.pt"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_a_file_leaves_what_an_undisturbed_run_leaves(
    recipe, moment, tmp_path, fork_server
):
    """Between a checkpoint and the evaluation or the picture that follows it."""
    check_moments(recipe, tmp_path, fork_server, [moment])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", MOMENT_RECIPES)
def test_each_recipe_killed_at_five_moments_leaves_the_same_run(recipe, tmp_path, fork_server):
    """Three moments are random; two are around the last files."""
    moments = [{}, {}, {}, {"kill_after": LAST_SAVE}, {"kill_before": LAST_PICTURE}]
    check_moments(recipe, tmp_path, fork_server, moments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_and_the_run_can_be_resumed(number, tmp_path, fork_server):
    folder = tmp_path / "run"
    options = (
        "model=rbm",
        "trainer.steps=100000000",
        "trainer.save_every=100000000",
        *COMMON[:2],
        *COMMON[3:],
    )
    process = fork_server.start(*train_or_resume(folder, *options))
    while not (folder / "stats.jsonl").exists() or not (folder / "stats.jsonl").stat().st_size:
        time.sleep(0.05)
        assert process.is_running, process.output
    process.send(number)
    assert process.finish() == 128 + number
    step = RunFolder(folder).load_checkpoint()["step"]
    assert step > 0
    resumed = fork_server.start(
        "train", "model=rbm", *COMMON[:2], f"resume={folder}", f"trainer.steps={step + 5}"
    )
    assert resumed.finish() == 0, resumed.output
    assert RunFolder(folder).load_checkpoint()["step"] == step + 5
