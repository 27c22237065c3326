"""genlab plan: what a training would take, by a few measured steps of a trainer that is thrown away."""

from __future__ import annotations

import inspect
import io
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.abilities import abilities
from genlab.commands.train import count, judge
from genlab.console import show
from genlab.errors import UserError
from genlab.training.auto_batch_size import Trial, held, timed
from genlab.training.trainer import Trainer

MB = 2**20
STEPS_FOR = 5.0  # seconds of measured steps
PATIENCE = 20.0  # seconds that one preview or evaluation is waited for
FEW = 4  # steps of a sampler, to compare many samples at once with one

Row = tuple[str, str, str]  # what, how much, how it is known


def plan(trainer: Trainer, dataset: Any, *, config: dict[str, Any]) -> dict[str, float]:
    """Print what training would take, and return the numbers: seconds, MB (2^20 bytes), counts.

    Args:
        trainer: as training would have it; it is used up.

    Raises:
        UserError: there are several processes.
    """
    if trainer.ranks.size > 1:
        raise UserError("genlab plan measures one process: start it without torchrun")
    before = held(trainer.device)
    trial = timed(trainer, dataset, seconds=STEPS_FOR)
    found: dict[str, float] = {}
    table = [*data_rows(trainer, dataset), *model_rows(trainer.model, found)]
    table += memory_rows(trainer, trial, before, found)
    table += time_rows(trainer, dataset, trial, found)
    disk, warning = disk_rows(trainer, Path(str(config["out"])), found)
    table += disk
    table += look_rows(trainer, dataset, config, found)
    show(["what", "how much", "how it is known"], [list(row) for row in table])
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return found


# --- data and model ---------------------------------------------------------------------------------------------------


def data_rows(trainer: Trainer, dataset: Any) -> list[Row]:
    """Return what the data is, and where it lives."""
    spec = dataset.spec
    items = ", ".join(
        f"{dataset.size(split):,} {split}" for split in ("train", "validation", "test")
    )
    parts = ["×".join(map(str, spec.shape)) + f" {spec.kind}"]
    if spec.kind == "image":
        parts.append(f"in [{spec.range[0]:g}, {spec.range[1]:g}]")
    if spec.kind == "tokens":
        parts.append(f"{spec.vocab} different")
    else:
        parts.append(
            f"{spec.levels} levels" + (", dequantised" if spec.dequantised else "")
            if spec.levels
            else "real numbers"
        )
    parts.append(f"{spec.classes} classes" if spec.classes else "no classes")
    rows = [("data", dataset.name, items), ("  an item", ", ".join(parts), "")]
    split = getattr(dataset, "splits", {}).get("train")
    if split is not None:
        resident = isinstance(split.x, Tensor)
        size = (
            f" of {trainer.device.torch}, {mb(split.x.nbytes)} for the train split"
            if resident
            else ""
        )
        rows.append(
            ("  where", f"held in the memory{size}" if resident else "streamed from its files", "")
        )
    return rows


def model_rows(model: nn.Module, found: dict[str, float]) -> list[Row]:
    """Return the parameters of the model and of its parts, each counted where it comes first."""
    found["parameters"] = sum(p.numel() for p in model.parameters())
    rows = [("model", type(model).__name__, f"{found['parameters']:,} parameters, exact")]
    parts = [(name, [p]) for name, p in model.named_parameters(recurse=False)]
    parts += [(name, list(child.parameters())) for name, child in model.named_children()]
    seen: set[int] = set()
    for name, own in parts:
        n = sum(p.numel() for p in own if id(p) not in seen)
        seen |= {id(p) for p in own}
        if n:
            rows.append((f"  {name}", f"{n:,} parameters", ""))
    return rows


# --- memory and time --------------------------------------------------------------------------------------------------


