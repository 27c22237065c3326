"""Sweeps on a real SLURM: interrupted, killed and preempted jobs end as if undisturbed.

If a SLURM answers `scontrol ping`, it is used. Otherwise GENLAB_SLURM may name a script that starts
one on this machine (`<script> up` and `<script> down`, as root). Without either, the tests are
skipped. The presets with GPUs need a node with two GPUs in SLURM's configuration. Nothing computes
on them: GresTypes=gpu on a copy of /dev/null is enough.
"""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from helpers.cli_runner import run_here, run_process
from helpers.kill_harness import differences
from helpers.slurm_cluster import LONG_RUN, ONE_CPU_JOB, Sweep, cluster, running_cluster  # noqa: F401
from helpers.sweep_model import MINE, states, status_and_starts, write_model

from genlab.runs.run_folder import RunFolder
from genlab.sweeps import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.fixture
def start_sweep(tmp_path) -> Iterator[Callable[..., Sweep]]:
    """`start_sweep("train", "-m", …)`: a sweep that is cancelled at the end of the test."""
    sweeps: list[Sweep] = []
    write_model(tmp_path)
    yield lambda *command, **how: sweeps.append(Sweep(tmp_path, *command, **how)) or sweeps[-1]
    for sweep in sweeps:
        sweep.cancel()


def test_preempted_job_resumes_and_failed_job_reports(tmp_path, start_sweep):
    """The signal is that of a preemption; the scheduler restarts the job with the same id."""
    whole = run_here(
        "train", *MINE, "seed=0", "trainer.steps=3000", *LONG_RUN, "out=whole", cwd=tmp_path
    )
    assert whole.code == 0, whole.err
    sweep = start_sweep(
        "train", "-m", *MINE, "seed=0,1", "trainer.steps=3000", *LONG_RUN, *ONE_CPU_JOB
    )
    sweep.wait(lambda: sweep.has_saved(0))
    subprocess.run(["scancel", "--signal=USR2", states(sweep.folder)[0].slurm], check=True)
    assert sweep.wait_for_end() == 2 and "1 of 2 jobs failed" in sweep.output(), sweep.output()
    assert status_and_starts(sweep.folder) == [("done", 2), ("failed", 1)] and states(sweep.folder)[
        1
    ].error.endswith("by design")
    assert "restarting it" not in sweep.output(), "the scheduler did that"
    assert differences(tmp_path / "whole", sweep.folder / "0") == []


@pytest.mark.slow
def test_killed_job_restarts_and_cancelled_job_does_not(tmp_path, start_sweep):
    command = ("train", "-m", *MINE, "seed=0,4,5", "trainer.steps=6000", *LONG_RUN, *ONE_CPU_JOB)
    sweep = start_sweep(*command, seconds=600)
    sweep.wait(lambda: sweep.has_saved(0) and sweep.has_saved(1))
    os.kill(states(sweep.folder)[0].pid, signal.SIGKILL)
    subprocess.run(["scancel", states(sweep.folder)[1].slurm], check=True)
    assert sweep.wait_for_end() == 2 and "1 of 3 jobs failed" in sweep.output(), sweep.output()
    assert [status for status, _ in status_and_starts(sweep.folder)] == ["done", "stopped", "done"]
    assert [starts for _, starts in status_and_starts(sweep.folder)] == [2, 1, 1]
    logs = "".join(log.read_text() for log in sweep.folder.glob(".submitit/*/*_0_log.err"))
    assert re.search("job 0 seed=0: lost: its process is gone.*restarting it", logs), (
        "its worker did"
    )
    again = run_process("sweep", "resume", sweep.folder, cwd=tmp_path, timeout=600)
    assert again.code == 0 and status_and_starts(sweep.folder) == [
        ("done", 2),
        ("done", 2),
        ("done", 1),
    ], again.err


@pytest.mark.slow
def test_job_saves_at_its_time_limit_and_is_queued_again(start_sweep):
    """The limit of two minutes is too short; SLURM sends a signal 30 seconds before."""
    short = (
        "hydra.launcher.timeout_min=2",
        "hydra.launcher.signal_delay_s=30",
        "hydra.launcher.max_num_timeout=50",
    )
    sweep = start_sweep(
        "train",
        "-m",
        *MINE,
        "seed=6",
        "trainer.steps=2400",
        *LONG_RUN,
        *ONE_CPU_JOB,
        *short,
        seconds=1200,
    )
    assert sweep.wait_for_end() == 0, sweep.output()
    assert [status for status, _ in status_and_starts(sweep.folder)] == ["done"] and states(
        sweep.folder
    )[0].starts > 1
    assert "restarting it" not in sweep.output(), "the scheduler did that"


