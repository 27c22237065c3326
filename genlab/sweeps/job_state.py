"""The states of a sweep's jobs: read, written, and checked against the scheduler."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from genlab.distributed.supervisor import PeerLostError
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.sweeps import squeue
from genlab.sweeps.file_locks import hold_job_lock, may_job_be_running
from genlab.sweeps.leases import Lease, keep_lease
from genlab.untrusted.files import open_regular_file, read_json, read_text
from genlab.untrusted.records import is_any_text, is_count, is_number, is_text, is_whole_number

# waiting: not started, or (again) in a scheduler's queue. stopped: a signal ended the job with
# everything saved. lost: its process, or another rank of the same training, is gone without a
# message (killed, out of memory, a dead node). All but done jobs resume from their checkpoint.
Status = Literal["done", "running", "waiting", "failed", "stopped", "lost"]
STATUSES: tuple[Status, ...] = get_args(Status)
MAX_ERROR_LINES = 5  # of an error that a state keeps
MAX_SUBMISSION_BYTES = 1000
LOG_TAIL_BYTES = 2**16  # read from the end of a log to find its last lines
# A job waits this long for its lock: a process that only tests the lock releases it at once.
JOB_LOCK_TIMEOUT_S = 5.0
RUN_LOG = "train.log"  # in the folder of a job whose output goes there


@dataclass(frozen=True)
class JobState:
    """The state of one job: its status, since when, where, and why."""

    status: Status = "waiting"
    since: str = ""  # ISO time
    starts: int = 0
    losses: int = 0  # starts that ended without a message: killed, out of memory, a dead node
    host: str = ""
    pid: int = 0
    slurm: str = ""  # the scheduler's job id, if any
    error: str = ""  # the last lines of the error
    result: dict[str, Any] | float | list[float] | None = None  # what the command returned


@dataclass(frozen=True)
class Job:
    """One job of a plan: its number, its overrides, its folder."""

    number: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def state(self) -> JobState:
        """The present state; a job counts as running only while its process lives."""
        return current_states([self])[0]


# --- state files ----------------------------------------------------------------------------------


def read_state(folder: Path) -> JobState:
    """Return the state that a job wrote last; a job that has written none is waiting.

    Raises:
        UserError: state.json is damaged.
    """
    path = folder / "state.json"
    if not path.exists():
        return JobState()
    try:
        state = JobState(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is unreadable: {error}") from error
    for key, is_valid in FIELD_CHECKS.items():
        if not is_valid(getattr(state, key)):
            raise UserError(f"{path} is unreadable: its {key} is not a value that genlab writes")
    return state


def is_job_id(value: Any) -> bool:
    """Whether a value may be a scheduler's job id; it becomes part of a path."""
    return isinstance(value, str) and re.fullmatch(r"\w{0,64}", value) is not None


def is_valid_command_result(value: Any) -> bool:
    """Whether a command may have returned this: numbers, with or without names, or nothing."""
    if isinstance(value, dict):
        numbers = list(value.values())
    else:
        numbers = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(v, bool) or is_number(v) for v in numbers)


# Checks of the values of a state, by key.
FIELD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "status": lambda value: value in STATUSES,
    "since": is_text,
    "host": is_text,
    "starts": is_count,
    "losses": is_count,
    "pid": is_whole_number,
    "slurm": is_job_id,
    "error": is_any_text,
    "result": is_valid_command_result,
}