def memory_rows(trainer: Trainer, trial: Trial, before: int, found: dict[str, float]) -> list[Row]:
    """Return what the tensors of training hold, and the measured peak."""
    model = trainer.model
    states = (
        s
        for opt in trainer.optimizers.values()
        for state in opt.state.values()
        for s in state.values()
    )
    tensors = {
        "weights": [*model.parameters(), *model.buffers()],
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": [s for s in states if isinstance(s, Tensor)],
        "ema": [*trainer.ema.model.parameters(), *trainer.ema.model.buffers()]
        if trainer.ema
        else [],
    }
    what = {
        "weights": "weights and buffers",
        "optimizer": "optimizer's state",
        "ema": "running mean (ema)",
    }
    rows: list[Row] = [("memory", "", "")]
    for key, some in tensors.items():
        found[f"{key}_mb"] = nbytes(some) / MB
        if some:
            rows.append((f"  {what.get(key, key)}", mb(nbytes(some)), "exact"))
    found["peak_mb"] = trial.peak / MB
    gpu = trainer.device.name == "cuda"
    how = f"measured: {'GPU memory reserved' if gpu else 'of the whole process'}, {mb(before)} before the first step"
    return [*rows, ("  at most", mb(trial.peak), how)]


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, each counted once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def time_rows(trainer: Trainer, dataset: Any, trial: Trial, found: dict[str, float]) -> list[Row]:
    """Return what a step, an epoch and all of training take, without pictures, measures and checkpoints."""
    o, s = trainer.options, trial.seconds
    batches = (
        trainer.pulled / trainer.at
    )  # that one step takes from the data; none: it goes over the data itself
    items = batches * o.batch_size or trainer.items_a_step
    found |= {
        "batch_size": o.batch_size,
        "step_seconds": s,
        "items_per_s": trainer.items_a_step / s,
        "epoch_seconds": s * dataset.size("train") / items,
    }
    steps = min(o.steps, int(o.max_time * 60 / s)) if o.max_time else o.steps
    found |= {"steps": steps, "training_seconds": steps * s}
    spread = f"{brief(min(trial.times))} to {brief(max(trial.times))}"
    blocks = f"{len(trial.times)} times {trial.block} step{'s' * (trial.block > 1)}"
    shards = f"in {o.accumulate} shards" if o.accumulate > 1 else ""
    end = (
        f"trainer.max_time ends it before {o.steps:,}"
        if steps < o.steps
        else "without what is below"
    )
    per = "" if batches in (0, 1) else f"; a step takes {batches:g} batches"
    return [
        ("time", trainer_name(trainer), str(trainer.device)),
        ("  a batch", f"{o.batch_size:,} items", shards),
        ("  a step", brief(s), f"measured: the median of {blocks}, {spread}"),
        (
            "  items a second",
            f"{found['items_per_s']:,.0f}",
            f"as training's log counts them: {trainer.items_a_step:,} a step",
        ),
        ("  an epoch", brief(found["epoch_seconds"]), f"estimate{per}"),
        (f"  {steps:,} steps", brief(found["training_seconds"]), f"estimate, {end}"),
    ]


def trainer_name(trainer: Trainer) -> str:
    """Return the update rule and its optimizers."""
    kinds = dict.fromkeys(type(opt).__name__ for opt in trainer.optimizers.values())
    return ", ".join([type(trainer).__name__, *kinds])


# --- disk -------------------------------------------------------------------------------------------------------------


