"""Waiting for a sweep's jobs, wherever they run: start what there is room for, start again what was lost, say what happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from genlab.errors import UserError, printable
from genlab.signals import Signals, Stopped
from genlab.sweeps import sweep_folder
from genlab.sweeps.file_locks import certain, locked
from genlab.sweeps.sweep_folder import Job, State

ROUND = (
    0.05,
    1.0,
)  # seconds between two looks at the jobs' folders: soon after something happened, and later
ASK = (2.0, 30.0)  # likewise between two questions to a scheduler, which has others to answer
DOUBT = (
    60.0  # seconds in which a job that another machine may be at work at ends, or is asked about
)


class Machine(Protocol):
    """Where jobs run."""

    def room(self, running: int) -> int:
        """Return how many more jobs may start beside those that run or are in its queue."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs.

        Raises:
            UserError: it refuses them.
        """

    def ended(self, job: Job) -> bool | None:
        """Return whether a job's process has ended; None if it is not this process that started it."""

    def interrupt(self, jobs: Sequence[Job]) -> str:
        """Deal with the jobs when the launcher is asked to end; return what became of them."""


def watch(jobs: Sequence[Job], machine: Machine, *, names: dict[int, str], tries: int) -> None:
    """Run jobs that are not done, and wait until all have ended, whatever one of them does.

    A job that was lost or stopped starts again, `tries` times in all, and goes on from its checkpoint; one that failed would
    fail again. A job that an earlier start of the sweep left at work, or in a queue, is waited for.

    Args:
        names: number -> what a job is called.
        tries: how often one is started.

    Raises:
        UserError: the machine refuses the jobs.
        Stopped: a signal ended the wait.
    """
    watched, queue = [Watched(job, names[job.number]) for job in jobs], sweep_folder.ask(jobs)
    for one in watched:
        state = sweep_folder.stands(one.job, queue)
        one.ending = (queue or {}).get(sweep_folder.submitted(one.job.folder)) == "COMPLETING"
        # What stood there before a start says nothing about it: the count of starts tells them apart.
        one.known = state.starts - (state.status == "running")
        one.there = state.status == "running" or queued(state)
        if one.there:
            say(f"{one.name}: was started before, and goes on")
    waiting, running = (
        [one for one in watched if not one.there],
        [one for one in watched if one.there],
    )
    scheduler, pause, began = Scheduler(), ROUND[0], time.monotonic()
    with Signals() as signals:
        while (waiting or running) and not signals.name:
            if waiting and (chosen := waiting[: machine.room(len(running))]):
                waiting, pause, scheduler = waiting[len(chosen) :], ROUND[0], Scheduler()
                for one in chosen:
                    one.begin()
                try:
                    machine.start([one.job for one in chosen])
                    running += chosen
                except UserError as error:
                    if not running:
                        raise
                    say(f"{', '.join(one.name for one in chosen)}: not started again: {error}")
            time.sleep(pause)
            pause = min(ROUND[1], pause * 1.2)
            for one in running:
                one.look()
                if (
                    one.there
                    and not one.doubted
                    and time.monotonic() - began > DOUBT
                    and one.doubtful
                ):
                    one.doubt()
            over = {one: machine.ended(one.job) for one in running}
            gone = [one for one in running if (one.finished if over[one] is None else over[one])]
            gone += scheduler.gone(
                [one for one in running if over[one] is None and not one.finished]
            )
            for one in gone:
                running.remove(one)
                pause = ROUND[0]
                one.look()  # it may have said more before it went
                ended_as = (scheduler.queue or {}).get(sweep_folder.submitted(one.job.folder), "")
                cancelled = (
                    ended_as == "CANCELLED" and not one.ending
                )  # on purpose, and not before this command was given
                again = not one.finished and one.starts < tries and not cancelled
                say(f"{one.name}: {one.outcome(ended_as)}{again * '; it is started again'}")
                waiting += [one] * again
        if signals.name:
            became = machine.interrupt([one.job for one in running])
            raise Stopped(f"{signals.name}: {became}; the same command goes on", signals.name)


