"""Failure detection: an error or the sudden death of one rank ends all of them.

Each process keeps a connection to rank 0. Whatever ends a process, the kernel then closes its
connection, and keepalive messages detect a machine that is gone. So a process is never taken for
dead because it is busy, however long. Imports no torch.
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
from dataclasses import asdict, dataclass
from typing import Any

from genlab.distributed.environment import DistributedEnv, read_environment
from genlab.errors import UserError
from genlab.system import call_in_forked_children

JOIN_TIMEOUT_S = 300.0  # for all processes to connect
SAME_ERROR_WAIT_S = 3.0  # after one rank's error, for the others to report the same one
LATE_JOIN_WAIT_S = 30.0  # after a death at the start, for late ranks to connect
EXIT_GRACE_S = 10.0  # for a process to exit by itself
OUTCOME_TIMEOUT_S = 60.0  # for a rank whose communication failed to learn the reason
MAX_ERROR_CHARS = 500

# a machine that is gone is detected after 30 s
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
# messages of errors that are only the consequence of another rank's end
CONNECTION_ERROR = re.compile("gloo|nccl|TCPStore|closed by peer|reset by peer", re.IGNORECASE)
SILENT_DEATH = "exited without an error message (killed, out of memory, or its machine is gone)"


class PeerLostError(UserError):
    """Another rank ended, and this one with it; the message says which rank, and why."""

    exit_code = 1
    # it was killed: not a fault of the training, which continues if it is started again
    is_silent_death = False


class AlreadyReportedError(UserError):
    """All ranks met the same error, which rank 0 reports."""


@dataclass(frozen=True)
class Outcome:
    """How the joint run ends: normally (`rank` is None), or by an error of one rank."""

    rank: int | None = None
    error: str = ""
    on_all_ranks: bool = False  # every rank reported the same error
    message: str = ""  # for the user: rank, host and error


def agree_on_exit_error(error: Exception, message: str | None) -> Exception:
    """Tell the other ranks about an error; return the error that this process should end with.

    That is its own error, or `PeerLostError`, or `AlreadyReportedError`.

    Args:
        message: the error as one line for the user; None for a bug in genlab, with a traceback.
    """
    monitor = PeerMonitor.current
    if isinstance(error, PeerLostError | AlreadyReportedError):
        return error
    if monitor is None:
        # Before the ranks connect, only the command line can be wrong, which is the same on all.
        is_reported = message is not None and read_environment().rank > 0
        return AlreadyReportedError() if is_reported else error
    description = message or " ".join(f"{type(error).__name__}: {error}".split())
    description = description if message else description[:MAX_ERROR_CHARS]
    is_consequence = bool(CONNECTION_ERROR.search(str(error)))
    outcome = monitor.report_and_await_outcome(None if is_consequence else description)
    if outcome is None or (outcome.rank == monitor.environment.rank and message is None):
        return error
    monitor.is_exiting = True
    if outcome.on_all_ranks:
        return AlreadyReportedError() if monitor.environment.rank else error
    if is_consequence or description == outcome.error:
        end = PeerLostError(outcome.message)
        end.exit_code = getattr(error, "exit_code", 1)
        end.is_silent_death = outcome.error == SILENT_DEATH
        return end
    return error


class PeerMonitor:
    """This process's connection to rank 0, which collects the errors of all ranks.

    Args:
        broadcast_text: returns the text that rank 0 passes to it, on every rank.

    Raises:
        PeerLostError: rank 0 cannot be reached.
    """

    current: PeerMonitor | None = None  # of this process

    def __init__(self, environment: DistributedEnv, broadcast_text: Callable[[str], str]) -> None:
        self.environment = environment
        self.outcome: Outcome | None = None
        self.outcome_received = threading.Event()
        self.is_exiting, self.has_left = False, False
        self.server = MonitorServer(environment.size) if environment.rank == 0 else None
        contact = ""
        if self.server:
            contact = f"{self.server.port} {self.server.token} {socket.gethostname()}"
        port, token, host = broadcast_text(contact).split()
        # if rank 0 closes the connection without sending an outcome
        self.rank_0_died = Outcome(0, SILENT_DEATH, False, f"rank 0 on {host} {SILENT_DEATH}")
        address = environment.address
        try:
            connection = socket.create_connection((address, int(port)), timeout=JOIN_TIMEOUT_S)
        except OSError as error:
            raise PeerLostError(
                f"rank {environment.rank} cannot reach rank 0 at {address}:{port}: {error}"
            ) from error
        self.connection = enable_tcp_keepalive(connection)
        call_in_forked_children(self.close_sockets_in_fork)
        send_message(self.connection, token=token, rank=environment.rank, host=socket.gethostname())
        threading.Thread(target=self.wait_for_outcome, daemon=True).start()
        PeerMonitor.current = self

    def wait_for_outcome(self) -> None:
        """Receive the outcome, and end this process if it does not exit by itself soon after."""
        message = next(receive_messages(self.connection), None)
        self.connection.close()
        outcome = Outcome(**message) if message else self.rank_0_died
        self.outcome = outcome
        self.outcome_received.set()
        if self.has_left or outcome.rank is None:
            return
        # The main thread may wait for a message that never comes, or be in a long computation.
        time.sleep(EXIT_GRACE_S)
        if not self.is_exiting and outcome.rank != self.environment.rank:
            print(f"genlab: {outcome.message}", file=sys.stderr, flush=True)
        os._exit(1)

    def report_and_await_outcome(self, error: str | None) -> Outcome | None:
        """Report this rank's error, if any; return the outcome, or None if none arrives in time."""
        if error is not None:
            send_message(self.connection, error=error)
        self.outcome_received.wait(OUTCOME_TIMEOUT_S)
        if self.server:
            self.server.join(EXIT_GRACE_S)  # it ends with this process
        return self.outcome

    def leave_normally(self) -> None:
        """End normally; rank 0 waits until the other ranks have left too."""
        self.has_left, PeerMonitor.current = True, None
        send_message(self.connection, bye=True)
        if self.server:
            self.server.join()

    def close_sockets_in_fork(self) -> None:
        """Close the sockets in a forked child, which would keep them open if this process dies."""
        sockets = [self.connection]
        if self.server:
            sockets += [self.server.listener, *self.server.connections.values()]
        for each in sockets:
            if each.fileno() >= 0:
                os.close(each.fileno())


