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
    "TQDM_DISABLE": "1",  # no progress between the messages that tests compare
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}",
}


def popen(*command: object, cwd: Path, **environment: str) -> subprocess.Popen:
    """Start a command with captured output."""
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ranks(
    processes: int, *arguments: object, cwd: Path | list[Path]
) -> list[subprocess.Popen]:
    """Start Python in several ranks, connected only by environment variables.

    Args:
        cwd: the folder of all of them, or one for each.
    """
    folders = cwd if isinstance(cwd, list) else [cwd] * processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables = {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    return [
        popen(sys.executable, *arguments, cwd=path, **variables, RANK=str(n), LOCAL_RANK=str(n))
        for n, path in enumerate(folders)
    ]


def wait_for(processes: list[subprocess.Popen], within: float) -> list[tuple[int, str, str]]:
    """Return each process's exit code, output and standard error, within so many seconds."""
    until = time.monotonic() + within
    try:
        outputs = [p.communicate(timeout=max(1.0, until - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()
    tracebacks = [err for _, err in outputs if "Traceback" in err]
    assert all("ChildFailedError" in err for err in tracebacks), outputs  # torchrun's own
    return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]