def write_state(folder: Path, state: JobState) -> None:
    """Write a job's state with the present time."""
    folder.mkdir(parents=True, exist_ok=True)
    state = replace(state, since=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    atomic_write(folder / "state.json", json.dumps(asdict(state), indent=2).encode())


def submitted_job_id(folder: Path) -> str:
    """Return the scheduler's id of a submitted job; "" if it was not submitted.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "submitted"
    job_id = read_text(path, MAX_SUBMISSION_BYTES) if path.exists() else ""
    if not is_job_id(job_id):
        raise UserError(f"{path} is unreadable: it does not hold a job id, such as 12 or 12_3")
    return job_id


def record_submission(folder: Path, slurm_id: str) -> None:
    """Write a job's scheduler id beside its state, which only the job itself writes."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "submitted", slurm_id.encode())


# --- the present state ----------------------------------------------------------------------------


def current_states(jobs: Sequence[Job]) -> list[JobState]:
    """Return the present states of jobs, with one query to the scheduler for all of them."""
    queue = query_slurm_queue(jobs)
    return [current_state(job, queue) for job in jobs]


def query_slurm_queue(jobs: Sequence[Job]) -> dict[str, str] | None:
    """Return job id -> SLURM state of the jobs that SLURM knows; None without an answer."""
    ids: list[str] = []
    for job in jobs:
        state, submitted = read_state(job.folder), submitted_job_id(job.folder)
        if state.status != "done":
            ids += [state.slurm, submitted]
    return squeue.query_slurm_states(ids)


def current_state(job: Job, queue: dict[str, str] | None) -> JobState:
    """Return a job's present state, from what it wrote last and from the scheduler's queue.

    A job in the scheduler's queue is waiting, with its id.

    Args:
        queue: job id -> SLURM state; None if SLURM does not answer.
    """
    state, submitted = read_state(job.folder), submitted_job_id(job.folder)
    if state.status == "done":
        return state
    if state.status == "running" and not state.slurm:
        alive = may_job_be_running(job.folder, state.host)
        return state if alive else replace(state, status="lost")
    in_queue = squeue.RUNNING_STATES | squeue.PENDING_STATES
    if submitted != state.slurm and (queue is None or queue.get(submitted) in in_queue):
        # Submitted again, and not started yet.
        return replace(state, status="waiting", slurm=submitted)
    slurm_state = (queue or {}).get(state.slurm)
    if queue is None or (state.status == "running" and slurm_state in squeue.RUNNING_STATES):
        return state
    if state.status != "failed" and slurm_state in in_queue:
        # Its worker was queued again, and will continue with this job or another one.
        return replace(state, status="waiting", slurm=submitted or state.slurm)
    return replace(state, status="lost") if state.status == "running" else state


def is_in_slurm_queue(state: JobState) -> bool:
    """Whether a job is in a scheduler's queue."""
    return state.status == "waiting" and bool(state.slurm)


def read_log_tail(job: Job) -> list[str]:
    """Return the last lines of the log of a job's newest process.

    They are all that is left of a process that was killed.
    """
    submitit_folder = job.folder.parent / ".submitit"
    logs = [path for path in (job.folder / RUN_LOG,) if path.exists()]
    for name in (submitted_job_id(job.folder), f"local-{job.number}-*"):
        if name:
            logs += submitit_folder.glob(f"{name}/*_0_log.err")
    newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
    if newest is None:
        return []
    with open_regular_file(newest) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
        lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-MAX_ERROR_LINES:]


# --- running a job --------------------------------------------------------------------------------


def run_and_record_job(folder: Path, work: Callable[[], Any], lease: Lease | None = None) -> Any:
    """Do a job's work, and write its state before and after.

    Args:
        lease: the claim of the job, which is renewed while the work lasts.

    Returns:
        what the work returns; for a job that is done, what it returned then.

    Raises:
        UserError: another process does the job already.
        Exception: any exception of the work, after it is written to the state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold_job_lock(folder, timeout_s=JOB_LOCK_TIMEOUT_S), keep_lease(lease):
        before = read_state(folder)
        if before.status == "done":
            return before.result
        state = JobState(
            "running",
            starts=before.starts + 1,
            losses=before.losses + (before.status == "running"),
            host=socket.gethostname(),
            pid=os.getpid(),
            slurm=current_slurm_job_id(),
        )
        write_state(folder, state)
        try:
            result = work()
        except BaseException as error:
            status, summary = status_after_error(error), summarize_error(error)
            write_state(folder, replace(state, status=status, error=summary))
            raise
        write_state(folder, replace(state, status="done", result=result))
        return result


def status_after_error(error: BaseException) -> Status:
    """Return the status of a job that ended with an error: "failed" if it cannot resume."""
    if getattr(error, "exit_code", 2) > 128 or isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped"
    return "lost" if isinstance(error, PeerLostError) and error.is_silent_death else "failed"


def current_slurm_job_id() -> str:
    """Return the SLURM id of the job of this process; "" without a scheduler."""
    # A local job inside an allocation is not the allocation's own job.
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def summarize_error(error: BaseException) -> str:
    """Return the last lines of an error: the message of a UserError, else the traceback."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return ""
    is_user_error = isinstance(error, UserError)
    text = str(error) if is_user_error else "".join(traceback.format_exception(error))
    return "\n".join(text.strip().splitlines()[-MAX_ERROR_LINES:])
