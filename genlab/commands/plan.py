"""genlab plan: predict what a training takes by measuring a few steps."""

from __future__ import annotations

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
from genlab.commands.train import evaluate_on_validation_split, num_preview_items
from genlab.console import Progress, describe_duration
from genlab.errors import UserError
from genlab.tables import print_table
from genlab.training.auto_batch_size import Trial, time_training_steps, used_memory_bytes
from genlab.training.trainer import Trainer

MB = 2**20
MEASURED_SECONDS = 5.0  # of steps
TIME_LIMIT_S = 20.0  # for a preview or an evaluation
SHORT_SAMPLER_STEPS = 4  # to compare the time of many samples at once with that of one

Row = tuple[str, str, str]  # quantity, value, how it was obtained


def plan(trainer: Trainer, dataset: Any, *, config: dict[str, Any]) -> dict[str, float]:
    """Print the time, memory and disk that training takes; return the numbers.

    Args:
        trainer: as training would build it; it is trained for a few steps and must be discarded.

    Raises:
        UserError: there are several processes.
    """
    if trainer.group.size > 1:
        raise UserError("genlab plan measures one process: start it without torchrun")
    memory_before = used_memory_bytes(trainer.device)
    with Progress("timing training steps"):
        trial = time_training_steps(trainer, dataset, seconds=MEASURED_SECONDS)
    numbers: dict[str, float] = {}
    table = [*dataset_rows(trainer, dataset), *parameter_count_rows(trainer.model, numbers)]
    table += memory_rows(trainer, trial, memory_before, numbers)
    table += time_rows(trainer, dataset, trial, numbers)
    rows, warning = checkpoint_disk_rows_and_warning(trainer, Path(str(config["out"])), numbers)
    table += rows
    table += preview_and_evaluation_time_rows(trainer, dataset, config, numbers)
    print_table(["quantity", "value", "source"], [list(row) for row in table])
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return numbers


# --- data and model -------------------------------------------------------------------------------


def dataset_rows(trainer: Trainer, dataset: Any) -> list[Row]:
    """Return what the data is, and where it is stored."""
    spec = dataset.spec
    sizes = [f"{dataset.size(split):,} {split}" for split in ("train", "validation", "test")]
    parts = ["×".join(map(str, spec.shape)) + f" {spec.kind}"]
    if spec.kind == "image":
        parts.append(f"in [{spec.range[0]:g}, {spec.range[1]:g}]")
    if spec.kind == "tokens":
        parts.append(f"{spec.vocab} different")
    elif spec.kind == "table":
        parts.append(spec.describe())
    elif spec.levels:
        parts.append(f"{spec.levels} levels" + (", dequantized" if spec.dequantized else ""))
    else:
        parts.append("real numbers")
    parts.append(f"{spec.num_classes} classes" if spec.num_classes else "no classes")
    train_x = dataset.splits["train"].x
    place = "streamed from files"
    if isinstance(train_x, Tensor):
        size = format_bytes(train_x.nbytes)
        place = f"in the memory of {trainer.device.torch}, {size} for the train split"
    return [
        ("data", dataset.name, ", ".join(sizes)),
        ("  item", ", ".join(parts), ""),
        ("  storage", place, ""),
    ]


def parameter_count_rows(model: nn.Module, numbers: dict[str, float]) -> list[Row]:
    """Return the number of parameters of the model and its parts; shared ones count once."""
    numbers["parameters"] = sum(p.numel() for p in model.parameters())
    rows = [("model", type(model).__name__, f"{numbers['parameters']:,} parameters, exact")]
    parts = [(name, [p]) for name, p in model.named_parameters(recurse=False)]
    parts += [(name, list(child.parameters())) for name, child in model.named_children()]
    counted: set[int] = set()
    for name, parameters in parts:
        n = sum(p.numel() for p in parameters if id(p) not in counted)
        counted |= {id(p) for p in parameters}
        if n:
            rows.append((f"  {name}", f"{n:,} parameters", ""))
    return rows


# --- memory and time ------------------------------------------------------------------------------


