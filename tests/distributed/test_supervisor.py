"""Processes that only watch each other, with real deaths: what one ends of reaches all others, and only that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genlab.distributed.environment import World, first_host, tasks, world
from genlab.errors import UserError
from genlab.sweeps import sweep_folder

HELPERS = Path(__file__).parents[1] / "helpers"


def started(folder: Path, *ends: str) -> list[subprocess.Popen]:
    """Start a process for each way to end."""
    return [
        subprocess.Popen(
            [sys.executable, str(HELPERS / "supervisor_process.py"), str(folder), *ends],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(len(ends)), "MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(len(ends))
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Return each process's exit code and what it said."""
    said = [process.communicate(timeout=60)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


SILENT = "ended without a word (killed, out of memory, or its machine is gone)"


@pytest.mark.parametrize("where", [0, 1], ids=["the first", "another"])
def test_last_words_reach_all(where, tmp_path):
    ends = ["wait"] * 3
    ends[where] = "words:the disk is full"
    began = time.monotonic()
    for rank, (code, said) in enumerate(ended(started(tmp_path, *ends))):
        assert code == (2 if rank == where else 1)
        lines = said.splitlines()
        assert (
            len(lines) == 1
            and lines[0].startswith("genlab: ")
            and lines[0].endswith("the disk is full")
        )
        assert rank == where or lines[0].startswith(f"genlab: rank {where} on ")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("how", ["kill", "fork-kill"])
@pytest.mark.parametrize("where", [0, 1], ids=["the first", "another"])
def test_silence_reaches_all(where, how, tmp_path):
    ends = ["wait"] * 3
    ends[where] = how
    began = time.monotonic()
    found = ended(started(tmp_path, *ends))
    assert time.monotonic() - began < 15, "at once, though a worker of the killed one lives on"
    assert found[where] == (-signal.SIGKILL, "")
    for code, said in [f for rank, f in enumerate(found) if rank != where]:
        assert (
            code == 1
            and said.startswith(f"genlab: rank {where} on ")
            and said.endswith(f" {SILENT}\n")
        )
        assert said.count("\n") == 1


JOB = """
import runpy, sys
from pathlib import Path
from genlab.cli import main as cli
from genlab.sweeps import sweep_folder as folder
from genlab.distributed.environment import world

def as_a_job(work):
    def parted():
        try:
            work("train", [])
        except Exception as error:  # as `cli.compose_and_run` does
            raise cli.parted(error) from error
    return lambda *given: folder.run(Path(sys.argv[1]) / "job", parted) if world().rank == 0 else work(*given)

main = cli.main
def begin():
    cli.compose_and_run = as_a_job(cli.compose_and_run)
    main()
cli.main = begin
watched, *sys.argv = sys.argv[1], sys.argv[0], *sys.argv[2:]
runpy.run_path(watched, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("end", "status", "why"),
    [
        ("kill", "lost", SILENT),
        ("words:the disk is full", "failed", "the disk is full"),
        ("error:a bug", "failed", "LookupError: a bug"),
    ],
)
def test_a_job_one_of_whose_processes_is_killed_is_lost_and_not_failed(end, status, why, tmp_path):
    """The first process, which writes the job's state, hears of it by a message that fails."""
    ends = ["error:gloo: Connection closed by peer", end]
    code = JOB.replace("Path(sys.argv[1])", f"Path({str(tmp_path)!r})")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(HELPERS / "supervisor_process.py"), str(tmp_path), *ends],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    (code, said), _ = ended(processes)
    state = sweep_folder.read(tmp_path / "job")
    assert (
        code == 1
        and state.status == status
        and state.error.startswith("rank 1 on ")
        and state.error.endswith(why)
    ), said


def test_what_all_meet_is_said_once(tmp_path):
    found = ended(started(tmp_path, *["words:no such option"] * 3))
    assert found == [(2, "genlab: no such option\n"), (2, ""), (2, "")]


def test_a_traceback_is_shown_once(tmp_path):
    (code, said), *others = ended(started(tmp_path, "error:a bug", "wait", "wait"))
    assert (
        code == 1 and said.count("Traceback") == 1 and said.rstrip().endswith("LookupError: a bug")
    )
    assert all(
        code == 1 and text.endswith(": LookupError: a bug\n") and "Traceback" not in text
        for code, text in others
    )


def test_who_is_busy_or_stopped_is_not_dead(tmp_path):
    """A process that hears nothing for a while, as one that holds Python's lock, is waited for."""
    processes = started(tmp_path, "well", "wait", "wait")
    while len(list(tmp_path.glob("pid*"))) < 3:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert [p.poll() for p in processes] == [None] * 3, (
        "the first has left, and stays for the others"
    )
    processes[1].send_signal(signal.SIGCONT)
    processes[1].kill()
    (code, said), _, (other, heard) = ended(processes)
    assert (code, said) == (0, ""), "it was done"
    assert other == 1 and SILENT in heard


def test_all_leave_in_peace(tmp_path):
    assert ended(started(tmp_path, *["well"] * 4)) == [(0, "")] * 4


# --- who one is -------------------------------------------------------------------------------------------------------

STEP = {"SLURM_JOB_ID": "700", "SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "n[3-4]"}  # fmt: skip
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "9",
}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, World()),
        (TORCHRUN, World(1, 2, 1, 2, "h", 9)),
        (STEP | TORCHRUN, World(1, 2, 1, 2, "h", 9)),
        (STEP, World(3, 4, 1, 2, "n3", 15_000 + 16 * 700 + 2, bound=True)),
        (STEP | {"MASTER_ADDR": "x", "MASTER_PORT": "8"}, World(3, 4, 1, 2, "x", 8, bound=True)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, World()),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, World()),  # sbatch's own shell
        ({"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1",
          "SUBMITIT_LOCAL_JOB_ID": "5"}, World(1, 2, 1, 2, port=15_080)),
        (STEP | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, World(port=15_000)),
    ],
    ids=["nothing", "torchrun", "torchrun in a step", "step", "step, told where", "step of one", "sbatch", "submitit", "alone"],
)  # fmt: skip
def test_world(environment, place):
    assert world(environment) == place


def test_a_step_that_begins_anew_meets_at_another_port():
    assert len({world(STEP | {"SLURM_RESTART_COUNT": str(n)}).port for n in range(3)}) == 3


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}],
)
def test_an_environment_that_says_too_little_is_refused(environment):
    with pytest.raises(UserError, match="RANK|which process"):
        world(environment)


def test_the_command_line_says_so(genlab, monkeypatch):
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
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_tasks_of_each_node():
    assert tasks("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("bound", "visible", "gpu"), [(True, 1, 0), (True, 4, 3), (False, 4, 3), (False, 1, 3)]
)
def test_a_task_that_sees_one_gpu_has_it(bound, visible, gpu):
    assert World(local_rank=3, bound=bound).gpu(visible) == gpu
