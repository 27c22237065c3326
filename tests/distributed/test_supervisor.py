"""Ranks that monitor each other: an error or the death of one ends all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genlab.distributed.environment import (
    DistributedEnv,
    first_slurm_host,
    parse_slurm_task_counts,
    read_environment,
)
from genlab.errors import UserError
from genlab.sweeps import job_state

HELPERS = Path(__file__).parents[1] / "helpers"
SILENT_DEATH = "exited without an error message (killed, out of memory, or its machine is gone)"


def start_rank(command: list[str], rank: int, size: int) -> subprocess.Popen:
    """Start one rank of `size`."""
    variables = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ranks(folder: Path, *endings: str) -> list[subprocess.Popen]:
    """Start one rank for each ending; see helpers/supervisor_process.py."""
    command = [sys.executable, str(HELPERS / "supervisor_process.py"), str(folder), *endings]
    return [start_rank(command, rank, len(endings)) for rank in range(len(endings))]


def wait_for(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Return each process's exit code and its standard error."""
    texts = [process.communicate(timeout=60)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


@pytest.mark.parametrize("failing", [0, 1], ids=["rank 0", "another rank"])
def test_an_error_of_one_rank_ends_all_with_its_message(failing, tmp_path):
    endings = ["wait"] * 3
    endings[failing] = "user-error:the disk is full"
    began = time.monotonic()
    for rank, (code, text) in enumerate(wait_for(start_ranks(tmp_path, *endings))):
        assert code == (2 if rank == failing else 1)
        lines = text.splitlines()
        assert (
            len(lines) == 1
            and lines[0].startswith("genlab: ")
            and lines[0].endswith("the disk is full")
        )
        assert rank == failing or lines[0].startswith(f"genlab: rank {failing} on ")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("ending", ["kill", "fork-kill"])
@pytest.mark.parametrize("killed", [0, 1], ids=["rank 0", "another rank"])
def test_a_killed_rank_ends_all(killed, ending, tmp_path):
    endings = ["wait"] * 3
    endings[killed] = ending
    began = time.monotonic()
    results = wait_for(start_ranks(tmp_path, *endings))
    assert time.monotonic() - began < 15, "at once, though a worker of the killed one lives on"
    assert results[killed] == (-signal.SIGKILL, "")
    for code, text in [result for rank, result in enumerate(results) if rank != killed]:
        assert (
            code == 1
            and text.startswith(f"genlab: rank {killed} on ")
            and text.endswith(f" {SILENT_DEATH}\n")
        )
        assert text.count("\n") == 1


# Runs the helper with rank 0 as a job of a sweep, as `compose_and_run` runs a job.
JOB = """
import runpy, sys
from pathlib import Path
from genlab.cli import main as cli
from genlab.distributed.environment import read_environment
from genlab.sweeps import job_state

def as_job(run_command):
    def run_rank_0():
        try:
            run_command("train", [])
        except Exception as error:
            raise cli.coordinated_error(error) from error
    def run(*arguments):
        if read_environment().rank:
            return run_command(*arguments)
        return job_state.run_and_record_job(Path(sys.argv[1]) / "job", run_rank_0)
    return run

main = cli.main
def start():
    cli.compose_and_run = as_job(cli.compose_and_run)
    main()
cli.main = start
helper, *sys.argv = sys.argv[1], sys.argv[0], *sys.argv[2:]
runpy.run_path(helper, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        ("kill", "lost", SILENT_DEATH),
        ("user-error:the disk is full", "failed", "the disk is full"),
        ("bug:a bug", "failed", "LookupError: a bug"),
    ],
)
def test_a_job_with_a_killed_rank_is_lost_not_failed(ending, status, reason, tmp_path):
    """Rank 0, which writes the job's state, learns of the death by a failed communication."""
    endings = ["bug:gloo: Connection closed by peer", ending]
    code = JOB.replace("Path(sys.argv[1])", f"Path({str(tmp_path)!r})")
    helper = str(HELPERS / "supervisor_process.py")
    command = [sys.executable, "-c", code, helper, str(tmp_path), *endings]
    (exit_code, text), _ = wait_for([start_rank(command, rank, 2) for rank in range(2)])
    state = job_state.read_state(tmp_path / "job")
    assert (
        exit_code == 1
        and state.status == status
        and state.error.startswith("rank 1 on ")
        and state.error.endswith(reason)
    ), text


def test_an_error_of_all_ranks_is_reported_once(tmp_path):
    results = wait_for(start_ranks(tmp_path, *["user-error:no such option"] * 3))
    assert results == [(2, "genlab: no such option\n"), (2, ""), (2, "")]


def test_a_traceback_is_shown_once(tmp_path):
    (code, text), *others = wait_for(start_ranks(tmp_path, "bug:a bug", "wait", "wait"))
    assert (
        code == 1 and text.count("Traceback") == 1 and text.rstrip().endswith("LookupError: a bug")
    )
    assert all(
        code == 1 and text.endswith(": LookupError: a bug\n") and "Traceback" not in text
        for code, text in others
    )


def test_a_stopped_rank_is_not_taken_for_dead(tmp_path):
    """A process that does not respond for a while, as one that holds the GIL, is waited for."""
    processes = start_ranks(tmp_path, "exit", "wait", "wait")
    while len(list(tmp_path.glob("pid*"))) < 3:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert [p.poll() for p in processes] == [None] * 3, "rank 0 has left, and waits for the others"
    processes[1].send_signal(signal.SIGCONT)
    processes[1].kill()
    (code, text), _, (other_code, other_text) = wait_for(processes)
    assert (code, text) == (0, ""), "it was done"
    assert other_code == 1 and SILENT_DEATH in other_text


def test_all_ranks_exit_normally(tmp_path):
    assert wait_for(start_ranks(tmp_path, *["exit"] * 4)) == [(0, "")] * 4


# --- reading the environment ----------------------------------------------------------------------

STEP = {
    "SLURM_JOB_ID": "700",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[3-4]",
}
SBATCH_SHELL = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
SUBMITIT = {
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "5",
}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "9",
}
STEP_PORT = 15_000 + 16 * 700 + 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, DistributedEnv(), id="nothing"),
        pytest.param(TORCHRUN, DistributedEnv(1, 2, 1, 2, "h", 9), id="torchrun"),
        pytest.param(
            STEP | TORCHRUN, DistributedEnv(1, 2, 1, 2, "h", 9), id="torchrun in a SLURM step"
        ),
        pytest.param(
            STEP,
            DistributedEnv(3, 4, 1, 2, "n3", STEP_PORT, gpus_may_be_bound=True),
            id="SLURM step",
        ),
        pytest.param(
            STEP | {"MASTER_ADDR": "x", "MASTER_PORT": "8"},
            DistributedEnv(3, 4, 1, 2, "x", 8, gpus_may_be_bound=True),
            id="SLURM step with an address",
        ),
        pytest.param(
            STEP | {"SLURM_STEP_NUM_TASKS": "1"}, DistributedEnv(), id="SLURM step of one task"
        ),
        pytest.param(SBATCH_SHELL, DistributedEnv(), id="shell of sbatch"),
        pytest.param(SUBMITIT, DistributedEnv(1, 2, 1, 2, port=15_080), id="submitit"),
        pytest.param(
            STEP | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
            DistributedEnv(port=15_000),
            id="single process in a SLURM step",
        ),
    ],
)
def test_rank_and_size_are_read_from_the_environment(environment, expected):
    assert read_environment(environment) == expected


def test_a_requeued_step_uses_another_port():
    restarts = [STEP | {"SLURM_RESTART_COUNT": str(n)} for n in range(3)]
    assert len({read_environment(environment).port for environment in restarts}) == 3


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}],
)
def test_an_incomplete_environment_is_refused(environment):
    with pytest.raises(UserError, match="RANK|rank of this process"):
        read_environment(environment)


def test_the_command_line_reports_an_incomplete_environment(genlab, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2 without RANK" in genlab("train", "trainer.steps=1").error


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n[1-4]", "n1"),
        ("gpu-a[03,07-09],m1", "gpu-a03"),
        ("r[2-3]n[01-16],s", "r2n01"),
    ],
)
def test_first_host_of_a_slurm_node_list(nodes, host):
    assert first_slurm_host(nodes) == host


def test_slurm_task_counts_are_expanded():
    assert parse_slurm_task_counts("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("bound", "visible", "gpu"), [(True, 1, 0), (True, 4, 3), (False, 4, 3), (False, 1, 3)]
)
def test_a_task_with_one_visible_gpu_uses_it(bound, visible, gpu):
    assert DistributedEnv(local_rank=3, gpus_may_be_bound=bound).gpu_index(visible) == gpu
