"""Who is at work in a folder: locks on files, and what they tell where machines share a disk."""

from __future__ import annotations

import fcntl
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from genlab.errors import UserError
from genlab.fileio import lockable

MOUNTS = Path("/proc/self/mountinfo")
# File systems that one kernel alone writes to: it knows all who hold a lock there.
OWN_DISKS = {
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


def held(folder: Path, host: str) -> bool:
    """Return whether the process of a job that no scheduler started is still there; where that cannot be known, that it is."""
    return locked(folder) or not certain(folder, host)


def certain(folder: Path, host: str) -> bool:
    """Return whether a lock that nobody seems to hold is free: another machine may hold it where machines share a disk.

    The name of a machine alone says little: a container has a new one at each start.
    """
    return host == socket.gethostname() or disk(folder) in OWN_DISKS


def locked(folder: Path) -> bool:
    """Return whether a job's lock is seen to be held."""
    try:
        with open(folder / ".job.lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if (
                disk(folder) in OWN_DISKS
            ):  # of a disk that this machine serves by NFS, what others hold are locks of this kind
                fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def disk(path: Path) -> str:
    """Return the kind of the file system that a path lies on, such as ext4 or nfs; "" where the system does not say."""
    try:
        rows = [line.split() for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    here, found, depth = path.resolve(), "", -1
    for row in rows:  # of several mounts at one place the last is seen
        at = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), row[4]))
        if here.is_relative_to(at) and len(at.parts) >= depth:
            found, depth = row[row.index("-") + 1], len(at.parts)
    return found


@contextmanager
def hold(path: Path, *, patience: float | None = None) -> Iterator[IO[str]]:
    """Hold a file's lock; who comes second waits, for at most `patience` seconds if that is given.

    Raises:
        UserError: another process holds it, and went on doing so.
    """
    with lockable(path) as handle:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if patience is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() - began > patience:
                    raise UserError(f"another process is at work in {path.parent}") from None
                time.sleep(0.05)
        yield handle