@pytest.mark.slow
def test_jobs_continue_without_the_launcher_and_the_next_one_finds_them(tmp_path, start_sweep):
    command = (
        "train",
        "-m",
        *MINE,
        "seed=0,4",
        "trainer.steps=5000",
        *LONG_RUN,
        *ONE_CPU_JOB,
        "hydra.launcher.array_parallelism=1",
    )
    sweep = start_sweep(*command, seconds=600)
    sweep.wait(lambda: sweep.has_saved(0))
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait_for_end() == 130 and "SLURM continues 2 jobs; `scancel" in sweep.output(), (
        sweep.output()
    )
    assert [state.status for state in states(sweep.folder)] == ["running", "waiting"]
    again = run_process(*command, cwd=tmp_path, timeout=600)
    # The only worker that may run does both.
    assert again.code == 0 and again.err.count("started earlier, still running") == 1, again.err
    assert "to SLURM" not in again.err and status_and_starts(sweep.folder) == [
        ("done", 1),
        ("done", 1),
    ]


def test_refusal_of_slurm_is_one_line(tmp_path):
    write_model(tmp_path)
    refused = run_here(
        "train",
        "-m",
        *MINE,
        "seed=0,1",
        *ONE_CPU_JOB,
        "hydra.launcher.partition=nowhere",
        cwd=tmp_path,
    )
    assert refused.code == 2 and refused.err.splitlines()[-1].startswith(
        "genlab: SLURM refuses the jobs: sbatch: error:"
    )
    assert "set hydra.launcher.partition" in refused.err.splitlines()[-1]
    wrong = run_here(
        "train",
        "-m",
        *MINE,
        "seed=0,1",
        *ONE_CPU_JOB,
        "hydra.launcher.timeout_min=soon",
        cwd=tmp_path,
    )
    assert "timeout_min" in wrong.error
    assert squeue.query_slurm_states(["99999999"]) == {}, "an unknown job is not an error"


@pytest.fixture
def limit_of_three_jobs() -> Iterator[None]:
    """Let the user have three jobs in the queue; skip where SLURM does not enforce that."""
    config = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    if not re.search(r"AccountingStorageEnforce\s*=.*limits", config.stdout):
        pytest.skip("this SLURM does not enforce limits (AccountingStorageEnforce=limits)")
    change = ["sacctmgr", "--immediate", "modify", "user", getpass.getuser(), "set"]
    if subprocess.run([*change, "MaxSubmitJobs=3"], capture_output=True).returncode:
        pytest.skip("this user may not set limits of SLURM")
    yield
    subprocess.run([*change, "MaxSubmitJobs=-1"], check=True, capture_output=True)


@pytest.mark.slow
def test_twelve_jobs_with_a_limit_of_three(start_sweep, limit_of_three_jobs):
    tiny = ("model=rbm", "trainer.steps=2", "trainer.batch_size=8", "device=cpu")
    sweep = start_sweep("train", "-m", *tiny, "seed=range(12)", *ONE_CPU_JOB, seconds=600)
    assert sweep.wait_for_end() == 0, sweep.output()
    assert status_and_starts(sweep.folder) == [("done", 1)] * 12
    assert "submitted 3 jobs to SLURM" in sweep.output()
    assert sweep.output().count("SLURM accepts no more jobs for now") == 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["slurm", "slurm_node"])
