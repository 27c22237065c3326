"""Measure a sweep of many tiny jobs whose workers and jobs are killed at random.

Each job must be done once, whatever is killed. A killed worker is replaced, as by a scheduler.

    python scripts/benchmarks/sweep_workers.py --jobs 1000 --workers 2 --kill-every 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from genlab.sweeps.job_state import read_state
from genlab.sweeps.leases import Journal, read_newest_lease
from genlab.sweeps.sweep_folder import SweepFolder

# A training that does next to nothing.
OPTIONS = (
    "model=rbm",
    "device=cpu",
    "device.threads=1",
    "trainer.steps=1",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
)
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_INTERVAL_S = 0.5


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        done_once: how many jobs are done, with each step logged once.
        starts, losses: of all jobs; a loss is a job that was killed.
        peak_memory_mb: of the workers and their jobs, shared pages counted once.
        seconds_per_job: wall time times workers, with the imports of all workers that were started.
        between_jobs_s: median time from the end of a job to the start of the next one.
        compose_and_build_s: median time from there to the run folder.
        train_s: median time from there to the end.
    """

    jobs: int
    workers: int
    done_once: int = 0
    wall_s: float = 0.0
    killed_workers: int = 0
    killed_jobs: int = 0
    starts: int = 0
    losses: int = 0
    files_per_job: float = 0.0
    peak_memory_mb: float = 0.0
    seconds_per_job: float = 0.0
    between_jobs_s: float = 0.0
    compose_and_build_s: float = 0.0
    train_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def plan_sweep(folder: Path, num_jobs: int) -> SweepFolder:
    """Write the plan of a sweep over seeds, without starting it."""
    sweep = SweepFolder(folder)
    command = ["train", "-m", *OPTIONS, f"seed=range({num_jobs})", f"hydra.sweep.dir={folder}"]
    sweep.add_jobs(command, 0, [[*OPTIONS, f"seed={n}"] for n in range(num_jobs)])
    return sweep


def start_worker(folder: Path) -> subprocess.Popen[bytes]:
    """Start a worker, which leads a session of its own."""
    log = open(folder / "workers.log", "ab")  # noqa: SIM115  # the worker keeps it open
    command = [sys.executable, "-m", "genlab", "sweep", "work", str(folder), "tries=1000"]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


# --- processes ------------------------------------------------------------------------------------


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def memory_mb(pids: list[int]) -> float:
    """Return the memory of processes, shared pages counted once."""
    total = 0.0
    for pid in pids:
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:")) / 1024
    return total


def kill(pid: int) -> bool:
    """Kill a process without warning; return whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_at_random(workers: list[subprocess.Popen[bytes]], found: Measurement) -> None:
    """Kill one of the jobs, one worker alone, or a worker with all that it has started."""
    worker = random.choice(workers)
    started = list(descendants(worker.pid))
    kind = random.choice(("job", "job", "worker", "tree"))
    if kind == "job":
        # A job leads a session of its own; the server that it was forked from does not.
        jobs = [pid for pid in started if is_session_leader(pid)]
        found.killed_jobs += any(kill(pid) for pid in jobs[:1])
        return
    found.killed_workers += kill(worker.pid)
    if kind == "tree":
        found.killed_jobs += sum(kill(pid) for pid in started if is_session_leader(pid))
        for pid in started:
            kill(pid)


def is_session_leader(pid: int) -> bool:
    """Whether a process leads a session."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


# --- the run --------------------------------------------------------------------------------------


def run(sweep: SweepFolder, found: Measurement, kill_every_s: float, limit_s: float) -> None:
    """Run workers until all jobs are done; replace those that end, and kill some at random."""
    began = time.monotonic()
    next_kill = began + random.expovariate(1 / kill_every_s) if kill_every_s else float("inf")
    left = {job.number: job for job in sweep.jobs()}
    workers = [start_worker(sweep.path) for _ in range(found.workers)]
    journal = Journal(sweep.path)
    while left and time.monotonic() - began < limit_s:
        time.sleep(POLL_INTERVAL_S)
        for number in journal.changed_jobs() & left.keys() or list(left)[:5]:
            if read_state(left[number].folder).status == "done":
                del left[number]
        if time.monotonic() > next_kill:
            kill_at_random(workers, found)
            next_kill = time.monotonic() + random.expovariate(1 / kill_every_s)
        for i, worker in enumerate(workers):
            if left and worker.poll() is not None:
                workers[i] = start_worker(sweep.path)
        pids = [pid for w in workers for pid in (w.pid, *descendants(w.pid))]
        found.peak_memory_mb = max(found.peak_memory_mb, memory_mb(pids))
    found.wall_s = time.monotonic() - began
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait()


def check(sweep: SweepFolder, found: Measurement) -> None:
    """Check that each job was done once: one end, and each step logged once."""
    num_files = 0
    for job in sweep.jobs():
        state = read_state(job.folder)
        num_files += sum(1 for path in job.folder.rglob("*") if path.is_file())
        found.starts, found.losses = found.starts + state.starts, found.losses + state.losses
        stats = job.folder / "stats.jsonl"
        log = (
            [json.loads(line) for line in stats.read_text().splitlines()] if stats.exists() else []
        )
        steps = [line["step"] for line in log if "seconds" in line]
        ends = [step for step in steps if step == 1]
        if state.status == "done" and len(steps) == len(set(steps)) and len(ends) <= 1:
            found.done_once += 1
        else:
            found.faults.append(f"job {job.number}: {state.status}, steps {steps}")
        if state.starts != state.losses + 1:
            found.faults.append(f"job {job.number}: {state.starts} starts, {state.losses} losses")
    found.files_per_job = num_files / found.jobs
    found.seconds_per_job = found.wall_s * found.workers / found.jobs


def measure_phases(sweep: SweepFolder, found: Measurement) -> None:
    """Measure the phases of the jobs that were started once, by the times of their files."""
    times_by_worker: dict[str, list[tuple[float, ...]]] = {}
    for job in sweep.jobs():
        lease = read_newest_lease(job.folder)
        if lease is not None and lease.generation == 1:
            files = (".job.lock", "run.json", "state.json")
            times = tuple((job.folder / name).stat().st_mtime for name in files)
            times_by_worker.setdefault(lease.worker, []).append(times)
    phases = []
    for times in times_by_worker.values():
        for (_, _, end_before), (start, built, end) in pairwise(sorted(times)):
            phases.append((start - end_before, built - start, end - built))
    if phases:
        medians = [statistics.median(phase) for phase in zip(*phases, strict=True)]
        found.between_jobs_s, found.compose_and_build_s, found.train_s = medians


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the measurement, print it and return it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=20.0, help="mean seconds; 0: never")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which it ends")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--folder", type=Path, default=Path("outputs/sweep_workers"))
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    sweep = plan_sweep(options.folder.resolve(), options.jobs)
    found = Measurement(options.jobs, options.workers)
    run(sweep, found, options.kill_every, options.limit)
    check(sweep, found)
    measure_phases(sweep, found)
    print(json.dumps(asdict(found), indent=2))
    return asdict(found)


if __name__ == "__main__":
    main()
