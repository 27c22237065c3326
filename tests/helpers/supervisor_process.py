"""Run by test_watch: one of several processes that only watch each other, ending as it is told to; needs no torch.

argv: a folder to meet in, and for each rank how it ends: well | wait | words:<message> | error:<message> | kill | fork-kill.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from genlab.cli import main
from genlab.distributed import supervisor
from genlab.distributed.environment import world
from genlab.errors import UserError

place, ends = Path(sys.argv[1]), sys.argv[2:]
supervisor.UNWIND = 1.0
supervisor.TOGETHER = 0.5 if len(set(ends)) > 1 else 10.0
me = world()


def post(text: str) -> str:
    """Give all processes the first one's text, by a file."""
    if me.rank == 0:
        (place / "part").write_text(text)
        (place / "part").rename(place / "post")
    while not (place / "post").exists():
        time.sleep(0.01)
    return (place / "post").read_text()


def work(how: str) -> None:
    """Do what one of the commands of genlab would do."""
    here = supervisor.Watch(me, post)
    (place / f"pid{me.rank}").write_text(str(os.getpid()))
    kind, _, message = how.partition(":")
    while kind not in ("well", "wait") and len(list(place.glob("pid*"))) < me.size:  # all have come
        time.sleep(0.01)
    if kind == "words":
        raise UserError(message)
    if kind == "error":
        raise LookupError(message)
    if kind == "wait":
        time.sleep(60)
    if kind == "fork-kill" and os.fork() == 0:  # a worker lives on
        os.closerange(0, 3)
        time.sleep(20)
        os._exit(0)
    if kind in ("kill", "fork-kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    here.leave()


main.compose_and_run = lambda name, arguments: work(ends[me.rank])
sys.argv[1:] = ["train"]
main.main()