class Watched:
    """A job while it is waited for: how often it was started, and what it says of its last start."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name = job, name
        self.starts = self.known = 0
        self.there = self.told = self.doubted = self.ending = False
        self.state = State()

    def begin(self) -> None:
        """Note what stands there before a start."""
        self.starts, self.known, self.told, self.ending = (
            self.starts + 1,
            sweep_folder.read(self.job.folder).starts,
            False,
            False,
        )

    @property
    def doubtful(self) -> bool:
        """Whether it is held to be at work only because nobody here can know."""
        where, state = self.job.folder, self.state
        return (
            state.status == "running"
            and not state.slurm
            and not certain(where, state.host)
            and not locked(where)
        )

    def doubt(self) -> None:
        """Tell once what is waited for that may be gone, and what ends the wait."""
        self.doubted = True
        whom, file = (
            f"process {self.state.pid} on {self.state.host}",
            self.job.folder / "state.json",
        )
        say(f"{self.name}: is waited for: {whom} began it, which cannot be seen from here; if that is gone, delete {file}, and "
            "the job is started again")  # fmt: skip

    def look(self) -> None:
        """Read what the job says, and tell when it begins."""
        self.state = sweep_folder.read(self.job.folder)
        if self.state.status == "running" and self.heard and not self.told:
            self.told = True
            say(
                f"{self.name}: runs on {self.state.host}{self.state.slurm and f' as {self.state.slurm}'}"
            )

    @property
    def heard(self) -> bool:
        return self.state.starts > self.known

    @property
    def finished(self) -> bool:
        return self.heard and self.state.status in ("done", "failed")

    def outcome(self, ended_as: str) -> str:
        """Return what became of the job, in a line; `ended_as` is the scheduler's word for it, such as OUT_OF_MEMORY."""
        if self.finished or (self.heard and self.state.status in ("stopped", "lost")):
            last = self.state.error.splitlines()[-1:]
            return self.state.status + (f": {last[0].strip()}" if last else "")
        last = sweep_folder.last_words(self.job)[-1:]
        lost = "lost: its process is gone" + (f" ({ended_as})" if ended_as else "")
        return lost + (f"; it last said: {last[0].strip()}" if last else "")


class Scheduler:
    """Finds out which jobs are gone that no process here belongs to; it asks the more rarely, the longer nothing happens."""

    def __init__(self) -> None:
        self.at, self.every = time.monotonic(), ASK[0]
        self.missing: set[int] = set()
        self.queue: dict[str, str] | None = None

    def gone(self, unseen: Sequence[Watched]) -> list[Watched]:
        """Return the jobs that were gone both times when it last asked: their folder may be news of a moment ago."""
        if not unseen or time.monotonic() - self.at < self.every:
            return []
        self.queue = sweep_folder.ask([one.job for one in unseen])
        self.at, self.every = time.monotonic(), min(ASK[1], self.every * 1.5)
        if self.queue is None:  # it does not answer: it may be the scheduler that is gone
            return []
        states = [sweep_folder.stands(one.job, self.queue) for one in unseen]
        now = [
            one
            for one, state in zip(unseen, states, strict=True)
            if not (state.status == "running" or queued(state))
        ]
        twice = [one for one in now if one.job.number in self.missing]
        self.missing = {one.job.number for one in now}
        self.every = ASK[0] if self.missing else self.every
        return twice


def queued(state: State) -> bool:
    """Return whether a job is in a scheduler's queue."""
    return state.status == "waiting" and bool(state.slurm)


def named(jobs: Sequence[Job]) -> dict[int, str]:
    """Return number -> what a job is called in a line: its number, and the options that it does not share with all."""
    return {
        job.number: " ".join([f"job {job.number}", *own])
        for job, own in zip(jobs, sweep_folder.own_options(jobs), strict=True)
    }


def say(line: str) -> None:
    """Print a line on stderr, without characters that a terminal would act on: an error or a log may have them."""
    print(printable(line), file=sys.stderr, flush=True)
