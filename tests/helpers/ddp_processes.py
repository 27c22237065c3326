"""Start and await the processes of one distributed training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}",
}


def popen(*what: object, cwd: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        list(map(str, what)),
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(processes: int, *what: object, cwd: Path | list[Path]) -> list[subprocess.Popen]:
    """Start Python with these arguments in processes that know each other by variables alone, and nobody watches over.

    Args:
        cwd: the folder of all of them, or one of each.
    """
    folders = cwd if isinstance(cwd, list) else [cwd] * processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    return [
        popen(sys.executable, *what, cwd=own, **place, RANK=str(n), LOCAL_RANK=str(n))
        for n, own in enumerate(folders)
    ]


def ended(processes: list[subprocess.Popen], within: float) -> list[tuple[int, str, str]]:
    """Return each process's exit code and what it printed, soon."""
    until = time.monotonic() + within
    try:
        said = [p.communicate(timeout=max(1.0, until - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert not any("Traceback" in err and "ChildFailedError" not in err for _, err in said), said
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]
