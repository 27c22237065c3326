"""A sweep is a folder: plan.json, and for each job a run folder with a state.json beside its checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

from genlab.errors import UserError
from genlab.sweeps import own, slurm
from genlab.training.files import lockable, read_json, write_whole

# waiting: not begun, or in a scheduler's queue (again). stopped: a signal ended it, with everything saved. lost: its process
# is gone and said nothing (killed, out of memory, a dead node). All but done go on from their checkpoint.
Status = Literal["done", "running", "waiting", "failed", "stopped", "lost"]
STATUSES: tuple[Status, ...] = get_args(Status)
LINES = 5  # of an error that a state keeps
PATIENCE = 5.0  # seconds for which a job waits for its folder: who only looks whether it is held lets go at once
ELSEWHERE = ("device", "debug")  # options that say where and how a job runs, not what it does


@dataclass(frozen=True)
class State:
    """What is known of one job: how it stands, since when, where, and why."""

    status: Status = "waiting"
    since: str = ""  # ISO time
    starts: int = 0
    host: str = ""
    pid: int = 0
    slurm: str = ""  # the scheduler's id, where there is one
    error: str = ""  # the last lines of what went wrong
    result: dict[str, Any] | float | list[float] | None = None  # what the command returned


@dataclass(frozen=True)
class Job:
    """One job of a plan: its number, its overrides, its folder."""

    number: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def state(self) -> State:
        """How the job stands now; what says it runs is believed only while its process lives."""
        return standing([self])[0]


class SweepFolder:
    """A sweep's plan and its jobs' states."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def find(cls, where: str | Path) -> SweepFolder:
        """Return the sweep in a folder.

        Raises:
            UserError: there is none.
        """
        sweep = cls(Path(where))
        if not (sweep.path / "plan.json").exists():
            raise UserError(f"{where} is no sweep: it has no plan.json; give a folder that `genlab train -m` made")
        return sweep

    def plan(self) -> dict[str, Any]:
        """Return plan.json: the command, the folder that it was given in, the sweeper, and each job's overrides.

        Raises:
            UserError: it is damaged.
        """
        return own.well_formed(read_json(self.path / "plan.json"), self.path / "plan.json")

    @property
    def quoted(self) -> str:
        """The override that names the folder, whatever characters it has."""
        return "hydra.sweep.dir='" + str(self.path.resolve()).replace("\\", "\\\\").replace("'", "\\'") + "'"

    def jobs(self) -> list[Job]:
        """Return the planned jobs by their numbers."""
        rows = enumerate(self.plan()["jobs"])
        return [Job(number, tuple(overrides), self.path / str(number)) for number, overrides in rows]

    def extend(
        self, command: Sequence[str], first: int, overrides: Sequence[Sequence[str]], *, sweeper: str = "basic"
    ) -> list[Job]:
        """Plan the jobs from number `first` on, unless that is done; return them. The newest command is kept.

        Raises:
            UserError: another sweep lies in this folder: a number does something else there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path / ".plan.lock"):
            known = self.plan()["jobs"] if (self.path / "plan.json").exists() else []
            for number, mine in enumerate(overrides, first):
                if number < len(known) and what(known[number]) != what(mine):
                    raise UserError(
                        f"{self.path} holds another sweep: its job {number} is {' '.join(known[number])}, "
                        f"and here it would be {' '.join(mine)}; give another hydra.sweep.dir="
                    )
            jobs = [*known[:first], *map(list, overrides), *known[first + len(overrides) :]]
            plan = {"command": list(command), "cwd": os.getcwd(), "sweeper": sweeper, "jobs": jobs}
            write_whole(self.path / "plan.json", json.dumps(plan, indent=2).encode())
            own.remember(plan)
        return self.jobs()[first : first + len(overrides)]


def what(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that say what a job does."""
    return [o for o in overrides if o.lstrip("+~").partition("=")[0].partition(".")[0] not in ELSEWHERE]


