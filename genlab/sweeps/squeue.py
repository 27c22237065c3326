"""Query SLURM for the states of jobs."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Iterable, Sequence

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
    result = run_query(command)
    if result is None:
        return None
    # SLURM calls the ids invalid if it has forgotten all of them.
    if result.returncode and "Invalid job id" not in result.stderr:
        return None
    return dict(line.strip().split("|", 1) for line in result.stdout.splitlines() if "|" in line)


def run_query(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Return the result of one of SLURM's commands; None without SLURM or without an answer."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=QUERY_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


# --- limits ---------------------------------------------------------------------------------------


def query_max_array_size() -> int | None:
    """Return how many tasks an array may have; None if SLURM does not say it."""
    result = run_query(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", result.stdout if result else "", re.M)
    return max(1, int(found[1])) if found else None


def query_max_submitted_jobs(qos: str | None) -> int | None:
    """Return how many jobs this user may have in the queue; None without a limit.

    Args:
        qos: the quality of service of the jobs, which may have its own limit.
    """
    user = getpass.getuser()
    queries = [["show", "assoc", f"user={user}", "format=MaxSubmitJobs,GrpSubmitJobs"]]
    if qos:
        queries.append(["show", "qos", qos, "format=MaxSubmitJobsPerUser,GrpSubmitJobs"])
    limits: list[int] = []
    for query in queries:
        result = run_query(["sacctmgr", "--noheader", "--parsable2", *query])
        if result is not None and result.returncode == 0:
            limits += [int(number) for number in re.findall(r"\d+", result.stdout)]
    return min(limits, default=None)


def count_own_jobs() -> int:
    """Return how many jobs this user has in the queue, each task of an array counted."""
    result = run_query(["squeue", "--noheader", "--array", f"--user={getpass.getuser()}"])
    return len(result.stdout.splitlines()) if result is not None else 0
