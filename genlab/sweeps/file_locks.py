"""File locks: which process uses a sweep's folder, and whether a job still runs.

Two kinds of locks, by what depends on them:

- `hold_file_lock` (the package `filelock`) keeps apart the commands that plan, launch or search one
  sweep. It works on every file system; where the kernel offers no locks, `filelock` falls back to
  a marker file. If two launchers met in spite of it, the job locks would still keep their jobs
  apart.
- `hold_job_lock` (the kernel's own `flock`) belongs to the process that trains a job, and its
  exclusion is absolute: two processes in one run folder would destroy the run. The kernel releases
  it when the process ends in any way, so a free lock also means that the process is gone. That
  conclusion is drawn only where this kernel sees all holders of the lock (`is_lock_conclusive`):
  some network file systems keep `flock` on the machine that asked for it, and no package can tell
  from another machine.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from genlab.errors import UserError
from genlab.system import is_locked_over_nfs, try_lock
from genlab.untrusted.files import open_lock_file, open_regular_file, refuse_special_file

JOB_LOCK = ".job.lock"
POLL_INTERVAL_S = 0.05
MOUNT_TABLE = Path("/proc/self/mountinfo")
# File systems that only one kernel writes to, which therefore knows all holders of a lock.
LOCAL_FILE_SYSTEMS = {
    "bcachefs",
    "btrfs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "overlay",
    "ramfs",
    "tmpfs",
    "xfs",
    "zfs",
}


# --- locks of commands ----------------------------------------------------------------------------


@contextmanager
def hold_file_lock(path: Path, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`.

    Args:
        timeout_s: how long to wait for another process; None waits as long as it takes.

    Raises:
        UserError: another process holds the lock, and did not release it in time.
    """
    if os.path.lexists(path):
        refuse_special_file(path, os.lstat(path))
    lock = FileLock(path, timeout=-1 if timeout_s is None else timeout_s)
    try:
        lock.acquire(poll_interval=POLL_INTERVAL_S)
    except Timeout:
        raise UserError(f"another process is at work in {path.parent}") from None
    try:
        yield
    finally:
        lock.release()


# --- the lock of a job ----------------------------------------------------------------------------


@contextmanager
def hold_job_lock(folder: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock of the job in `folder`; it is released however this process ends.

    Raises:
        UserError: another process holds the lock, and did not release it within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    with open_lock_file(folder / JOB_LOCK) as handle:
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise UserError(f"another process is at work in {folder}")
            time.sleep(POLL_INTERVAL_S)
        yield


def hold_lock_until_closed(file: IO[str]) -> None:
    """Lock an open file for as long as this process has it open."""
    while not try_lock(file):
        time.sleep(POLL_INTERVAL_S)


def may_job_be_running(folder: Path, host: str) -> bool:
    """Whether the process of a job may still run; True where that cannot be known.

    Args:
        folder: of a job that was started without a scheduler.
        host: the machine that started it.
    """
    return is_job_locked(folder) or not is_lock_conclusive(folder, host)


def is_lock_conclusive(folder: Path, host: str) -> bool:
    """Whether a lock that looks free is free.

    Where several machines share a file system, another machine may hold it. The name of the
    machine says little by itself: a container has a new one at each start.
    """
    return host == socket.gethostname() or file_system_type(folder) in LOCAL_FILE_SYSTEMS


def is_job_locked(folder: Path) -> bool:
    """Whether this machine sees that a job's lock is held."""
    return is_file_locked(folder / JOB_LOCK)


def is_file_locked(path: Path) -> bool:
    """Whether this machine sees that a file's lock is held; False if the file is missing."""
    try:
        with open_regular_file(path) as handle:
            if not try_lock(handle, shared=True):
                return True
            # If this machine serves the file system by NFS, the clients' locks are POSIX locks.
            return file_system_type(path) in LOCAL_FILE_SYSTEMS and is_locked_over_nfs(handle)
    except FileNotFoundError:
        return False


def file_system_type(path: Path) -> str:
    """Return the type of the file system of a path, such as ext4 or nfs; "" if it is unknown."""
    try:
        rows = [line.split() for line in os.fsdecode(MOUNT_TABLE.read_bytes()).splitlines()]
    except OSError:
        return ""
    resolved, found, depth = path.resolve(), "", -1
    for row in rows:  # of several mounts at one place the last is visible
        mount_point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), row[4]))
        if resolved.is_relative_to(mount_point) and len(mount_point.parts) >= depth:
            found, depth = row[row.index("-") + 1], len(mount_point.parts)
    return found