class MonitorServer(threading.Thread):
    """On rank 0: collects the errors and the ends of all ranks, and sends them the outcome."""

    def __init__(self, size: int) -> None:
        super().__init__(daemon=True)
        self.size, self.token = size, secrets.token_hex(16)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.listener = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=dual, backlog=size
        )
        self.port = self.listener.getsockname()[1]
        self.changed = threading.Condition()  # guards the following, each by rank
        self.connections: dict[int, socket.socket] = {}
        self.hosts: dict[int, str] = {}
        self.errors: dict[int, str] = {}  # in the order of arrival
        self.left: set[int] = set()
        self.disconnected: set[int] = set()
        threading.Thread(target=self.accept_connections, daemon=True).start()
        self.start()

    def accept_connections(self) -> None:
        """Accept connections, each served by a thread, until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(
                    target=self.record_rank_messages,
                    args=(enable_tcp_keepalive(connection),),
                    daemon=True,
                ).start()

    def record_rank_messages(self, connection: socket.socket) -> None:
        """Record a rank's messages until its connection ends."""
        messages = receive_messages(connection)
        hello = next(messages, None) or {}
        if hello.get("token") != self.token:
            connection.close()  # not a process of this training
            return
        rank = hello["rank"]
        with self.changed:
            self.connections[rank], self.hosts[rank] = connection, hello["host"]
            self.changed.notify()
        for message in messages:
            with self.changed:
                if "bye" in message:
                    self.left.add(rank)
                else:
                    self.errors.setdefault(rank, message["error"])
                self.changed.notify()
        with self.changed:
            self.disconnected.add(rank)
            if rank not in self.left:
                self.errors.setdefault(rank, SILENT_DEATH)
            self.changed.notify()

    def run(self) -> None:
        """Wait until all ranks have left or one has failed, and send the outcome to all."""
        with self.changed:
            wait_for = self.changed.wait_for
            if not wait_for(
                lambda: self.errors or len(self.connections) == self.size, JOIN_TIMEOUT_S
            ):
                missing = min(set(range(self.size)) - set(self.connections))
                self.errors[missing] = f"did not connect within {JOIN_TIMEOUT_S:.0f} s"
            wait_for(lambda: self.errors or len(self.left) == self.size)
            # a rank that connects after rank 0 has ended would wait for a long time
            wait_for(lambda: len(self.connections) == self.size, LATE_JOIN_WAIT_S)
            if self.errors and SILENT_DEATH not in self.errors.values():
                wait_for(lambda: len(self.errors) == self.size, SAME_ERROR_WAIT_S)
            for connection in self.connections.values():
                send_message(connection, **asdict(self.joint_outcome()))
            self.listener.close()
            wait_for(lambda: len(self.disconnected) == len(self.connections), EXIT_GRACE_S)

    def joint_outcome(self) -> Outcome:
        """Return how the joint run ends, by the first error if there is one."""
        if not self.errors:
            return Outcome()
        rank, error = next(iter(self.errors.items()))
        on_all_ranks = len(self.errors) == self.size and len(set(self.errors.values())) == 1
        who = f"rank {rank}" + (f" on {self.hosts[rank]}" if rank in self.hosts else "")
        message = f"{who} {error}" if error == SILENT_DEATH else f"{who}: {error}"
        return Outcome(rank, error, on_all_ranks, message)


def enable_tcp_keepalive(connection: socket.socket) -> socket.socket:
    """Let the kernel detect when the machine at the other end is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def send_message(connection: socket.socket, /, **message: Any) -> None:
    """Send a message; errors are ignored, as the end of a connection is detected elsewhere."""
    with suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def receive_messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield the messages that arrive over a connection until it ends."""
    # ValueError: not JSON, so it was sent by another program
    with suppress(OSError, ValueError), connection.makefile() as lines:
        for line in lines:
            yield json.loads(line)