def memory_rows(
    trainer: Trainer, trial: Trial, memory_before: int, numbers: dict[str, float]
) -> list[Row]:
    """Return the memory of the tensors of training, and the measured peak."""
    model = trainer.model
    states = [
        value
        for optimizer in trainer.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
    ]
    tensors: dict[str, list[Tensor]] = {
        "weights": [*model.parameters(), *model.buffers()],
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": [value for value in states if isinstance(value, Tensor)],
        "ema": [],
    }
    if trainer.ema:
        tensors["ema"] = [*trainer.ema.model.parameters(), *trainer.ema.model.buffers()]
    titles = {
        "weights": "weights and buffers",
        "optimizer": "optimizer state",
        "ema": "averaged weights (EMA)",
    }
    rows: list[Row] = [("memory", "", "")]
    for key, group in tensors.items():
        size = total_tensor_bytes(group)
        numbers[f"{key}_mb"] = size / MB
        if group:
            rows.append((f"  {titles.get(key, key)}", format_bytes(size), "exact"))
    numbers["peak_mb"] = trial.peak_bytes / MB
    is_gpu = trainer.device.name == "cuda"
    source = (
        f"measured: {'GPU memory reserved' if is_gpu else 'of the whole process'}, "
        f"{format_bytes(memory_before)} before the first step"
    )
    return [*rows, ("  peak", format_bytes(trial.peak_bytes), source)]


def total_tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors in bytes, each counted once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def time_rows(trainer: Trainer, dataset: Any, trial: Trial, numbers: dict[str, float]) -> list[Row]:
    """Return the time of a step, an epoch and the training, without previews and checkpoints."""
    options, step_seconds = trainer.options, trial.seconds
    batch_size = int(options.batch_size)  # auto was resolved before
    # Batches that a step takes from the data; 0 if the trainer goes over the data itself.
    batches = trainer.batches_consumed / trainer.global_step
    items = batches * batch_size or trainer.items_per_step
    steps = options.steps
    if options.max_minutes:
        steps = min(steps, int(options.max_minutes * 60 / step_seconds))
    numbers |= {
        "batch_size": batch_size,
        "step_seconds": step_seconds,
        "items_per_s": trainer.items_per_step / step_seconds,
        "epoch_seconds": step_seconds * dataset.size("train") / items,
        "steps": steps,
        "training_seconds": steps * step_seconds,
    }
    shards = f"in {options.grad_accum_steps} shards" if options.grad_accum_steps > 1 else ""
    blocks = f"{len(trial.times)} blocks of {trial.steps_per_block} steps"
    spread = f"{format_seconds(min(trial.times))} to {format_seconds(max(trial.times))}"
    step_source = f"measured: the median of {blocks}, {spread}"
    if len(trial.times) == 1:
        step_source = "measured: the first step, with its preparations"
    epoch = "" if batches in (0, 1) else f"; a step takes {batches:g} batches"
    end = "without the previews and evaluations below"
    if steps < options.steps:
        end = f"trainer.max_minutes ends it before {options.steps:,}"
    return [
        ("time", trainer_and_optimizer_names(trainer), str(trainer.device)),
        ("  batch", f"{batch_size:,} items", shards),
        ("  step", format_seconds(step_seconds), step_source),
        (
            "  items per second",
            f"{numbers['items_per_s']:,.0f}",
            f"as in the training log: {trainer.items_per_step:,} per step",
        ),
        ("  epoch", format_seconds(numbers["epoch_seconds"]), f"estimate{epoch}"),
        (
            f"  {steps:,} steps",
            format_seconds(numbers["training_seconds"]),
            f"estimate, {end}",
        ),
    ]


def trainer_and_optimizer_names(trainer: Trainer) -> str:
    """Return the names of the trainer and of its optimizers."""
    kinds = dict.fromkeys(type(optimizer).__name__ for optimizer in trainer.optimizers.values())
    return ", ".join([type(trainer).__name__, *kinds])


# --- disk -----------------------------------------------------------------------------------------


