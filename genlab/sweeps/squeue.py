"""What a SLURM cluster says of its jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

RUNS = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
WAITS = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SPECIAL_EXIT",
}


def ask(ids: Iterable[str]) -> dict[str, str] | None:
    """Return job id -> its state in SLURM's words, in one question; None if SLURM does not answer.

    A job that it has forgotten is absent: a cluster does so minutes after a job's end.

    Args:
        ids: "12", or "12_3" of an array.
    """
    wanted = sorted({one.partition("_")[0] for one in ids if one})
    if not wanted:
        return {}
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%i|%T",
        f"--jobs={','.join(wanted)}",
    ]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if (
        said.returncode and "Invalid job id" not in said.stderr
    ):  # what it says where it has forgotten all of them
        return None
    return dict(line.strip().split("|", 1) for line in said.stdout.splitlines() if "|" in line)
