"""Leases: which worker does a job, agreed on by files, on one machine or on many.

A job is claimed by the creation of `.lease.<generation>` in its folder, which only one process can
do, on every file system. The holder is alive as long as it holds a lock that this kernel sees (the
job's own, or its worker's), or as long as its heartbeat changes the lease: the job's process
touches it every few seconds. A job whose holder is gone is claimed again, with the next generation.

Clocks of two machines are never compared. Where locks are not conclusive
(`file_locks.is_lock_conclusive`), a holder is gone if its lease did not change for
HEARTBEAT_TIMEOUT_S of the observer's own time. A process that was only suspended for that long
notices the newer lease before it writes again, and ends itself.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from genlab.errors import UserError
from genlab.fileio import add_path_to_os_errors
from genlab.sweeps.file_locks import (
    hold_lock_until_closed,
    is_file_locked,
    is_job_locked,
    is_lock_conclusive,
)
from genlab.untrusted.files import open_regular_file, read_bytes

WORKERS_FOLDER = ".workers"  # in a sweep's folder, with a lock and a journal for each worker
HEARTBEAT_INTERVAL_S = 5.0
HEARTBEAT_TIMEOUT_S = 120.0  # longer than attributes stay in the cache of a network file system
MAX_LEASE_BYTES = 4096
RELEASED, CANCELLED = "released", "cancelled"


@dataclass(frozen=True)
class Lease:
    """The newest lease of a job.

    Attributes:
        folder: of the job.
        generation: how many times the job was claimed.
        worker: the worker that claimed it; "" if the file does not say so.
        host: its machine.
        note: RELEASED or CANCELLED once its holder has ended the job; "" before.
    """

    folder: Path
    generation: int
    worker: str = ""
    host: str = ""
    note: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return lease_path(self.folder, self.generation)

    def is_superseded(self) -> bool:
        """Whether another worker has claimed the job since."""
        return lease_path(self.folder, self.generation + 1).exists()

    def release(self, note: str = RELEASED) -> None:
        """Say that the job is not done any more by the holder of this lease."""
        # If that fails, as on a full disk, the lease is free when its heartbeat is silent.
        with suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{note}\n")


def lease_path(folder: Path, generation: int) -> Path:
    """Return the file of a lease."""
    return folder / f".lease.{generation}"


def read_newest_lease(folder: Path) -> Lease | None:
    """Return the newest lease of a job, or None if it was never claimed.

    A file that is damaged is a lease of an unknown worker.
    """
    generation = 0
    while lease_path(folder, generation + 1).exists():
        generation += 1
    if not generation:
        return None
    worker = host = note = ""
    with suppress(OSError, UserError, ValueError, RecursionError):
        lines = read_bytes(lease_path(folder, generation), MAX_LEASE_BYTES).decode().splitlines()
        note = next((line for line in lines[1:] if line in (RELEASED, CANCELLED)), "")
        holder = json.loads(lines[0]) if lines else {}
        names = [holder.get(key) for key in ("worker", "host")] if isinstance(holder, dict) else []
        if names and all(isinstance(name, str) for name in names):
            worker, host = map(str, names)
    return Lease(folder, generation, worker, host, note)


def worker_file_path(lease: Lease) -> Path:
    """Return the file that the lease's worker holds a lock of, for as long as it lives."""
    return lease.folder.parent / WORKERS_FOLDER / f"{lease.worker}.jsonl"


def is_worker_visible(lease: Lease) -> bool:
    """Whether this machine can see by a lock that the lease's worker lives."""
    is_name = re.fullmatch(r"[\w.-]+", lease.worker) is not None  # it becomes part of a path
    return is_name and is_lock_conclusive(lease.folder, lease.host)


# --- the worker's own file ------------------------------------------------------------------------


class WorkerFile:
    """The file of this process as a worker: it is locked as long as the process lives.

    It is also a journal: a line for each job that the worker has claimed or that has ended. Others
    read what was appended, instead of the files of all jobs.

    Args:
        folder: the folder that the jobs' folders are in.
    """

    def __init__(self, folder: Path) -> None:
        self.host = socket.gethostname()
        self.id = f"{self.host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.path = folder / WORKERS_FOLDER / f"{self.id}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # held as long as the process works
        hold_lock_until_closed(self.file)

    def record(self, number: int) -> None:
        """Append that the state of a job has changed."""
        with suppress(OSError):  # on a full disk, the others notice it later
            self.file.write(f"{number}\n")
            self.file.flush()


WORKER_FILES: dict[Path, WorkerFile] = {}  # of this process, by folder


def worker_file(folder: Path) -> WorkerFile:
    """Return the file of this process as a worker on the jobs in a folder."""
    key = folder.resolve()
    if key not in WORKER_FILES or not WORKER_FILES[key].path.exists():
        WORKER_FILES[key] = WorkerFile(folder)
    return WORKER_FILES[key]