class ByteCounter(io.RawIOBase):
    """A file that counts the bytes written to it and discards them."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.size += n
        return n


def checkpoint_disk_rows_and_warning(
    trainer: Trainer, out: Path, numbers: dict[str, float]
) -> tuple[list[Row], str]:
    """Return the disk space of the checkpoints, and a warning if the disk has less."""
    options = trainer.options
    file: Any = ByteCounter()
    torch.save(trainer.state_dict(), file)
    saves = int(-(-numbers["steps"] // options.save_every))
    kept = min(options.keep_checkpoints, saves)
    # A new checkpoint is written before an old one is removed.
    total = (kept + 1 + bool(options.monitor)) * file.size
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    numbers |= {"checkpoint_mb": file.size / MB, "disk_mb": total / MB, "free_mb": free / MB}
    best = " + best.pt" if options.monitor else ""
    rows = [
        ("disk", "", ""),
        (
            "  checkpoint",
            format_bytes(file.size),
            f"measured; one every {options.save_every:,} steps",
        ),
        (
            "  checkpoints",
            format_bytes(total),
            f"{kept} kept{best} + one while it is written",
        ),
        ("  free", format_bytes(free), f"at {place}"),
    ]
    warning = ""
    if total > free:
        warning = (
            f"the checkpoints need {format_bytes(total)}, but {place} has {format_bytes(free)} free"
        )
    return rows, warning


# --- previews and evaluations ---------------------------------------------------------------------


class TimeLimitError(Exception):
    """A measurement took longer than its limit."""


def time_call_with_limit(function: Callable[[], object]) -> float | None:
    """Return the seconds that a call takes; None if TIME_LIMIT_S interrupted it.

    The call is interrupted in the main thread only, and not on Windows.
    """

    def interrupt(number: int, frame: object) -> None:
        raise TimeLimitError

    can_interrupt = threading.current_thread() is threading.main_thread()
    if not (can_interrupt and hasattr(signal, "setitimer")):  # Windows
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    handler = signal.signal(signal.SIGALRM, interrupt)
    start = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
        function()
    except TimeLimitError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    return time.perf_counter() - start


def preview_and_evaluation_time_rows(
    trainer: Trainer, dataset: Any, config: dict[str, Any], numbers: dict[str, float]
) -> list[Row]:
    """Return the time of previews and evaluations; unknown numbers are left out of `numbers`."""
    options, model, steps = trainer.options, trainer.eval_model(), numbers["steps"]
    rows: list[Row] = []

    def add(name: str, every: int, seconds: float | None, source: str, times: int) -> None:
        numbers[f"{name}s"] = times
        total = f"more than {TIME_LIMIT_S:g} s each"
        if seconds is not None:
            numbers[f"{name}_seconds"] = seconds
            total = f"{format_seconds(seconds)} each, {format_seconds(times * seconds)} together"
        title = f"  {times:,} {name}" + ("s" if times > 1 else "")
        rows.append((title, total, f"{source}; one every {every:,} steps"))

    if options.preview_every and "sample" in abilities(model):
        with Progress("timing a preview"):
            seconds, source = sampling_seconds_and_source(model, num_preview_items(dataset))
        times = int(-(-steps // options.preview_every))  # includes one at the end
        add("preview", options.preview_every, seconds, source, times)
    if options.evaluate_every and steps >= options.evaluate_every:
        with Progress("timing an evaluation"):
            seconds = time_call_with_limit(
                lambda: evaluate_on_validation_split(dataset, config, set(), model)
            )
        source = "measured" if seconds else "one was interrupted"
        times = int(steps // options.evaluate_every)
        add("evaluation", options.evaluate_every, seconds, source, times)
    return [("previews and evaluations", "", ""), *rows] if rows else []


def sampling_seconds_and_source(model: Any, n: int) -> tuple[float | None, str]:
    """Return the seconds of drawing n samples, None above TIME_LIMIT_S; and the source.

    For a model that samples in many steps, a few short samples predict whether n samples would
    exceed the limit.
    """

    @torch.no_grad()
    def time_samples(size: int, **options: Any) -> float | None:
        return time_call_with_limit(lambda: model.sample(size, **options).cpu())

    torch.manual_seed(0)
    if model.step_by_step:
        time_samples(1, steps=1)  # warm-up
        one = time_samples(1)
        if one is None:
            return None, "a single sample was interrupted"
        short = time_samples(1, steps=SHORT_SAMPLER_STEPS)
        short_batch = time_samples(n, steps=SHORT_SAMPLER_STEPS)
        if short and short_batch and one * short_batch / short > TIME_LIMIT_S / 2:
            return one * short_batch / short, (
                f"estimate: one sample took {format_seconds(one)}, and {n} in "
                f"{SHORT_SAMPLER_STEPS} steps {short_batch / short:.1f} times one"
            )
    else:
        time_samples(1)
    seconds = time_samples(n)
    return seconds, f"measured, {n} samples" if seconds else f"{n} samples were interrupted"


# --- formatting -----------------------------------------------------------------------------------


def format_bytes(size: float) -> str:
    """Return a number of bytes as MB, or as GB if there are many."""
    size = size / MB
    if size >= 10_000:
        return f"{size / 1024:,.0f} GB"
    return f"{size:,.0f} MB" if size >= 100 else f"{size:.3g} MB"


def format_seconds(seconds: float) -> str:
    """Return a duration in ms, s, min, h or days."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return describe_duration(seconds)
