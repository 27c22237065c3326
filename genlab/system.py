"""Differences between Linux, macOS and Windows: locks, memory, and folders of the user.

Modules and functions that only some of them have are used here and nowhere else, or behind a check
that they exist; `tests/test_portability.py` looks for others. Imports no torch.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SHARED_MEMORY = Path("/dev/shm")
STATM = Path("/proc/self/statm")
LOCKED_BYTE = 2**30  # on Windows: beyond the content, which can still be read
UNKNOWN_MEMORY_BYTES = 2**33  # of a machine that does not tell how much it has
PRIVATE_MODE = 0o700
MAX_SOCKET_FOLDER_CHARS = 64  # the path of a socket has about 100, and multiprocessing adds 32
SHORT_TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


# --- locks and processes --------------------------------------------------------------------------


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file without waiting; return whether this succeeded.

    The system releases the lock when the file is closed, however the process ends.

    Args:
        shared: only test, beside other tests, whether no process has the lock for itself.

    Raises:
        OSError: the file system does not support locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    import msvcrt

    position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError:  # locked by another process
        return False
    finally:
        os.lseek(file.fileno(), position, os.SEEK_SET)
    return True


def is_locked_over_nfs(file: IO[Any]) -> bool:
    """Whether a client of this NFS server has locked an open file; False without such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def call_in_forked_children(function: Callable[[], object]) -> None:
    """Call a function in every child that is forked from now on, where processes can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def use_short_temporary_folder() -> None:
    """Put temporary files elsewhere if their folder has too long a path for a socket in it.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    if len(tempfile.gettempdir()) <= MAX_SOCKET_FOLDER_CHARS:
        return
    for folder in SHORT_TEMPORARY_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            return


# --- memory ---------------------------------------------------------------------------------------


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far; 0 if it is unknown."""
    if resource is None:
        return windows_memory_bytes("PeakWorkingSetSize")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB


def used_memory_bytes() -> int:
    """Return the resident memory of this process now; where that is unknown, the peak so far."""
    if resource is None:
        return windows_memory_bytes("WorkingSetSize")
    try:
        return int(STATM.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory_bytes()


def physical_memory_bytes() -> int:
    """Return the memory of this machine in bytes."""
    if hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return windows_memory_bytes("ullTotalPhys") or UNKNOWN_MEMORY_BYTES


def windows_memory_bytes(field: str) -> int:
    """Return a size that Windows counts; 0 on other systems.

    Args:
        field: of PROCESS_MEMORY_COUNTERS, or ullTotalPhys of MEMORYSTATUSEX.
    """
    if sys.platform != "win32":
        return 0
    import ctypes

    if field == "ullTotalPhys":
        status = (ctypes.c_uint64 * 8)()  # dwLength and dwMemoryLoad share the first
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[1])
    counters = (ctypes.c_size_t * 9)()  # cb and PageFaultCount share the first
    process = ctypes.c_void_p(ctypes.windll.kernel32.GetCurrentProcess())
    ctypes.windll.kernel32.K32GetProcessMemoryInfo(
        process, ctypes.byref(counters), ctypes.sizeof(counters)
    )
    return int(counters[{"PeakWorkingSetSize": 1, "WorkingSetSize": 2}[field]])


def shared_memory_bytes() -> int | None:
    """Return how much memory processes can share; None if the system does not tell."""
    if hasattr(os, "statvfs"):
        with suppress(OSError):
            status = os.statvfs(SHARED_MEMORY)
            return status.f_blocks * status.f_frsize
    return None


# --- folders of the user --------------------------------------------------------------------------


def user_cache_folder() -> Path:
    """Return the folder of the cache: GENLAB_CACHE, or genlab in the user's cache folder.

    If it cannot be written, as without a home folder, a folder for temporary files takes its place,
    which is said once.

    Raises:
        OSError: no folder can be written.
    """
    chosen = os.environ.get("GENLAB_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return writable_cache_folder(*chosen)


@cache
def writable_cache_folder(genlab_cache: str | None, xdg_cache: str | None) -> Path:
    """Return the folder of the cache, given two variables; see `user_cache_folder`."""
    try:
        folder = Path(genlab_cache or Path(xdg_cache or Path.home() / ".cache") / "genlab")
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = f"{folder} cannot be written"
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    except RuntimeError:
        reason = "this user has no home folder"
    folder = private_temporary_folder()
    print(
        f"genlab: the cache is in {folder}, because {reason}; set GENLAB_CACHE=<folder> to keep it",
        file=sys.stderr,
    )
    return folder


def private_temporary_folder() -> Path:
    """Return a folder that only this user can write, the same for every command if possible.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"genlab-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=PRIVATE_MODE)
    found = folder.lstat()
    is_private = not hasattr(os, "getuid") or (
        found.st_uid == user and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
    if stat.S_ISDIR(found.st_mode) and is_private and os.access(folder, os.W_OK):
        return folder
    return Path(tempfile.mkdtemp(prefix="genlab-"))  # another user has taken that name