class Journal:
    """The lines that the workers of a folder appended to their files since the last look."""

    MAX_BYTES = 2**20  # read at a time

    def __init__(self, folder: Path, own: str = "") -> None:
        self.folder, self.own = folder / WORKERS_FOLDER, f"{own}.jsonl"
        self.offsets: dict[str, int] = {}
        for name, size in self.file_sizes():
            self.offsets[name] = size

    def file_sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the names and sizes of the other workers' files."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(".jsonl") and entry.name != self.own:
                    with suppress(OSError):
                        yield entry.name, entry.stat(follow_symlinks=False).st_size

    def changed_jobs(self) -> set[int]:
        """Return the numbers of the jobs that other workers have claimed or ended."""
        changed: set[int] = set()
        for name, size in self.file_sizes():
            offset = self.offsets.get(name, 0)
            if size <= offset:
                continue
            with suppress(OSError, UserError), open_regular_file(self.folder / name) as file:
                file.seek(offset)
                complete = file.read(self.MAX_BYTES).rpartition(b"\n")[0]
                changed.update(int(line) for line in complete.split() if line.isdigit())
                self.offsets[name] = offset + len(complete) + bool(complete)
        return changed


# --- claiming -------------------------------------------------------------------------------------


class LeaseWatch:
    """Judge whether the holders of leases are alive, by what changes while they are watched.

    Args:
        timeout_s: of this machine's time, after which a lease that does not change is free.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self.timeout_s = HEARTBEAT_TIMEOUT_S if timeout_s is None else timeout_s
        # by job folder: what the lease's file looked like, since when, and whether it ever changed
        self.seen: dict[Path, tuple[tuple[int, ...], float, bool]] = {}

    def is_held(self, folder: Path, lease: Lease | None) -> bool:
        """Whether a process does the job, or may be doing it.

        Args:
            lease: the newest of the job.
        """
        if lease is None or is_job_locked(folder):
            return lease is not None
        if lease.note:
            return False
        if is_worker_visible(lease):
            return is_file_locked(worker_file_path(lease))
        return not self.is_silent(lease)

    def is_silent(self, lease: Lease) -> bool:
        """Whether a lease did not change for as long as `timeout_s`."""
        now = time.monotonic()
        try:
            status = os.stat(lease.path)
        except OSError:
            return False
        look = (lease.generation, status.st_mtime_ns, status.st_size)
        before = self.seen.get(lease.folder)
        if before is None or before[0] != look:
            self.seen[lease.folder] = (look, now, before is not None)
            return False
        return now - before[1] > self.timeout_s

    def is_confirmed_alive(self, folder: Path) -> bool:
        """Whether the holder of a job's lease was seen at work: by a lock or a heartbeat."""
        lease = read_newest_lease(folder)
        if lease is None or not self.is_held(folder, lease):
            return False
        is_seen = self.seen.get(folder, ((), 0.0, False))[2]
        return is_seen or is_job_locked(folder) or is_worker_visible(lease)


def claim_job(folder: Path, worker: WorkerFile, watch: LeaseWatch) -> Lease | None:
    """Claim a job, or return None if another process does it.

    Raises:
        OSError: the lease cannot be written, as on a full disk.
    """
    newest = read_newest_lease(folder)
    if watch.is_held(folder, newest):
        return None
    generation = newest.generation + 1 if newest else 1
    folder.mkdir(parents=True, exist_ok=True)
    path = lease_path(folder, generation)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except FileExistsError:
        return None
    try:
        with add_path_to_os_errors(path), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps({"worker": worker.id, "host": worker.host}) + "\n")
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise
    return Lease(folder, generation, worker.id, worker.host)


# --- the job's process ----------------------------------------------------------------------------


@dataclass
class Heartbeat:
    """Touches a lease every few seconds, and ends the process if another one has the job."""

    lease: Lease
    interval_s: float = field(default_factory=lambda: HEARTBEAT_INTERVAL_S)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Beat until the job has ended."""
        while True:
            if self.lease.is_superseded():
                message = f"genlab: another worker has taken over {self.lease.folder}"
                print(
                    f"{message}, since this process gave no sign",
                    file=sys.stderr,
                    flush=True,
                )
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
            with suppress(OSError):  # of a network file system, or the folder is deleted
                os.utime(self.lease.path)
            if self.stopped.wait(self.interval_s):
                return


@contextmanager
def keep_lease(lease: Lease | None) -> Iterator[None]:
    """Context in which the lease's heartbeat runs; None does nothing.

    Raises:
        UserError: another worker has claimed the job since.
    """
    if lease is None:
        yield
        return
    if lease.is_superseded():
        raise UserError(f"another worker has taken over {lease.folder}")
    heartbeat = Heartbeat(lease)
    thread = threading.Thread(target=heartbeat.run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        heartbeat.stopped.set()
        thread.join()
