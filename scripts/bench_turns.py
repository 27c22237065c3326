"""How `bench.py` measures: genlab's own loop and others take turns in one run, and a row says what came of each pair."""

from __future__ import annotations

import importlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import bench_loops as hand
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from recipes import built

from genlab.runs.run_folder import RunFolder

Row = dict[str, Any]
Turn = Callable[[int], None]  # takes so many steps


@dataclass(frozen=True)
class How:
    """How long to measure, and on which data."""

    share: float = 1.0  # of the steps; less than 1: only to see that it runs
    fake: bool = False  # noise in the shape of MNIST in its place

    def steps(self, steps: int, block: int) -> tuple[int, int]:
        """Return the steps to take and the steps of a turn; the first turn only warms up, so there are at least 3."""
        block = max(1, round(block * self.share))
        return max(3 * block, round(steps * self.share)), block

    def mnist(self, *options: str) -> tuple[str, ...]:
        """Return the options for MNIST's 60,000 training images."""
        fake = ("dataset=fake", "dataset.shape=[1,28,28]", "dataset.n=2000")
        return (*options, *(fake if self.fake else ("dataset=mnist", "dataset.validation=0")))


@dataclass(frozen=True)
class Other:
    """Who takes turns with genlab: a loop, or the reason why it could not be had."""

    what: str
    turn: Turn | None = None
    absent: str = ""
    bar: float | None = None  # the largest allowed share of its time
    parameters: int | None = None


def package(name: str, make: Callable[..., Other], *data: Any) -> Other:
    """Return make(*data), a function of a module, or the reason why the package that it needs is absent.

    It takes its turns in a process of its own, as that package's users have it, without the switches that genlab sets.
    """
    try:
        importlib.import_module(name)
    except ImportError as error:
        return Other(name, absent=f"{name} cannot be imported ({error}): pip install -e '.[bench]'")
    spawned = multiprocessing.get_context("spawn")
    here, there = spawned.Pipe()
    spawned.Process(
        target=serve, args=(there, torch.get_num_threads(), make, data), daemon=True
    ).start()
    there.close()  # so that its end is heard of here

    def turn(steps: int) -> None:
        here.send(steps)
        here.recv()

    return replace(here.recv(), turn=turn)


def serve(
    pipe: Connection, threads: int, make: Callable[..., Other], data: tuple[Any, ...]
) -> None:
    """Take the turns that a pipe asks for, until it is closed."""
    torch.set_num_threads(threads)
    other = make(*data)
    pipe.send(replace(other, turn=None))
    while True:
        try:
            steps = pipe.recv()
        except EOFError:
            return
        other.turn(steps)
        pipe.send(None)


def repeated(step: hand.Step) -> Turn:
    def turn(steps: int) -> None:
        for _ in range(steps):
            step()

    return turn


# --- taking turns -----------------------------------------------------------------------------------------------------


class Turns:
    """A dataset that, each time genlab's loop has taken `block` batches from it, lets each other take as many steps.

    So all live through the same seconds of a noisy machine, and genlab's share holds all that its loop does between two
    batches: logging, previews, checkpoints.
    """

    def __init__(self, dataset: Any, others: dict[str, Turn], block: int) -> None:
        self.dataset, self.others, self.block = dataset, others, block
        self.seconds: dict[str, list[float]] = {name: [] for name in ("genlab", *others)}

    def batches(self, *split: Any, **how: Any) -> Iterator:
        began = time.perf_counter()
        for i, batch in enumerate(self.dataset.batches(*split, **how), 1):
            yield batch
            if i % self.block == 0:
                self.seconds["genlab"].append(time.perf_counter() - began)
                for name, turn in self.others.items():
                    began = time.perf_counter()
                    turn(self.block)
                    self.seconds[name].append(time.perf_counter() - began)
                began = time.perf_counter()


def row(
    what: str, other: Other, ours: list[float], theirs: list[float], *, steps: int, unit: str
) -> Row:
    """Return one comparison: seconds of all counted turns, and their ratio turn by turn; `steps` (of `unit`) a turn."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    found = {
        "what": what,
        "against": other.what,
        "genlab_s": sum(ours),
        "other_s": sum(theirs),
        "ratio": sum(ours) / sum(theirs),
        "median_ratio": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "turns": len(ratios),
        "block": steps,
        "steps": steps * len(ratios),
        "unit": unit,
        "genlab_us": statistics.median(ours) / steps * 1e6,
        "other_us": statistics.median(theirs) / steps * 1e6,
        "overhead_us": statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
        / steps
        * 1e6,
    }
    if other.bar is not None:
        found |= {"bar": other.bar, "met": found["median_ratio"] <= other.bar}
    return found | ({"other_parameters": other.parameters} if other.parameters else {})


def against(
    how: How,
    what: str,
    options: tuple[str, ...],
    others: dict[str, Other],
    *,
    steps: int,
    block: int,
) -> dict[str, Row]:
    """Train by `Trainer.fit` with a real run folder, the others taking turns; return a row for each of them."""
    from genlab.commands.train import preview

    absent = {
        name: {"what": what, "against": o.what, "skipped": o.absent}
        for name, o in others.items()
        if not o.turn
    }
    others = {name: other for name, other in others.items() if other.turn}
    if not others:
        return absent
    steps, block = how.steps(steps, block)
    _, dataset, trainer = built(*options, f"trainer.steps={steps}", "device=cpu", "out=unused")
    with tempfile.TemporaryDirectory() as place, redirect_stderr(StringIO()):
        folder = RunFolder.create(Path(place) / "run", config="", info={})
        data = Turns(dataset, {name: other.turn for name, other in others.items()}, block)
        trainer.fit(data, folder, preview=lambda model: preview(dataset, folder, trainer, model))
    own = sum(p.numel() for p in trainer.model.parameters())
    ours, rows = data.seconds["genlab"][1:], {}  # the first turn of each warms up
    for name, other in others.items():
        rows[name] = row(what, other, ours, data.seconds[name][1:], steps=block, unit="step") | {
            "parameters": own
        }
    return rows | absent


def in_turns(how: How, what: str, ours: Callable, other: Other, *, rounds: int, items: int) -> Row:
    """Call both in turn, each call giving `items`; return one row."""
    rounds, _ = how.steps(rounds, 1)
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for call, into in zip((ours, lambda: other.turn(1)), seconds, strict=True):
            began = time.perf_counter()
            call()
            if i:
                into.append(time.perf_counter() - began)
    return row(what, other, *seconds, steps=items, unit="item")
