"""Timing of training steps, and the choice of `trainer.batch_size=auto` by it."""

from __future__ import annotations

import copy
import gc
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from genlab import system
from genlab.distributed.device import Device
from genlab.distributed.environment import read_environment
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError, is_out_of_memory_error
from genlab.training.trainer import Data, Trainer

MIN_SPEEDUP = 1.05  # a larger batch must be this much faster than the best one so far
FIRST_ITEMS_PER_SHARD = 8  # in the first trial
MAX_BATCH_SIZE = 8192  # the largest joint batch that is tried
MIN_BLOCK_S = 0.05  # duration of a timed block of steps
SLOW_STEP_S = 30.0  # from here on preparations are a small part of the first step
MAX_GPU_FRACTION = 0.9  # of a GPU's free memory that a trial may use


@dataclass(frozen=True)
class Trial:
    """The timing of a few training steps."""

    batch_size: int
    times: list[float]  # seconds per step, each the mean over a block of steps
    steps_per_block: int
    peak_bytes: int  # the process's resident set, or the GPU memory that it reserved

    @property
    def seconds(self) -> float:
        """The median seconds per step."""
        return median(self.times)

    @property
    def items_per_s(self) -> float:
        """Items per second, counted as in the training log: one batch per step."""
        return self.batch_size / self.seconds


