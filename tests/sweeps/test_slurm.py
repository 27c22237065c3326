"""Sweeps on a real SLURM: jobs that are told to save, killed, preempted or fail, and end as if nothing had happened.

A SLURM that answers `scontrol ping` is used as it is. Else GENLAB_SLURM may name a script that starts one on this machine
(`<script> up`, `<script> down`; as root); it is taken down again. Where there is neither, the tests are skipped. The presets that
ask for GPUs need two on a node, as SLURM counts them: nothing computes there, and GresTypes=gpu on a copy of /dev/null will do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from helpers.cli_runner import run_here, run_process
from helpers.kill_harness import differences
from helpers.slurm_cluster import LONG, SMALL, Sweep, answering, cluster  # noqa: F401
from helpers.sweep_model import MINE, brief, states, write_model

from genlab.runs.run_folder import RunFolder
from genlab.sweeps import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.fixture
def started(tmp_path) -> Iterator[Callable[..., Sweep]]:
    """`started("train", "-m", …)`: a sweep that is taken off the cluster when the test has ended."""
    sweeps: list[Sweep] = []
    write_model(tmp_path)
    yield lambda *command, **how: sweeps.append(Sweep(tmp_path, *command, **how)) or sweeps[-1]
    for sweep in sweeps:
        sweep.clear()


def test_a_job_that_is_told_to_save_goes_on_and_one_that_fails_says_why(tmp_path, started):
    """The signal is that of a preemption; the scheduler starts the job again, with the same id."""
    whole = run_here(
        "train", *MINE, "seed=0", "trainer.steps=3000", *LONG, "out=whole", cwd=tmp_path
    )
    assert whole.code == 0, whole.err
    sweep = started("train", "-m", *MINE, "seed=0,1", "trainer.steps=3000", *LONG, *SMALL)
    sweep.wait(lambda: sweep.begun(0))
    subprocess.run(["scancel", "--signal=USR2", states(sweep.folder)[0].slurm], check=True)
    assert sweep.end() == 2 and "1 of 2 jobs failed" in sweep.said(), sweep.said()
    assert brief(sweep.folder) == [("done", 2), ("failed", 1)] and states(sweep.folder)[
        1
    ].error.endswith("by design")
    assert "started again" not in sweep.said(), "the scheduler did that"
    assert differences(tmp_path / "whole", sweep.folder / "0") == []


@pytest.mark.slow
def test_a_job_that_dies_goes_on_and_one_that_is_cancelled_does_not(tmp_path, started):
    command = ("train", "-m", *MINE, "seed=0,4,5", "trainer.steps=6000", *LONG, *SMALL)
    sweep = started(*command, seconds=600)
    sweep.wait(lambda: sweep.begun(0) and sweep.begun(1))
    os.kill(states(sweep.folder)[0].pid, signal.SIGKILL)
    subprocess.run(["scancel", states(sweep.folder)[1].slurm], check=True)
    assert sweep.end() == 2 and "1 of 3 jobs failed" in sweep.said(), sweep.said()
    assert [status for status, _ in brief(sweep.folder)] == ["done", "stopped", "done"]
    assert [starts for _, starts in brief(sweep.folder)] == [2, 1, 1]
    assert (
        "job 0 seed=0: lost: its process is gone" in sweep.said()
        and "it is started again" in sweep.said()
    )
    again = run_process("sweep", "resume", sweep.folder, cwd=tmp_path, timeout=600)
    assert again.code == 0 and brief(sweep.folder) == [("done", 2), ("done", 2), ("done", 1)], (
        again.err
    )


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_saves_and_waits_in_the_queue_again(started):
    """Its two minutes are up before it has ended, and it is told so 30 seconds before."""
    short = (
        "hydra.launcher.timeout_min=2",
        "hydra.launcher.signal_delay_s=30",
        "hydra.launcher.max_num_timeout=50",
    )
    sweep = started(
        "train", "-m", *MINE, "seed=6", "trainer.steps=2400", *LONG, *SMALL, *short, seconds=1200
    )
    assert sweep.end() == 0, sweep.said()
    assert [status for status, _ in brief(sweep.folder)] == ["done"] and states(sweep.folder)[
        0
    ].starts > 1
    assert "started again" not in sweep.said(), "the scheduler did that"


@pytest.mark.slow
def test_a_launcher_that_ends_leaves_its_jobs_to_the_cluster_and_finds_them_again(
    tmp_path, started
):
    command = (
        "train",
        "-m",
        *MINE,
        "seed=0,4",
        "trainer.steps=5000",
        *LONG,
        *SMALL,
        "hydra.launcher.array_parallelism=1",
    )
    sweep = started(*command, seconds=600)
    sweep.wait(lambda: sweep.begun(0))
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.end() == 130 and "SLURM goes on with 2 jobs, which `scancel" in sweep.said(), (
        sweep.said()
    )
    assert [state.status for state in states(sweep.folder)] == ["running", "waiting"]
    again = run_process(*command, cwd=tmp_path, timeout=600)
    assert again.code == 0 and again.err.count("was started before, and goes on") == 2, again.err
    assert "handed to SLURM" not in again.err and brief(sweep.folder) == [("done", 1), ("done", 1)]


def test_what_the_cluster_refuses_is_one_line(tmp_path):
    write_model(tmp_path)
    refused = run_here(
        "train", "-m", *MINE, "seed=0,1", *SMALL, "hydra.launcher.partition=nowhere", cwd=tmp_path
    )
    assert refused.code == 2 and refused.err.splitlines()[-1].startswith(
        "genlab: SLURM does not take the jobs: sbatch: error:"
    )
    wrong = run_here(
        "train", "-m", *MINE, "seed=0,1", *SMALL, "hydra.launcher.timeout_min=soon", cwd=tmp_path
    )
    assert "timeout_min" in wrong.error
    assert squeue.ask(["99999999"]) == {}, "a job that is not known is not an error"


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["slurm", "slurm_node"])
def test_a_preset_with_gpus(preset, tmp_path, started):
    """As somebody would hand a sweep to a cluster of smaller nodes: the rest is as the preset has it. The sums are the CPU's."""
    nodes = subprocess.run(
        ["sinfo", "--noheader", "--format=%G"], capture_output=True, text=True, check=True
    ).stdout
    if max(map(int, re.findall(r"gpu:(?:\w+:)?(\d+)", nodes)), default=0) < 2:
        pytest.skip("no node of this SLURM has two GPUs, or pretends to")
    processes = {"slurm": 1, "slurm_node": 2}[preset]
    of_the_site = ("hydra.launcher.cpus_per_task=1", f"hydra.launcher.mem_gb={processes}")
    if preset == "slurm_node":
        of_the_site += ("hydra.launcher.gpus_per_node=2", "hydra.launcher.tasks_per_node=2")
    sweep = started(
        "train",
        "-m",
        *MINE,
        "seed=0,4",
        "trainer.steps=60",
        f"hydra/launcher={preset}",
        *of_the_site,
    )
    assert sweep.end() == 0 and brief(sweep.folder) == [("done", 1), ("done", 1)], sweep.said()
    for number, (seed, state) in enumerate(zip((0, 4), states(sweep.folder), strict=True)):
        run = RunFolder(sweep.folder / str(number))
        assert run.info()["processes"] == processes and run.load()["step"] == 60
        seen = (
            (tmp_path / f"starts-{seed}").read_text().splitlines()
        )  # CUDA_VISIBLE_DEVICES of each process
        assert [gpus != "none" and len(gpus.split(",")) for gpus in seen] == [
            processes
        ] * processes, seen
        said = subprocess.run(
            ["scontrol", "show", "job", state.slurm], capture_output=True, text=True, check=True
        ).stdout
        assert {"Requeue=1", "TimeLimit=04:00:00", f"NumTasks={processes}"} <= set(said.split()), (
            said
        )


