"""How the benchmarks measure: genlab and the baselines take turns in one process.

Each turn is a fraction of a second to a few seconds long, so that all see the same machine.
"""

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
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import loops
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from helpers.recipes import build_training_objects

from genlab.runs.run_folder import RunFolder
from genlab.training.loop import fit

Row = dict[str, Any]
TakeSteps = Callable[[int], None]


@dataclass(frozen=True)
class BenchmarkSettings:
    """How long to measure, and on which data."""

    step_fraction: float = 1.0  # below 1: a trial that only shows that the benchmark runs
    fake_data: bool = False  # noise in the shape of MNIST instead of MNIST

    def num_steps_and_block(self, steps: int, block: int) -> tuple[int, int]:
        """Return (all steps, steps of one turn); at least three turns, as the first warms up."""
        block = max(1, round(block * self.step_fraction))
        return max(3 * block, round(steps * self.step_fraction)), block

    def mnist_options(self, *options: str) -> tuple[str, ...]:
        """Append the options that select the 60,000 training images of MNIST."""
        if self.fake_data:
            return (*options, "dataset=fake", "dataset.shape=[1,28,28]", "dataset.n=2000")
        return (*options, "dataset=mnist", "dataset.validation=0")


@dataclass(frozen=True)
class Baseline:
    """A competitor of genlab: a function that takes n steps, or why it is unavailable."""

    name: str
    take_steps: TakeSteps | None = None
    unavailable: str = ""
    bar: float | None = None  # the largest allowed ratio of genlab's time to this one's
    parameters: int | None = None


