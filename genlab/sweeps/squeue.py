"""Query SLURM for the states of jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

RUNNING_STATES = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
PENDING_STATES = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SPECIAL_EXIT",
}
QUERY_TIMEOUT_S = 60


def query_slurm_states(ids: Iterable[str]) -> dict[str, str] | None:
    """Return job id -> state in SLURM's words, by one query; None if SLURM does not answer.

    A job that SLURM has forgotten is absent. SLURM forgets a job minutes after its end.

    Args:
        ids: "12", or "12_3" for a job of an array.
    """
    wanted = sorted({job_id.partition("_")[0] for job_id in ids if job_id})
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
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    # SLURM calls the ids invalid if it has forgotten all of them.
    if result.returncode and "Invalid job id" not in result.stderr:
        return None
    return dict(line.strip().split("|", 1) for line in result.stdout.splitlines() if "|" in line)
