"""Run by test_supervisor: one rank that only monitors its peers, without torch.

Arguments: a folder to meet in, and for each rank how it ends:
exit | wait | user-error:<message> | bug:<message> | kill | fork-kill.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from genlab.cli import main
from genlab.distributed import supervisor
from genlab.distributed.environment import read_environment
from genlab.errors import UserError

folder, endings = Path(sys.argv[1]), sys.argv[2:]
supervisor.EXIT_GRACE_S = 1.0
supervisor.SAME_ERROR_WAIT_S = 0.5 if len(set(endings)) > 1 else 10.0
environment = read_environment()


def broadcast_text(text: str) -> str:
    """Return rank 0's text on all ranks, by way of a file."""
    if environment.rank == 0:
        (folder / "part").write_text(text)
        (folder / "part").rename(folder / "published")
    while not (folder / "published").exists():
        time.sleep(0.01)
    return (folder / "published").read_text()


def run_command(ending: str) -> None:
    """Stand in for a command of genlab, and end as `ending` says."""
    monitor = supervisor.PeerMonitor(environment, broadcast_text)
    (folder / f"pid{environment.rank}").write_text(str(os.getpid()))
    kind, _, message = ending.partition(":")
    waits_for_others = kind not in ("exit", "wait")
    while waits_for_others and len(list(folder.glob("pid*"))) < environment.size:
        time.sleep(0.01)
    if kind == "user-error":
        raise UserError(message)
    if kind == "bug":
        raise LookupError(message)
    if kind == "wait":
        time.sleep(60)
    if kind == "fork-kill" and os.fork() == 0:  # a worker that outlives its parent
        os.closerange(0, 3)
        time.sleep(20)
        os._exit(0)
    if kind in ("kill", "fork-kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    monitor.leave_normally()


main.compose_and_run = lambda name, arguments: run_command(endings[environment.rank])
sys.argv[1:] = ["train"]
main.main()
