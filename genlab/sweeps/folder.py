"""A sweep is a folder: plan.json, and for each job a run folder with a state.json beside its checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from genlab.errors import UserError
from genlab.sweeps import own
from genlab.training.files import lockable, read_json, write_whole

# waiting: not begun, or given back by a scheduler. stopped: a signal ended it, with everything saved. lost: its process is
# gone and said nothing (killed, out of memory, a dead node). The last three and running go on from their checkpoint.
Status = Literal["waiting", "running", "done", "failed", "stopped", "lost"]
LINES = 5  # of an error that a state keeps


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
    """One job of a plan: its number, its own overrides, its folder."""

    number: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def state(self) -> State:
        """How the job stands now; what says it runs is believed only while its process lives."""
        state = read(self.folder)
        return replace(state, status="lost") if state.status == "running" and not alive(state) else state


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
        """Return plan.json: the command, the folder that it was given in, and each job's overrides.

        Raises:
            UserError: it is damaged.
        """
        return own.well_formed(read_json(self.path / "plan.json"), self.path / "plan.json")

    def jobs(self) -> list[Job]:
        """Return the planned jobs by their numbers."""
        rows = enumerate(self.plan()["jobs"])
        return [Job(number, tuple(overrides), self.path / str(number)) for number, overrides in rows]

    def extend(self, command: Sequence[str], first: int, overrides: Sequence[Sequence[str]]) -> list[Job]:
        """Plan the jobs from number `first` on, unless that is done; return them.

        Raises:
            UserError: another sweep lies in this folder: a number has other overrides there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path / ".plan.lock"):
            known = self.plan() if (self.path / "plan.json").exists() else {"jobs": []}
            for number, mine in enumerate(overrides, first):
                if number < len(known["jobs"]) and known["jobs"][number] != list(mine):
                    raise UserError(
                        f"{self.path} holds another sweep: its job {number} is {' '.join(known['jobs'][number])}, "
                        f"and here it would be {' '.join(mine)}; give another hydra.sweep.dir="
                    )
            jobs = [*known["jobs"][:first], *map(list, overrides), *known["jobs"][first + len(overrides) :]]
            plan = {"command": known.get("command", list(command)), "cwd": known.get("cwd", os.getcwd()), "jobs": jobs}
            write_whole(self.path / "plan.json", json.dumps(plan, indent=2).encode())
            own.remember(plan)
        return self.jobs()[first : first + len(overrides)]


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


def alive(state: State) -> bool:
    """Return whether the process of a running job is still there, as far as this machine can tell."""
    if state.slurm:
        command = ["squeue", "--noheader", "--format=%T", f"--jobs={state.slurm}"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except FileNotFoundError:
            return True  # no scheduler here to ask
        return said.returncode == 0 and bool({"RUNNING", "COMPLETING", "SUSPENDED"} & set(said.stdout.split()))
    if state.host != socket.gethostname():
        return True
    return Path(f"/proc/{state.pid}").exists() if Path("/proc/self").exists() else can_signal(state.pid)


def can_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def hold(path: Path) -> Iterator[IO[str]]:
    """Hold a file's lock; who comes second waits."""
    with lockable(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


def run(folder: Path, work: Callable[[], Any]) -> Any:
    """Do a job's work with its state written before and after; return what it returns, or what it returned when it was done.

    Raises:
        Exception: whatever the work raised, after the state says so.
    """
    before = read(folder)
    if before.status == "done":
        return before.result
    slurm = os.environ.get("SLURM_ARRAY_JOB_ID", "") and f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    slurm = slurm or os.environ.get("SLURM_JOB_ID", "")
    state = State("running", starts=before.starts + 1, host=socket.gethostname(), pid=os.getpid(), slurm=slurm)
    write(folder, state)
    try:
        result = work()
    except BaseException as error:
        stopped = getattr(error, "exit_code", 2) > 128 or isinstance(error, KeyboardInterrupt | SystemExit)
        said = traceback.format_exception(error) if not isinstance(error, UserError) else [str(error)]
        lines = "".join(said).strip().splitlines()[-LINES:]
        write(folder, replace(state, status="stopped" if stopped else "failed", error="\n".join(lines)))
        raise
    write(folder, replace(state, status="done", result=result))
    return result