# --- the whole of it ----------------------------------------------------------------------------------------------------

MODELS = (
    "--config-dir",
    "confs",
    "model=vae,rbm,realnvp_points,mine",
    "seed=range(3)",
    "device=cpu",
    "device.threads=1",
)
TWELVE = ("trainer.steps=3000", "trainer.batch_size=32", *LONG, "trainer.preview_every=0")


@pytest.mark.slow
def test_twelve_jobs_two_preempted_one_killed_one_failing(tmp_path, started):
    """Four models × three seeds: eleven end as undisturbed runs do, bit for bit; the one that fails is told, and run again."""
    here = ("hydra.sweep.dir=whole", "hydra.launcher.n=2")
    local = run_process("train", "-m", *MODELS, *TWELVE, *here, cwd=tmp_path, timeout=1200)
    assert local.code == 2 and "11 done, 1 failed" in local.err, local.err

    one_a_node = ("hydra/launcher=slurm_preemptible", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=2",
                  "hydra.launcher.mem_gb=1")  # fmt: skip
    sweep = started("train", "-m", *MODELS, *TWELVE, *one_a_node, seconds=1200)
    preempt(sweep, 0)
    kill(sweep, 3)
    preempt(sweep, 6)
    assert sweep.end() == 2 and "1 of 12 jobs failed" in sweep.said(), sweep.said()
    print(sweep.said())
    failing = 10  # model=mine seed=1
    found = brief(sweep.folder)
    assert found[failing] == ("failed", 1) and states(sweep.folder)[failing].error.endswith(
        "by design"
    )
    assert [pair for n, pair in enumerate(found) if n != failing] == [
        ("done", 2 if n in (0, 3, 6) else 1) for n in range(12) if n != failing
    ]
    for number in range(12):
        if number != failing:
            assert differences(tmp_path / "whole" / str(number), sweep.folder / str(number)) == []

    (tmp_path / "mended").touch()
    again = run_process("sweep", "rerun", sweep.folder, cwd=tmp_path)
    assert again.code == 0 and brief(sweep.folder) == [
        *found[:failing],
        ("done", 2),
        *found[failing + 1 :],
    ], again.err


def node(sweep: Sweep, number: int) -> str:
    said = ["squeue", "--noheader", "--format=%N", f"--jobs={states(sweep.folder)[number].slurm}"]
    return subprocess.run(said, capture_output=True, text=True, check=True).stdout.strip()


def preempt(sweep: Sweep, number: int) -> None:
    """Let a job of a partition that goes before ours have the node on which a job is at work."""
    sweep.wait(lambda: sweep.begun(number))
    urgent = [
        "sbatch",
        "--partition=urgent",
        "--exclusive",
        f"--nodelist={node(sweep, number)}",
        "--output=/dev/null",
    ]
    subprocess.run([*urgent, "--wrap=sleep 1"], check=True, capture_output=True)


def kill(sweep: Sweep, number: int) -> None:
    """Kill a job's process with no warning."""
    sweep.wait(lambda: sweep.begun(number))
    os.kill(states(sweep.folder)[number].pid, signal.SIGKILL)