def time_training_steps(
    trainer: Trainer, data: Data, *, seconds: float, max_blocks: int = 20
) -> Trial:
    """Time blocks of steps of a disposable trainer for about `seconds` seconds.

    There are at least two blocks after up to three steps of warm-up. Of a training whose first
    step takes SLOW_STEP_S, that step is the only one. The learning rate is 0, so that nothing can
    diverge.
    """
    device = trainer.device
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["base_lr"] = 0.0
    reset_peak_memory(device)
    trainer.model.train()
    batches = trainer.train_batches(data)

    def time_block(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            trainer.train_step(batches)
        wait_for_device(device)
        return time.perf_counter() - began

    # the first steps also select algorithms, compile, and create the optimizer's state
    warm_up = [time_block(1)]
    while len(warm_up) < 3 and sum(warm_up) < seconds:
        warm_up.append(time_block(1))
    steps = max(1, round(MIN_BLOCK_S / min(warm_up)))
    times = warm_up if warm_up[0] >= SLOW_STEP_S else []
    min_blocks = 1 if times else 2
    while len(times) < max_blocks and (len(times) < min_blocks or sum(times) * steps < seconds):
        times.append(time_block(steps) / steps)
    if isinstance(batches, Generator):
        batches.close()
    return Trial(trainer.batch_size, times, steps, peak_memory(device))


# --- trainer.batch_size=auto ----------------------------------------------------------------------


def find_batch_size(
    make_trainer: Callable[[int, ProcessGroup], Trainer],
    data: Data,
    *,
    device: Device,
    grad_accum_steps: int,
) -> int:
    """Return the joint batch size for `auto`, the same on every rank.

    Rank 0 prints the reason.

    The size is doubled while it fits into memory (up to 90 % of a GPU's free memory, half of the
    free memory of the CPU), while the items per second grow by more than 5 %, and up to the size
    of the training set or 8,192. The result is the smallest size whose rate is within 5 % of the
    best: a larger batch that is not faster only makes fewer updates in the same time. The global
    random state does not change.

    Args:
        make_trainer: builds a disposable trainer for a batch size and a group of processes.

    Raises:
        UserError: not even the smallest batch fits into memory, or `make_trainer` refuses it.
    """
    group = ProcessGroup()
    if device.fsdp and group.size > 1:
        raise UserError(
            "trainer.batch_size=auto is found by one process, but device.fsdp shards the model "
            "over all of them; give a number"
        )
    num_shards = group.size * grad_accum_steps
    result: int | UserError = 0
    if group.is_main:  # it measures its own part of a joint batch, while the other ranks wait
        single = copy.copy(group)
        single.size, single.rank = 1, 0
        trials = BatchSizeTrials(
            lambda n: make_trainer(n, single), data, device, processes=group.size
        )
        max_size = max(num_shards, min(data.size("train"), MAX_BATCH_SIZE))
        with torch.random.fork_rng([device.torch] if device.name == "cuda" else []):
            try:
                result, reason = choose_batch_size(trials, num_shards=num_shards, max_size=max_size)
                print(reason, file=sys.stderr)
            except UserError as error:
                result = error
        reset_peak_memory(device)
    result = group.broadcast(result)
    if isinstance(result, UserError):
        raise result
    return result


def choose_batch_size(
    measure: Callable[[int], float | None], *, num_shards: int, max_size: int
) -> tuple[int, str]:
    """Return a batch size num_shards·2^i ≤ max_size, and a line that gives the reason.

    Args:
        measure: returns the items per second at a size, or None if it does not fit into memory.

    Raises:
        UserError: no size fits.
    """
    size = num_shards
    while size < FIRST_ITEMS_PER_SHARD * num_shards and 2 * size <= max_size:
        size *= 2
    rate = measure(size)
    while rate is None and size > num_shards:
        size //= 2
        rate = measure(size)
    if rate is None:
        raise UserError(
            f"trainer.batch_size=auto: not even a batch of {size} fits into memory; "
            "use a smaller model"
        )
    rates = {size: rate}
    while True:
        if 2 * size > max_size:
            end = f"{max_size:,} is the largest size that is tried"
            break
        if (rate := measure(2 * size)) is None:
            end = f"{2 * size:,} does not fit into memory"
            break
        best, size = max(rates.values()), 2 * size
        rates[size] = rate
        if rate <= MIN_SPEEDUP * best:
            end = f"{size:,} is not faster"
            break
    fast_enough = [
        size for size, rate in rates.items() if MIN_SPEEDUP * rate >= max(rates.values())
    ]
    chosen = min(fast_enough)
    tried = ", ".join(f"{size:,}: {rate:,.0f}" for size, rate in rates.items())
    return chosen, (
        f"trainer.batch_size={chosen}: the smallest within 5 % of the best of {tried} items/s; "
        f"{end}"
    )


class BatchSizeTrials:
    """Measures one batch size after another, and frees the memory of each."""

    def __init__(
        self, make_trainer: Callable[[int], Trainer], data: Data, device: Device, *, processes: int
    ) -> None:
        self.make_trainer, self.data, self.device = make_trainer, data, device
        self.processes = processes
        self.memory_limit = trial_memory_limit(device)
        # the last size that fitted, and the bytes that it took
        self.last_fit: tuple[int, int] | None = None

    def __call__(self, size: int) -> float | None:
        """Return items per second of all processes, without communication, or None if too large."""
        before = used_memory_bytes(self.device)
        # a process that exceeds the CPU's memory is killed, so it must not be tried
        if self.last_fit and self.device.name != "cuda":
            last_size, growth = self.last_fit
            if before + growth * size / last_size > self.memory_limit:
                return None
        trial: Trial | None = None
        try:
            trial = time_training_steps(
                self.make_trainer(size // self.processes), self.data, seconds=0.5, max_blocks=10
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory_error(error):
                raise
        gc.collect()  # a trainer and its model refer to each other
        if self.device.compile:
            torch.compiler.reset()
        if self.device.name == "cuda":
            torch.cuda.empty_cache()
        if trial is None or trial.peak_bytes > self.memory_limit:
            return None
        self.last_fit = size, max(0, trial.peak_bytes - before)
        return trial.items_per_s * self.processes


# --- memory of the device -------------------------------------------------------------------------


def wait_for_device(device: Device) -> None:
    """Wait until the device has finished its queued work."""
    if device.name == "cuda":
        torch.cuda.synchronize(device.torch)
    elif device.name == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: Device) -> None:
    """Measure the peak of memory from now on, where the system supports it (CUDA, Linux)."""
    if device.name == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch)
        return
    with suppress(OSError):  # proc_pid_clear_refs(5): 5 resets the peak of the resident set
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: Device) -> int:
    """Return the peak in bytes: reserved GPU memory, or the process's resident set.

    Reserved, not allocated: other processes cannot use it.
    """
    if device.name == "cuda":
        return torch.cuda.max_memory_reserved(device.torch)
    return device.peak_memory()


def used_memory_bytes(device: Device) -> int:
    """Return the memory in use now in bytes; without Linux's /proc, the peak so far."""
    if device.name == "cuda":
        return torch.cuda.memory_reserved(device.torch)
    return system.used_memory_bytes()


def trial_memory_limit(device: Device) -> int:
    """Return the peak in bytes that a trial must not exceed."""
    if device.name == "cuda":
        free_bytes = torch.cuda.mem_get_info(device.torch)[0]
        return int(MAX_GPU_FRACTION * (free_bytes + used_memory_bytes(device)))
    return used_memory_bytes(device) + free_cpu_memory() // 2 // read_environment().local_size


def free_cpu_memory() -> int:
    """Return the bytes of CPU memory that are free, on the machine or in its control group."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        lines = dict(line.split(":") for line in text.splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = system.physical_memory_bytes() // 2
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="utf-8"))
        return min(free, limit - int((cgroup / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no control group, or "max" instead of a limit
        return free
