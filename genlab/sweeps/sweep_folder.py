"""A sweep is a folder: plan.json, and for each job a run folder with a state.json beside its checkpoints."""

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

from genlab.distributed.supervisor import Lost
from genlab.errors import UserError
from genlab.fileio import read_json, read_text, refuse_links, write_whole
from genlab.sweeps import squeue, trust
from genlab.sweeps.file_locks import held, hold

# waiting: not begun, or in a scheduler's queue (again). stopped: a signal ended it, with everything saved. lost: its process,
# or another one of the same training, is gone and said nothing (killed, out of memory, a dead node). All but done go on from
# their checkpoint.
Status = Literal["done", "running", "waiting", "failed", "stopped", "lost"]
STATUSES: tuple[Status, ...] = get_args(Status)
LINES = 5  # of an error that a state keeps
PATIENCE = 5.0  # seconds for which a job waits for its folder: who only looks whether it is held lets go at once
ELSEWHERE = ("device", "debug")  # options that say where and how a job runs, not what it does
TAIL = 2**16  # bytes of a log in which its last lines are looked for
# Links of submitit's and optuna's own, which point elsewhere once the sweep is moved; nothing is read or written through them.
LINKED = re.compile(r"\.submitit/[^/]*\.pkl|study\.journal\.lock")


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
            UserError: there is none, or it has a link out of it.
        """
        sweep = cls(Path(where))
        if not (sweep.path / "plan.json").exists():
            raise UserError(
                f"{where} is no sweep: it has no plan.json; give a folder that `genlab train -m` made"
            )
        sweep.refuse_links()
        return sweep

    def refuse_links(self) -> None:
        """Refuse a sweep with a link out of it, through which a stranger's sweep would have other files read and written.

        Raises:
            UserError: names the link.
        """
        refuse_links(self.path, "sweep", LINKED)

    def plan(self) -> dict[str, Any]:
        """Return plan.json: the command, the folder that it was given in, the sweeper, and each job's overrides.

        Raises:
            UserError: it is damaged.
        """
        return trust.well_formed(read_json(self.path / "plan.json"), self.path / "plan.json")

    @property
    def quoted(self) -> str:
        """The override that names the folder, whatever characters it has."""
        return (
            "hydra.sweep.dir='"
            + str(self.path.resolve()).replace("\\", "\\\\").replace("'", "\\'")
            + "'"
        )

    def jobs(self) -> list[Job]:
        """Return the planned jobs by their numbers."""
        rows = enumerate(self.plan()["jobs"])
        return [
            Job(number, tuple(overrides), self.path / str(number)) for number, overrides in rows
        ]

    def extend(
        self,
        command: Sequence[str],
        first: int,
        overrides: Sequence[Sequence[str]],
        *,
        sweeper: str = "basic",
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
            trust.remember(plan)
        return self.jobs()[first : first + len(overrides)]


def what(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that say what a job does."""
    return [
        o for o in overrides if o.lstrip("+~").partition("=")[0].partition(".")[0] not in ELSEWHERE
    ]


def own_options(jobs: Sequence[Job]) -> list[list[str]]:
    """Return of each job the overrides that not all jobs have; of a single job all that say what it does."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [[o for o in what(job.overrides) if o not in shared] for job in jobs]


def last_words(job: Job) -> list[str]:
    """Return the last lines of what a job's newest process said: what there is of one that died without a word."""
    kept = job.folder.parent / ".submitit"
    logs = [
        log
        for name in (submitted(job.folder), f"local-{job.number}-*")
        if name
        for log in kept.glob(f"{name}/*_0_log.err")
    ]
    newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
    if newest is None:
        return []
    with open(newest, "rb") as file:
        file.seek(max(0, newest.stat().st_size - TAIL))
        lines = file.read(TAIL).decode(errors="replace").splitlines()
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
        state = State(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} is unreadable: {error}") from error
    if wrong := next((key for key, fits in FITS.items() if not fits(getattr(state, key))), None):
        raise UserError(f"{path} is unreadable: its {wrong} is not as genlab writes it")
    return state


def word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()  # a terminal acts on some characters


def an_id(value: Any) -> bool:
    return (
        isinstance(value, str) and re.fullmatch(r"\w{0,64}", value) is not None
    )  # it becomes part of a path


def returned(value: Any) -> bool:
    """Return whether a command may have returned this: numbers, by name or not, or nothing."""
    values = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    )
    return value is None or all(isinstance(one, int | float) for one in values)


# What genlab writes of a state, by its key.
FITS: dict[str, Callable[[Any], bool]] = {
    "status": lambda value: value in STATUSES,
    **dict.fromkeys(("since", "host"), word),
    **dict.fromkeys(("starts", "pid"), lambda value: isinstance(value, int)),
    "slurm": an_id,
    "error": lambda value: isinstance(value, str),
    "result": returned,
}


def write(folder: Path, state: State) -> None:
    """Write a job's state."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        folder / "state.json", json.dumps(asdict(replace(state, since=now())), indent=2).encode()
    )


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def submitted(folder: Path) -> str:
    """Return the scheduler's id of a job that was handed to it, whether or not it has begun; "" if it was not.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "submitted"
    found = read_text(path, most=1000) if path.exists() else ""
    if not an_id(found):
        raise UserError(f"{path} is unreadable: it holds no id of a job, such as 12 or 12_3")
    return found


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
    return squeue.ask(
        one for state, handed in states if state.status != "done" for one in (state.slurm, handed)
    )


def stands(job: Job, queue: dict[str, str] | None) -> State:
    """Return how a job stands, from what it last wrote and from what the scheduler says of it (None: it does not answer).

    Of a job in the scheduler's queue the state is waiting, with its id.
    """
    state, handed = read(job.folder), submitted(job.folder)
    if state.status == "done":
        return state
    if state.status == "running" and not state.slurm:
        return state if held(job.folder, state.host) else replace(state, status="lost")
    there = squeue.RUNS | squeue.WAITS
    if handed != state.slurm and (
        queue is None or queue.get(handed) in there
    ):  # begun anew, and not yet at work
        return replace(state, status="waiting", slurm=handed)
    if queue is None or (state.status == "running" and queue.get(state.slurm) in squeue.RUNS):
        return state
    if state.status != "failed" and queue.get(state.slurm) in there:
        return replace(state, status="waiting", slurm=handed)
    return replace(state, status="lost") if state.status == "running" else state


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
        state = State(
            "running",
            starts=before.starts + 1,
            host=socket.gethostname(),
            pid=os.getpid(),
            slurm=own_id(),
        )
        write(folder, state)
        try:
            result = work()
        except BaseException as error:
            write(folder, replace(state, status=ended_by(error), error=said(error)))
            raise
        write(folder, replace(state, status="done", result=result))
        return result


def ended_by(error: BaseException) -> Status:
    """Return how a job stands that ended with an error: what goes on if it is started again is not failed."""
    if getattr(error, "exit_code", 2) > 128 or isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped"
    return "lost" if isinstance(error, Lost) and error.silent else "failed"


def own_id() -> str:
    """Return the scheduler's id of the job that this process was started for; "" if a scheduler did not start it."""
    if (
        os.environ.get("SUBMITIT_EXECUTOR") != "slurm"
    ):  # a local job inside somebody's allocation is not the allocation
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def said(error: BaseException) -> str:
    """Return the last lines of what an error says; of what the user did wrong, that alone."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return ""
    text = (
        str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    )
    return "\n".join(text.strip().splitlines()[-LINES:])
