"""The processes of one training end together: what one dies of, and that one died without a word, reaches all others.

Each process keeps a connection to the first one. Whatever ends a process, the kernel then closes it, and asks every few
seconds whether the other machine is still there: so nobody is taken for dead for being busy, however long. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from genlab.distributed.environment import World, world
from genlab.errors import UserError

JOIN = 300.0  # seconds in which all processes must have come
TOGETHER = 3.0  # seconds after one's last words in which the others may turn out to have the same
LATE = 30.0  # seconds that a death before all had come is kept for the others
UNWIND = 10.0  # seconds that a process has to end by itself
MISSED = 60.0  # seconds in which a process whose messages failed hears why
KEEPALIVE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
}  # a machine that is gone is missed after 30 s
BROKEN = re.compile(
    "gloo|nccl|TCPStore|closed by peer|reset by peer", re.IGNORECASE
)  # what a message that fails says
SILENT = "ended without a word (killed, out of memory, or its machine is gone)"


class Lost(UserError):
    """A process ended, and the others with it; the message says which, and why."""

    exit_code = 1
    silent = False  # whether it ended without a word: no fault of the training, which goes on if it is started again


class Said(UserError):
    """All processes met the same error, and the first one says it."""


def farewell(error: Exception, line: str | None) -> Exception:
    """Return what this process ends with, once the others know of it: its own error, or `Lost`, or `Said`.

    Args:
        line: the error as the user reads it; None for one of genlab's own.
    """
    me = Watch.now
    if isinstance(error, Lost | Said):
        return error
    if (
        me is None
    ):  # they have not met: what is wrong is on the command line, which is the same for all
        return Said() if line is not None and world().rank else error
    words = line or " ".join(f"{type(error).__name__}: {error}".split())[:500]
    failed = bool(BROKEN.search(str(error)))  # because another one is gone
    verdict = me.verdict_on(None if failed else words)
    if verdict is None or (verdict["by"] == me.world.rank and line is None):
        return error
    me.said = True
    if verdict["all"]:
        return Said() if me.world.rank else error
    if failed or words == verdict["words"]:
        end = Lost(verdict["line"])
        end.exit_code, end.silent = getattr(error, "exit_code", 1), verdict["words"] == SILENT
        return end
    return error


class Watch:
    """This process's connection to the others.

    Args:
        post: gives every process the text that the first one posts.

    Raises:
        Lost: the first process cannot be reached.
    """

    now: Watch | None = None  # the one of this process

    def __init__(self, world: World, post: Callable[[str], str]) -> None:
        self.world = world
        self.verdict: dict[str, Any] | None = None
        self.heard, self.said, self.left = threading.Event(), False, False
        self.server = Server(world.size) if world.rank == 0 else None
        mine = (
            f"{self.server.port} {self.server.token} {socket.gethostname()}" if self.server else ""
        )
        port, token, first = post(mine).split()
        self.silent = {
            "by": 0,
            "words": SILENT,
            "all": False,
            "line": f"rank 0 on {first} {SILENT}",
        }  # where it says nothing
        try:
            self.line = kept_alive(
                socket.create_connection((world.address, int(port)), timeout=JOIN)
            )
        except OSError as error:
            raise Lost(
                f"rank {world.rank} cannot reach the first process at {world.address}:{port}: {error}"
            ) from error
        os.register_at_fork(after_in_child=self.forget)
        send(self.line, token=token, rank=world.rank, host=socket.gethostname())
        threading.Thread(target=self.listen, daemon=True).start()
        Watch.now = self

    def listen(self) -> None:
        """Wait for the verdict, and end this process if it does not end by itself soon after."""
        said = next(messages(self.line), None)
        self.line.close()
        self.verdict = said or self.silent
        self.heard.set()
        if self.left or self.verdict["by"] is None:
            return
        time.sleep(
            UNWIND
        )  # the main thread may wait for a message that will not come, or be deep in its work
        if not self.said and self.verdict["by"] != self.world.rank:
            print(f"genlab: {self.verdict['line']}", file=sys.stderr, flush=True)
        os._exit(1)

    def verdict_on(self, words: str | None) -> dict[str, Any] | None:
        """Leave last words, if any; return why all end, or None where nobody knows."""
        if words is not None:
            send(self.line, words=words)
        self.heard.wait(MISSED)
        if self.server:
            self.server.join(UNWIND)  # it is this process, and ends with it
        return self.verdict

    def leave(self) -> None:
        """End as one should; the first process waits for the others to do so."""
        self.left, Watch.now = True, None
        send(self.line, bye=True)
        if self.server:
            self.server.join()

    def forget(self) -> None:
        """Close the connections in a fork, which would keep them open when this process is killed."""
        for line in (
            self.line,
            *([self.server.listener, *self.server.lines.values()] if self.server else []),
        ):
            if line.fileno() >= 0:
                os.close(line.fileno())


class Server(threading.Thread):
    """In the first process: hears of every one's end, and tells all why they end."""

    def __init__(self, size: int) -> None:
        super().__init__(daemon=True)
        self.size, self.token = size, secrets.token_hex(16)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.listener = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=dual, backlog=size
        )
        self.port = self.listener.getsockname()[1]
        self.news = threading.Condition()
        self.lines: dict[int, socket.socket] = {}  # by rank
        self.hosts: dict[int, str] = {}
        self.words: dict[int, str] = {}  # of those that died, in this order
        self.left: set[int] = set()
        self.gone: set[int] = set()
        threading.Thread(target=self.accept, daemon=True).start()
        self.start()

    def accept(self) -> None:
        with suppress(OSError):  # closed: it is over
            while True:
                line, _ = self.listener.accept()
                threading.Thread(target=self.hear, args=(kept_alive(line),), daemon=True).start()

    def hear(self, line: socket.socket) -> None:
        """Take down what a process says until it is gone."""
        said = messages(line)
        hello = next(said, None) or {}
        if hello.get("token") != self.token:
            line.close()  # somebody else knocked
            return
        rank = hello["rank"]
        with self.news:
            self.lines[rank], self.hosts[rank] = line, hello["host"]
            self.news.notify()
        for message in said:
            with self.news:
                if "bye" in message:
                    self.left.add(rank)
                else:
                    self.words.setdefault(rank, message["words"])
                self.news.notify()
        with self.news:
            self.gone.add(rank)
            if rank not in self.left:
                self.words.setdefault(rank, SILENT)
            self.news.notify()

    def run(self) -> None:
        """Wait until all have left or one has died, and tell all."""
        with self.news:
            if not self.news.wait_for(lambda: self.words or len(self.lines) == self.size, JOIN):
                missing = min(set(range(self.size)) - set(self.lines))
                self.words[missing] = f"did not come within {JOIN:.0f} s"
            self.news.wait_for(lambda: self.words or len(self.left) == self.size)
            self.news.wait_for(
                lambda: len(self.lines) == self.size, LATE
            )  # who comes to an empty place waits long
            if self.words and SILENT not in self.words.values():
                self.news.wait_for(lambda: len(self.words) == self.size, TOGETHER)
            for line in self.lines.values():
                send(line, **self.verdict())
            self.listener.close()
            self.news.wait_for(lambda: len(self.gone) == len(self.lines), UNWIND)

    def verdict(self) -> dict[str, Any]:
        """Return by whom all end, and why: with nobody's name where all end well."""
        if not self.words:
            return {"by": None}
        rank, words = next(iter(self.words.items()))
        whole = len(self.words) == self.size and len(set(self.words.values())) == 1
        who = f"rank {rank}" + (f" on {self.hosts[rank]}" if rank in self.hosts else "")
        line = f"{who} {words}" if words == SILENT else f"{who}: {words}"
        return {"by": rank, "words": words, "all": whole, "line": line}


def kept_alive(line: socket.socket) -> socket.socket:
    """Let the kernel find out when the machine at the other end is gone."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line


def send(to: socket.socket, /, **message: Any) -> None:
    with suppress(OSError):  # whoever it is for is gone, which its own connection tells
        to.sendall(json.dumps(message).encode() + b"\n")


def messages(line: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield what comes over a connection until it ends."""
    with (
        suppress(OSError, ValueError),
        line.makefile() as lines,
    ):  # ValueError: no JSON, from somebody else
        for text in lines:
            yield json.loads(text)
