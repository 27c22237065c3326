"""Atomic writing of files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# A link is not followed, and a named pipe is not waited for.
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
for name in ("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
    WRITE_FLAGS |= getattr(os, name, 0)


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for atomic writing.

    Readers of `path` see the old or the new content, never a partial write, even after a power
    failure.

    Raises:
        OSError: writing failed (no space, no permission); names the path, which keeps its old
            content.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open_new_file(part) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # the partial file would keep filling a full disk
            part.unlink()
        if os_error := find_os_error_in_causes(error):
            raise OSError(os_error.errno, os_error.strerror, str(path)) from error
        raise
    fsync_folder(path.parent)


def open_new_file(path: Path) -> IO[bytes]:
    """Open a file to write it from its start; a link or a named pipe at its place is removed."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            os.unlink(path)
    return os.fdopen(os.open(path, WRITE_FLAGS, 0o666), "wb")


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file atomically; see `atomic_open`."""
    with atomic_open(path) as f:
        f.write(data)


def find_os_error_in_causes(error: BaseException | None) -> OSError | None:
    """Return the system's error in a chain of causes, or None.

    A library such as torch.save reports a failed write as its own error type.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def add_path_to_os_errors(path: Path) -> Iterator[None]:
    """Context that adds the path to an OSError that names no file, such as a failed write.

    Raises:
        OSError: what the block raised, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power failure.

    Does nothing on Windows and on file systems that cannot do this.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