def own_options(jobs: Sequence[Job]) -> list[list[str]]:
    """Return of each job the overrides that not all jobs have; of a single job all that say what it does."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [[o for o in what(job.overrides) if o not in shared] for job in jobs]


def last_words(job: Job) -> list[str]:
    """Return the last lines of what a job's newest process said: what there is of one that died without a word."""
    kept = job.folder.parent / ".submitit"
    logs = [log for name in (submitted(job.folder), f"local-{job.number}-*") if name for log in kept.glob(f"{name}/*_0_log.err")]
    newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
    lines = newest.read_text(errors="replace").splitlines() if newest else []
    return [line for line in lines if line.strip()][-LINES:]


# --- a job says how it stands -----------------------------------------------------------------------------------------


def read(folder: Path) -> State:
    """Return the state that a job last wrote; none yet is waiting.

    Raises:
        UserError: state.json is damaged.
    """
    path = folder / "state.json"
    if not path.exists():
        return State()
    try:
        return State(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is unreadable: {error}") from error


def write(folder: Path, state: State) -> None:
    """Write a job's state."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "state.json", json.dumps(asdict(replace(state, since=now())), indent=2).encode())


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def submitted(folder: Path) -> str:
    """Return the scheduler's id of a job that was handed to it, whether or not it has begun; "" if it was not."""
    path = folder / "submitted"
    return path.read_text() if path.exists() else ""


def note_submitted(folder: Path, slurm_id: str) -> None:
    """Remember the scheduler's id of a job: beside its state, which the job alone writes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "submitted", slurm_id.encode())


def standing(jobs: Sequence[Job]) -> list[State]:
    """Return how jobs stand now, with one question to the scheduler for all of them."""
    queue = ask(jobs)
    return [stands(job, queue) for job in jobs]


def ask(jobs: Sequence[Job]) -> dict[str, str] | None:
    """Return what the scheduler says of those jobs that it has or had; None if it does not answer."""
    states = [(read(job.folder), submitted(job.folder)) for job in jobs]
    return slurm.ask(one for state, handed in states if state.status != "done" for one in (state.slurm, handed))


def stands(job: Job, queue: dict[str, str] | None) -> State:
    """Return how a job stands, from what it last wrote and from what the scheduler says of it (None: it does not answer).

    Of a job in the scheduler's queue the state is waiting, with its id.
    """
    state, handed = read(job.folder), submitted(job.folder)
    if state.status == "done":
        return state
    if state.status == "running" and not state.slurm:
        return state if held(job.folder, state) else replace(state, status="lost")
    there = slurm.RUNS | slurm.WAITS
    if handed != state.slurm and (queue is None or queue.get(handed) in there):  # begun anew, and not yet at work
        return replace(state, status="waiting", slurm=handed)
    if queue is None or (state.status == "running" and queue.get(state.slurm) in slurm.RUNS):
        return state
    if state.status != "failed" and queue.get(state.slurm) in there:
        return replace(state, status="waiting", slurm=handed)
    return replace(state, status="lost") if state.status == "running" else state


def held(folder: Path, state: State) -> bool:
    """Return whether the process of a job that no scheduler started is still there, as far as this machine can tell."""
    if state.host != socket.gethostname():
        return True
    try:
        with open(folder / ".job.lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


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


def run(folder: Path, work: Callable[[], Any]) -> Any:
    """Do a job's work with its state written before and after; return what it returns, or what it returned when it was done.

    Raises:
        UserError: another process does it already.
        Exception: whatever the work raised, after the state says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / ".job.lock", patience=PATIENCE):
        before = read(folder)
        if before.status == "done":
            return before.result
        state = State("running", starts=before.starts + 1, host=socket.gethostname(), pid=os.getpid(), slurm=own_id())
        write(folder, state)
        try:
            result = work()
        except BaseException as error:
            stopped = getattr(error, "exit_code", 2) > 128 or isinstance(error, KeyboardInterrupt | SystemExit)
            write(folder, replace(state, status="stopped" if stopped else "failed", error=said(error)))
            raise
        write(folder, replace(state, status="done", result=result))
        return result


def own_id() -> str:
    """Return the scheduler's id of the job that this process was started for; "" if a scheduler did not start it."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":  # a local job inside somebody's allocation is not the allocation
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def said(error: BaseException) -> str:
    """Return the last lines of what an error says; of what the user did wrong, that alone."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return ""
    text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    return "\n".join(text.strip().splitlines()[-LINES:])
