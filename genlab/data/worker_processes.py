"""Work on the items of a stream ahead of time, in processes that may die.

A worker's answer reaches this process through shared memory, which a container limits (Docker gives
64 MB), and the system kills processes when memory runs out. If the workers fail, this process does
their work from the first answer that is missing, so every batch stays the same.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genlab.console import print_above_progress
from genlab.signals import STOP_SIGNALS
from genlab.system import SHARED_MEMORY, shared_memory_bytes, use_short_temporary_folder

POLL_INTERVAL_S = 5  # between looks whether the workers are alive
# Workers that have not answered for so long have failed: one that waits for a lock, for example.
ANSWER_TIMEOUT_S = 900.0
PREFETCH_FACTOR = 4  # answers that each worker holds ready
LOCKS_PER_WORKER = 3  # and the same for three more queues and events
SHARED_MEMORY_ERROR = re.compile(
    "shared memory|No space left|Read-only"
)  # in the messages of torch

has_failed = False  # whether workers of this process have failed: others would fail too


class Items(Protocol):
    """The function that workers compute: an answer, with tensors in it, for each key."""

    def __getitem__(self, key: Any, /) -> Any: ...


class WorkerError(RuntimeError):
    """The workers failed; the message says how, and what can be done about it."""


class SharedItems:
    """The answers as workers give them: with tensors in shared memory, or the reason why not.

    Torch would move the tensors in a thread, whose errors would be lost.
    """

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, key: Any) -> Any:
        try:
            return move_to_shared_memory(self.items[key])
        # Whatever it is: this process tries the same item again, where the error is readable.
        except Exception as error:
            return WorkerError(" ".join(f"{type(error).__name__}: {error}".split()))


def move_to_shared_memory(answer: Any) -> Any:
    """Move the tensors of an answer to shared memory; return the answer."""
    if isinstance(answer, Tensor):
        return answer.share_memory_()
    if isinstance(answer, tuple | list):
        for part in answer:
            move_to_shared_memory(part)
    return answer


def stream_items(
    items: Items, keys: Iterator[Any], *, workers: int, pin_memory: bool
) -> Iterator[Any]:
    """Yield `items[key]` of each key, in order.

    Args:
        workers: processes that compute answers ahead; 0 computes them in this process, as after a
            failure of workers.
        pin_memory: whether the tensors are copied to a GPU next.
    """
    pending: deque[Any] = deque()  # keys that were drawn, and whose answers were not yielded

    def draw_keys() -> Iterator[Any]:
        for key in keys:
            pending.append(key)
            yield key

    global has_failed
    if workers and not has_failed:
        try:
            for answer in answers_of_workers(items, draw_keys(), workers, pin_memory):
                pending.popleft()
                yield answer
            return
        except WorkerError as error:
            has_failed = True
            print_above_progress(f"warning: {error}; the run continues without workers")
    while pending:
        yield pin_tensors(items[pending.popleft()], pin_memory)
    for key in keys:
        yield pin_tensors(items[key], pin_memory)


def pin_tensors(answer: Any, pin_memory: bool) -> Any:
    """Return an answer with its tensors in page-locked memory, if a GPU wants that."""
    if pin_memory and isinstance(answer, Tensor):
        return answer.pin_memory()
    if pin_memory and isinstance(answer, tuple | list):
        return type(answer)(pin_tensors(part, pin_memory) for part in answer)
    return answer


def answers_of_workers(
    items: Items, keys: Iterator[Any], workers: int, pin_memory: bool
) -> Iterator[Any]:
    """Yield the workers' answers, in the order of the keys.

    Raises:
        WorkerError: a worker died, does not answer, or could not share its answer.
    """
    before = set(multiprocessing.active_children())
    try:
        with warnings.catch_warnings():
            # more workers than cores are right where files are slow to arrive
            warnings.filterwarnings("ignore", "This DataLoader will create")
            answers = call_without_child_handler(
                lambda: start_workers(items, keys, workers, pin_memory)
            )
    except OSError as error:  # no memory for another process, or for the locks that they share
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise WorkerError(describe_failure(f"cannot be started: {error}")) from error
    processes = list(set(multiprocessing.active_children()) - before)
    while True:
        answer = next_answer(answers, processes)
        if answer is None:
            return
        if isinstance(answer, WorkerError):
            raise WorkerError(describe_failure(str(answer)))
        yield answer


def start_workers(
    items: Items, keys: Iterator[Any], workers: int, pin_memory: bool
) -> Iterator[Any]:
    """Start workers; return the iterator of their answers.

    Raises:
        OSError: they cannot be started.
    """
    sampler: Any = keys  # an endless stream
    loader: DataLoader = DataLoader(
        SharedItems(items),  # type: ignore[arg-type]  # has the method of torch's Dataset
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCH_FACTOR,
        pin_memory=pin_memory,
        timeout=POLL_INTERVAL_S,
        worker_init_fn=ignore_stop_signals,
        # without it the workers' seed would be drawn from the global random state
        generator=torch.Generator(),
    )
    use_short_temporary_folder()  # processes talk to each other by sockets in it
    # If the system lacks room for their locks, the loader would fail half built, and noisily.
    locks = [multiprocessing.Lock() for _ in range(LOCKS_PER_WORKER * (workers + 3))]
    del locks
    return iter(loader)


def next_answer(answers: Iterator[Any], processes: list[Any]) -> Any:
    """Return the next answer of workers; None after the last.

    Raises:
        WorkerError: a worker died or does not answer.
    """
    started = time.monotonic()
    while True:
        try:
            return next(answers, None)
        except (RuntimeError, OSError, EOFError) as error:
            dead = [process for process in processes if not process.is_alive()]
            if dead:
                raise WorkerError(describe_death(dead[0].exitcode)) from error
            if "timed out" not in str(error):
                raise WorkerError(describe_failure(str(error))) from error
            if time.monotonic() - started > ANSWER_TIMEOUT_S:
                reason = f"have not answered for {ANSWER_TIMEOUT_S / 60:.0f} minutes"
                raise WorkerError(describe_failure(reason)) from error


def call_without_child_handler(make: Callable[[], Any]) -> Any:
    """Return what a call returns, and undo the handler of SIGCHLD that it sets.

    Torch's handler raises the death of a worker anywhere, such as within an optimizer's step.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return make()
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return make()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def ignore_stop_signals(worker: int) -> None:
    """Let only this worker's parent end it, which saves after a Ctrl-C or a lost connection.

    SIGTERM is how the parent ends it.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)


def describe_death(exit_code: int | None) -> str:
    """Return in one line how a worker died, and what can be done about it."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        if name == "SIGKILL":
            return (
                "a data worker was killed (SIGKILL), as the system does when memory runs out; "
                "fewer workers take less: dataset.workers=1"
            )
        return describe_failure(f"died of {name}", is_memory=name == "SIGBUS")
    return describe_failure(f"ended with exit code {exit_code}")


def describe_failure(reason: str, *, is_memory: bool = False) -> str:
    """Return in one line why workers failed, and what can be done about it."""
    if not (is_memory or SHARED_MEMORY_ERROR.search(reason)):
        return f"data workers failed: {reason}"
    size = shared_memory_bytes()
    total = "" if size is None else f", which has {size / 2**20:,.4g} MB"
    return (
        f"data workers failed: {reason}; they need more of {SHARED_MEMORY}{total}: start the "
        "container with --shm-size=1g or --ipc=host, or set dataset.workers=0"
    )