def test_preset_with_gpus(preset, tmp_path, start_sweep):
    """The preset with the resources of a smaller cluster; the computations run on the CPU."""
    nodes = subprocess.run(
        ["sinfo", "--noheader", "--format=%G"], capture_output=True, text=True, check=True
    ).stdout
    if max(map(int, re.findall(r"gpu:(?:\w+:)?(\d+)", nodes)), default=0) < 2:
        pytest.skip("no node of this SLURM has two GPUs, or pretends to")
    processes = {"slurm": 1, "slurm_node": 2}[preset]
    of_the_site = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
    if preset == "slurm_node":
        of_the_site += ("hydra.launcher.gpus_per_node=2", "hydra.launcher.tasks_per_node=2")
    sweep = start_sweep(
        "train",
        "-m",
        *MINE,
        "seed=0,4",
        "trainer.steps=60",
        f"hydra/launcher={preset}",
        *of_the_site,
    )
    assert sweep.wait_for_end() == 0 and status_and_starts(sweep.folder) == [
        ("done", 1),
        ("done", 1),
    ], sweep.output()
    for number, (seed, state) in enumerate(zip((0, 4), states(sweep.folder), strict=True)):
        run = RunFolder(sweep.folder / str(number))
        assert run.metadata()["processes"] == processes and run.load_checkpoint()["step"] == 60
        # CUDA_VISIBLE_DEVICES of each process
        seen = (tmp_path / f"starts-{seed}").read_text().splitlines()
        assert [gpus != "none" and len(gpus.split(",")) for gpus in seen] == [
            processes
        ] * processes, seen
        said = subprocess.run(
            ["scontrol", "show", "job", state.slurm], capture_output=True, text=True, check=True
        ).stdout
        assert {"Requeue=1", "TimeLimit=04:00:00", f"NumTasks={processes}"} <= set(said.split()), (
            said
        )


# --- a whole sweep --------------------------------------------------------------------------------

MODELS = (
    "--config-dir",
    "confs",
    "model=vae,rbm,realnvp_points,mine",
    "seed=range(3)",
    "device=cpu",
    "device.threads=1",
)
TWELVE = ("trainer.steps=3000", "trainer.batch_size=32", *LONG_RUN, "trainer.preview_every=0")


@pytest.mark.slow
def test_twelve_jobs_with_two_preempted_one_killed_one_failing(tmp_path, start_sweep):
    """Eleven jobs equal undisturbed runs bit for bit; the failed one reruns."""
    here = ("hydra.sweep.dir=whole", "hydra.launcher.n=2")
    local = run_process("train", "-m", *MODELS, *TWELVE, *here, cwd=tmp_path, timeout=1200)
    assert local.code == 2 and "11 done, 1 failed" in local.err, local.err

    one_a_node = (
        "hydra/launcher=slurm_preemptible",
        "hydra.launcher.gpus_per_node=null",
        "hydra.launcher.cpus_per_task=2",
        "hydra.launcher.mem_gb=3",
    )
    sweep = start_sweep("train", "-m", *MODELS, *TWELVE, *one_a_node, seconds=1200)
    preempt(sweep, 0)
    kill(sweep, 3)
    preempt(sweep, 6)
    assert sweep.wait_for_end() == 2 and "1 of 12 jobs failed" in sweep.output(), sweep.output()
    print(sweep.output())
    failing = 10  # model=mine seed=1
    found = status_and_starts(sweep.folder)
    assert found[failing] == ("failed", 1) and states(sweep.folder)[failing].error.endswith(
        "by design"
    )
    assert [pair for n, pair in enumerate(found) if n != failing] == [
        ("done", 2 if n in (0, 3, 6) else 1) for n in range(12) if n != failing
    ]
    for number in range(12):
        if number != failing:
            assert differences(tmp_path / "whole" / str(number), sweep.folder / str(number)) == []

    (tmp_path / "repaired").touch()
    again = run_process("sweep", "rerun", sweep.folder, cwd=tmp_path)
    assert again.code == 0 and status_and_starts(sweep.folder) == [
        *found[:failing],
        ("done", 2),
        *found[failing + 1 :],
    ], again.err


def node_of_job(sweep: Sweep, number: int) -> str:
    command = [
        "squeue",
        "--noheader",
        "--format=%N",
        f"--jobs={states(sweep.folder)[number].slurm}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def preempt(sweep: Sweep, number: int) -> None:
    """Preempt a running job by a job of a partition with higher priority on its node."""
    sweep.wait(lambda: sweep.has_saved(number))
    urgent = [
        "sbatch",
        "--partition=urgent",
        "--exclusive",
        f"--nodelist={node_of_job(sweep, number)}",
        "--output=/dev/null",
    ]
    subprocess.run([*urgent, "--wrap=sleep 1"], check=True, capture_output=True)


def kill(sweep: Sweep, number: int) -> None:
    """Kill a job's process without warning."""
    sweep.wait(lambda: sweep.has_saved(number))
    os.kill(states(sweep.folder)[number].pid, signal.SIGKILL)