class Counted(io.RawIOBase):
    """A file that counts what is written to it, and keeps nothing."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.size += n
        return n


def disk_rows(trainer: Trainer, out: Path, found: dict[str, float]) -> tuple[list[Row], str]:
    """Return what checkpoints take, and a warning where the disk has less."""
    o = trainer.options
    file = Counted()
    torch.save(trainer.state(), file)
    steps = found["steps"]
    kept = min(o.keep, int(-(-steps // o.save_every)))
    files = kept + 1 + bool(o.monitor)  # a new one is written before an old one is dropped
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    found |= {
        "checkpoint_mb": file.size / MB,
        "disk_mb": files * file.size / MB,
        "free_mb": free / MB,
    }
    best = " + best.pt" if o.monitor else ""
    rows = [
        ("disk", "", ""),
        ("  a checkpoint", mb(file.size), f"measured; one every {o.save_every:,} steps"),
        ("  checkpoints", mb(files * file.size), f"{kept} kept{best} + one while it is written"),
        ("  free", mb(free), f"at {place}"),
    ]
    short = files * file.size > free
    return (
        rows,
        f"the checkpoints need {mb(files * file.size)}, and {place} has {mb(free)} free"
        if short
        else "",
    )


# --- pictures and measures while it trains ----------------------------------------------------------------------------


class TimeUp(Exception):
    """What was timed took longer than it may."""


def lasts(what: Callable[[], object]) -> float | None:
    """Return the seconds that something takes; None if it is more than `PATIENCE`, at which the main thread gives up."""

    def ring(number: int, frame: object) -> None:
        raise TimeUp

    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGALRM, ring) if main else None
    began = time.perf_counter()
    try:
        if main:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        what()
    except TimeUp:
        return None
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
    return time.perf_counter() - began


def look_rows(
    trainer: Trainer, dataset: Any, config: dict[str, Any], found: dict[str, float]
) -> list[Row]:
    """Return what previews and evaluations cost; numbers that are not known are not in `found`."""
    o, model, steps = trainer.options, trainer.sampler(), found["steps"]
    rows: list[Row] = []

    def add(name: str, every: int, seconds: float | None, how: str, times: int) -> None:
        found[f"{name}s"] = times
        if seconds is None:
            total = f"more than {PATIENCE:g} s each"
        else:
            found[f"{name}_seconds"] = seconds
            total = f"{brief(seconds)} each, {brief(times * seconds)} together"
        rows.append(
            (f"  {times:,} {name}{'s' * (times > 1)}", total, f"{how}; one every {every:,} steps")
        )

    if o.preview_every and "sample" in abilities(model):
        n = count(dataset)
        seconds, how = drawing(model, n)
        add(
            "preview", o.preview_every, seconds, how, -(-steps // o.preview_every)
        )  # one more at the end
    if o.evaluate_every and steps >= o.evaluate_every:
        seconds = lasts(lambda: judge(dataset, config, model))
        how = "measured" if seconds else "one was given up"
        add("evaluation", o.evaluate_every, seconds, how, steps // o.evaluate_every)
    return [("beside it", "", ""), *rows] if rows else []


def drawing(model: nn.Module, n: int) -> tuple[float | None, str]:
    """Return the seconds that n samples at once take, or None if more than `PATIENCE`, and how that is known."""

    @torch.no_grad()
    def draw(m: int, **options: Any) -> float | None:
        return lasts(lambda: model.sample(m, **options).cpu())

    torch.manual_seed(0)
    stepwise = "steps" in inspect.signature(model.sample).parameters
    if stepwise:
        draw(1, steps=1)  # warm-up
        one = draw(1)
        if one is None:
            return None, "a single sample was given up"
        few, many = draw(1, steps=FEW), draw(n, steps=FEW)
        if few and many and (guess := one * many / few) > PATIENCE / 2:
            return (
                guess,
                f"estimate: one sample took {brief(one)}, and {n} in {FEW} steps {many / few:.1f} times one",
            )
    else:
        draw(1)
    seconds = draw(n)
    return seconds, f"measured, {n} samples" if seconds else f"{n} samples were given up"


# --- how it is shown --------------------------------------------------------------------------------------------------


def mb(size: float) -> str:
    """Return bytes as MB, or many as GB."""
    size = size / MB
    if size >= 10_000:
        return f"{size / 1024:,.0f} GB"
    return f"{size:,.0f} MB" if size >= 100 else f"{size:.3g} MB"


def brief(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} h"
