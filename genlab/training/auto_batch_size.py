"""What a step takes, by a few measured ones; and `trainer.batch_size=auto`, which is chosen by them."""

from __future__ import annotations

import copy
import gc
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from genlab.distributed.device import Device
from genlab.distributed.environment import world
from genlab.distributed.process_group import Ranks
from genlab.errors import UserError
from genlab.training.trainer import Trainer

GAIN = 1.05  # a doubling of the batch that gives less is no gain
FIRST = 8  # items a shard in the first trial
MOST = 8192  # items in the largest joint batch that is tried
BLOCK = 0.05  # seconds that a timed block of steps lasts at least
OUT_OF_MEMORY = re.compile("allocate memory|out of memory|ALLOC_FAILED")


@dataclass(frozen=True)
class Trial:
    """A few measured steps."""

    batch_size: int
    times: list[float]  # seconds a step, each the mean over a block of steps
    block: int  # steps in a block
    peak: int  # bytes: the process's resident set at most, or the GPU memory that it reserved

    @property
    def seconds(self) -> float:
        """The median seconds of a step."""
        return median(self.times)

    @property
    def items_per_s(self) -> float:
        """Items a second, counted as training's log counts them: one batch a step."""
        return self.batch_size / self.seconds


def timed(trainer: Trainer, data: Any, *, seconds: float, blocks: int = 20) -> Trial:
    """Time blocks of steps of a throw-away trainer, at rate 0, so that nothing can diverge, for some `seconds` at most.

    There are at least two blocks, however long they last, after up to three steps to warm up.
    """
    device = trainer.device
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["base_lr"] = 0.0
    forget_peak(device)
    trainer.model.train()
    batches = trainer.stream(data)

    def lasts(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            trainer.advance(batches)
        finish(device)
        return time.perf_counter() - began

    warm_up = [lasts(1)]  # which also chooses algorithms, compiles, and makes the optimizer's state
    while len(warm_up) < 3 and sum(warm_up) < seconds:
        warm_up.append(lasts(1))
    block = max(1, round(BLOCK / min(warm_up)))
    times: list[float] = []
    while len(times) < blocks and (len(times) < 2 or sum(times) * block < seconds):
        times.append(lasts(block) / block)
    batches.close()
    return Trial(trainer.options.batch_size, times, block, peak(device))


# --- trainer.batch_size=auto ------------------------------------------------------------------------------------------


def settle(
    make: Callable[[int, Ranks], Trainer], data: Any, *, device: Device, accumulate: int
) -> int:
    """Return the joint batch size for `auto`, the same in every process; the first says why.

    It is doubled while it fits into memory (at most 90 % of what a GPU has free, half of what is free beside a CPU), while
    items a second grow by more than 5 %, and up to the training set's size or 8,192. Of those tried it is the smallest
    whose rate is within 5 % of the best: a larger one that is no faster only makes fewer updates in the same time. The
    global random state is left as it was.

    Args:
        make: builds a throw-away trainer for a batch size and for processes that it is told of.

    Raises:
        UserError: not even the smallest batch fits into memory, or what `make` refuses.
    """
    ranks = Ranks()
    if device.fsdp and ranks.size > 1:
        raise UserError(
            "trainer.batch_size=auto is found by one process, and device.fsdp cuts the model over all; give a number"
        )
    shards = ranks.size * accumulate
    answer: int | UserError | None = None
    if ranks.first:  # the others wait: it measures its own share of a joint batch, without them
        alone = copy.copy(ranks)
        alone.size, alone.rank = 1, 0
        trials = Trials(lambda n: make(n, alone), data, device, processes=ranks.size)
        with torch.random.fork_rng([device.torch] if device.name == "cuda" else []):
            try:
                answer, why = climb(
                    trials, shards=shards, most=max(shards, min(data.size("train"), MOST))
                )
                print(why, file=sys.stderr)
            except UserError as error:
                answer = error
        forget_peak(device)
    answer = ranks.share(answer)
    if isinstance(answer, UserError):
        raise answer
    return answer


def climb(rate: Callable[[int], float | None], *, shards: int, most: int) -> tuple[int, str]:
    """Return the chosen one of the sizes `shards`·2^i ≤ `most`, and a line that says why.

    Args:
        rate: returns the items a second at a size, or None where it does not fit into memory.

    Raises:
        UserError: no size fits.
    """
    size = shards
    while size < FIRST * shards and 2 * size <= most:
        size *= 2
    rates: dict[int, float] = {}
    found = rate(size)
    while found is None and size > shards:
        size //= 2
        found = rate(size)
    if found is None:
        raise UserError(
            f"trainer.batch_size=auto: not even a batch of {size} fits into memory; take a smaller model"
        )
    rates[size] = found
    while True:
        if 2 * size > most:
            end = f"{most:,} is the most that is tried"
            break
        if (found := rate(2 * size)) is None:
            end = f"{2 * size:,} would not fit into memory"
            break
        best, size = max(rates.values()), 2 * size
        rates[size] = found
        if found <= GAIN * best:
            end = f"{size:,} gained too little"
            break
    chosen = min(size for size, found in rates.items() if GAIN * found >= max(rates.values()))
    tried = ", ".join(f"{size:,}: {found:,.0f}" for size, found in rates.items())
    return (
        chosen,
        f"trainer.batch_size={chosen}: the smallest within 5 % of the best of {tried} items/s; {end}",
    )


class Trials:
    """Measures one batch size after another, and cleans up after each."""

    def __init__(
        self, make: Callable[[int], Trainer], data: Any, device: Device, *, processes: int
    ) -> None:
        self.make, self.data, self.device, self.processes = make, data, device, processes
        self.limit = limit(device)
        self.grew: tuple[int, int] | None = (
            None  # the last size that fitted, and the bytes that it took
        )

    def __call__(self, size: int) -> float | None:
        """Return items a second of all processes, without their messages, or None where a share does not fit."""
        before = held(self.device)
        if (
            self.grew and self.device.name != "cuda"
        ):  # where memory ends with a kill, and not with an error
            last, grew = self.grew
            if before + grew * size / last > self.limit:
                return None
        try:
            trial = timed(self.make(size // self.processes), self.data, seconds=0.5, blocks=10)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
                raise
            trial = None
        gc.collect()  # a trainer and its model know each other
        if self.device.compile:
            torch.compiler.reset()
        if self.device.name == "cuda":
            torch.cuda.empty_cache()
        if trial is None or trial.peak > self.limit:
            return None
        self.grew = size, max(0, trial.peak - before)
        return trial.items_per_s * self.processes


# --- the device -------------------------------------------------------------------------------------------------------


def finish(device: Device) -> None:
    """Wait until the device has done what it was told."""
    if device.name == "cuda":
        torch.cuda.synchronize(device.torch)
    elif device.name == "mps":
        torch.mps.synchronize()


def forget_peak(device: Device) -> None:
    """Let the peak of memory count from now; where the system has no means for it (not Linux), it goes on as it was."""
    if device.name == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # proc_pid_clear_refs(5): the resident set's peak


def peak(device: Device) -> int:
    """Return the peak in bytes: GPU memory reserved, as it cannot be had by others, or the process's resident set."""
    return (
        torch.cuda.max_memory_reserved(device.torch)
        if device.name == "cuda"
        else device.peak_memory()
    )


def held(device: Device) -> int:
    """Return what is held now, in bytes; without Linux's /proc, the most that was."""
    if device.name == "cuda":
        return torch.cuda.memory_reserved(device.torch)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return device.peak_memory()


def limit(device: Device) -> int:
    """Return up to how many bytes a trial's peak may go."""
    if device.name == "cuda":
        return int(0.9 * (torch.cuda.mem_get_info(device.torch)[0] + held(device)))
    return held(device) + free() // 2 // world().local_size


def free() -> int:
    """Return the bytes of memory that this process could still have: the machine's, or its control group's."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        left = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    try:
        most = int((group / "memory.max").read_text())
        return min(left, most - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return left
