"""Run genlab as on another system: without the modules and names that Windows lacks, or as macOS.

Run as `python other_systems.py windows|macos <arguments of genlab>`. Other packages are imported
first: only genlab's own use of what is missing is tested.
"""

from __future__ import annotations

import importlib.abc
import sys
from types import ModuleType
from typing import Any

MISSING_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt")
# Of the functions and constants that Windows lacks, those that a program may want.
MISSING_WORDS = {
    "os": (
        "fork forkpty register_at_fork killpg setsid setpgid setpgrp getpgid getpgrp getsid getuid "
        "geteuid getgid getegid getgroups setuid setgid chown fchown lchown fchmod chroot mkfifo "
        "mknod nice getpriority setpriority sysconf pathconf fpathconf statvfs fstatvfs "
        "sched_getaffinity sched_setaffinity sched_yield getloadavg uname wait wait3 wait4 waitid "
        "sync fdatasync posix_fallocate posix_fadvise sendfile pread pwrite preadv pwritev lockf "
        "ttyname openpty tcgetpgrp tcsetpgrp ctermid initgroups getresuid O_NONBLOCK O_NOFOLLOW "
        "O_DIRECTORY O_CLOEXEC O_NOCTTY O_SYNC O_DSYNC O_PATH O_TMPFILE O_DIRECT O_ASYNC O_NDELAY "
        "WNOHANG WUNTRACED F_LOCK F_TLOCK F_ULOCK EX_OK EX_USAGE RTLD_NOW"
    ),
    "signal": (
        "SIGHUP SIGQUIT SIGKILL SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGCHLD SIGCLD SIGCONT SIGSTOP "
        "SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO SIGBUS "
        "SIGSYS SIGTRAP SIGPOLL SIGPWR SIGRTMIN SIGRTMAX alarm setitimer getitimer pause "
        "pthread_kill pthread_sigmask sigpending sigwait sigwaitinfo sigtimedwait siginterrupt "
        "ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF SIG_BLOCK SIG_UNBLOCK SIG_SETMASK"
    ),
    "time": "tzset clock_settime pthread_getcpuclockid",
}
MISSING_NAMES = {module: frozenset(words.split()) for module, words in MISSING_WORDS.items()}


class Blocker(importlib.abc.MetaPathFinder):
    """Refuses to import some modules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MISSING_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def import_other_packages() -> None:
    """Import what genlab uses, which has its own ways on each system."""
    import filelock  # noqa: F401
    import hydra  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch.distributed
    import torch.utils.data
    import torch.utils.tensorboard  # noqa: F401
    import torchvision  # noqa: F401
    from hydra.core.plugins import Plugins

    Plugins.instance()


def become_windows() -> None:
    """Remove what Windows lacks, and add a lock that always succeeds, as its module has one."""
    import os
    import signal
    import time

    for name in MISSING_MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Blocker())
    for module in (os, signal, time):
        for name in MISSING_NAMES[module.__name__]:
            if hasattr(module, name):
                delattr(module, name)
    fake = ModuleType("msvcrt")
    fake.LK_NBLCK = 2  # type: ignore[attr-defined]
    fake.locking = lambda handle, mode, count: None  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = fake


def become_macos() -> None:
    """Start processes as macOS does, without Linux's files about them."""
    import multiprocessing
    from pathlib import Path

    multiprocessing.set_start_method("spawn")
    sys.platform = "darwin"
    read_text = Path.read_text

    def refuse_proc(path: Path, *arguments: Any, **options: Any) -> str:
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read_text(path, *arguments, **options)

    Path.read_text = refuse_proc  # type: ignore[method-assign]


if __name__ == "__main__":
    import_other_packages()
    {"windows": become_windows, "macos": become_macos}[sys.argv.pop(1)]()
    from genlab.cli.main import main

    sys.argv[0] = "genlab"
    main()