def start_package_baseline(package: str, make: Callable[..., Baseline], *data: Any) -> Baseline:
    """Run `make(*data)` in a separate process, without the global switches that genlab sets.

    If the package cannot be imported, the baseline says so.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        reason = f"{package} cannot be imported ({error}): pip install -e '.[bench]'"
        return Baseline(package, unavailable=reason)
    spawn = multiprocessing.get_context("spawn")
    parent, child = spawn.Pipe()
    arguments = (child, torch.get_num_threads(), make, data)
    spawn.Process(target=take_steps_on_request, args=arguments, daemon=True).start()
    child.close()  # so that recv() raises here if the process ends

    def take_steps(steps: int) -> None:
        parent.send(steps)
        parent.recv()

    return replace(parent.recv(), take_steps=take_steps)


def take_steps_on_request(
    pipe: Connection, threads: int, make: Callable[..., Baseline], data: tuple[Any, ...]
) -> None:
    """Take as many steps as each message of a pipe asks for, until the pipe is closed."""
    torch.set_num_threads(threads)
    baseline = make(*data)
    pipe.send(replace(baseline, take_steps=None))
    while True:
        try:
            steps = pipe.recv()
        except EOFError:
            return
        baseline.take_steps(steps)
        pipe.send(None)


def make_step_repeater(step: loops.Step) -> TakeSteps:
    """Return a function that calls `step` n times."""

    def take_steps(steps: int) -> None:
        for _ in range(steps):
            step()

    return take_steps


# --- taking turns ---------------------------------------------------------------------------------


class InterleavedDataset:
    """A dataset that lets the baselines train after every `block` batches that genlab takes.

    genlab's time includes everything that its loop does between two batches: logging, previews
    and checkpoints.
    """

    def __init__(self, dataset: Any, baselines: dict[str, TakeSteps], block: int) -> None:
        self.dataset, self.baselines, self.block = dataset, baselines, block
        self.seconds: dict[str, list[float]] = {name: [] for name in ("genlab", *baselines)}

    def size(self, split: str) -> int:
        return self.dataset.size(split)

    def batches(self, *args: Any, **options: Any) -> Iterator:
        start = time.perf_counter()
        for i, batch in enumerate(self.dataset.batches(*args, **options), 1):
            yield batch
            if i % self.block == 0:
                self.seconds["genlab"].append(time.perf_counter() - start)
                for name, take_steps in self.baselines.items():
                    start = time.perf_counter()
                    take_steps(self.block)
                    self.seconds[name].append(time.perf_counter() - start)
                start = time.perf_counter()


def make_comparison_row(
    what: str,
    baseline: Baseline,
    genlab_s: list[float],
    other_s: list[float],
    *,
    steps: int,
    unit: str,
) -> Row:
    """Return one comparison: total seconds, and the ratio of times turn by turn.

    Args:
        genlab_s, other_s: seconds of the counted turns.
        steps: number of steps (of `unit`) in one turn.
    """
    pairs = list(zip(genlab_s, other_s, strict=True))
    ratios = [ours / other for ours, other in pairs]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    row = {
        "what": what,
        "against": baseline.name,
        "genlab_s": sum(genlab_s),
        "other_s": sum(other_s),
        "ratio": sum(genlab_s) / sum(other_s),
        "median_ratio": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "turns": len(ratios),
        "block": steps,
        "steps": steps * len(ratios),
        "unit": unit,
        "genlab_us": statistics.median(genlab_s) / steps * 1e6,
        "other_us": statistics.median(other_s) / steps * 1e6,
        "overhead_us": statistics.median(a - b for a, b in pairs) / steps * 1e6,
    }
    if baseline.bar is not None:
        row |= {"bar": baseline.bar, "met": row["median_ratio"] <= baseline.bar}
    if baseline.parameters:
        row["other_parameters"] = baseline.parameters
    return row


def compare_training(
    settings: BenchmarkSettings,
    what: str,
    options: tuple[str, ...],
    baselines: dict[str, Baseline],
    *,
    steps: int,
    block: int,
) -> dict[str, Row]:
    """Train with genlab's loop and a real run folder while the baselines take turns.

    Returns:
        One row for each baseline.
    """
    from genlab.commands.train import write_preview_picture

    rows: dict[str, Row] = {
        name: {"what": what, "against": baseline.name, "skipped": baseline.unavailable}
        for name, baseline in baselines.items()
        if not baseline.take_steps
    }
    available = {name: b.take_steps for name, b in baselines.items() if b.take_steps}
    if not available:
        return rows
    steps, block = settings.num_steps_and_block(steps, block)
    _, dataset, trainer = build_training_objects(
        *options, f"trainer.steps={steps}", "device=cpu", "out=unused"
    )
    with tempfile.TemporaryDirectory() as place, redirect_stderr(StringIO()):
        folder = RunFolder.create(Path(place) / "run", config="", metadata={})
        data = InterleavedDataset(dataset, available, block)
        preview = partial(write_preview_picture, dataset, folder, trainer)
        fit(trainer, data, run=folder, preview=preview)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    genlab_s = data.seconds["genlab"][1:]  # the first turn of each warms up
    measured = {}
    for name in available:
        other_s = data.seconds[name][1:]
        row = make_comparison_row(
            what, baselines[name], genlab_s, other_s, steps=block, unit="step"
        )
        measured[name] = row | {"parameters": parameters}
    return measured | rows


def compare_calls(
    settings: BenchmarkSettings,
    what: str,
    call_genlab: Callable[[], Any],
    baseline: Baseline,
    *,
    rounds: int,
    items: int,
) -> Row:
    """Call genlab and a baseline alternately; each call yields `items` items."""
    rounds, _ = settings.num_steps_and_block(rounds, 1)
    genlab_s: list[float] = []
    other_s: list[float] = []
    for i in range(rounds + 1):
        for call, seconds in ((call_genlab, genlab_s), (lambda: baseline.take_steps(1), other_s)):
            start = time.perf_counter()
            call()
            if i:  # the first call of each warms up
                seconds.append(time.perf_counter() - start)
    return make_comparison_row(what, baseline, genlab_s, other_s, steps=items, unit="item")
