"""Logging of a run: a progress bar or lines on the terminal, stats.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.console import (
    Progress,
    format_duration_as_h_mm_ss,
    monotonic_seconds,
    print_above_progress,
)
from genlab.errors import UserError
from genlab.fileio import add_path_to_os_errors, atomic_write
from genlab.untrusted.files import open_regular_file, read_bytes

if TYPE_CHECKING:
    from io import RawIOBase
    from pathlib import Path

    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    from genlab.distributed.process_group import ProcessGroup
    from genlab.runs.run_folder import RunFolder

LONG_STEP_S = 10.0  # a step that takes longer is shown with its time
FINAL_STEP = "final/step"  # of the final numbers in TensorBoard's table of hyperparameters
MAX_HYPERPARAMETER_BYTES = 2**20  # of a file with such a table, which has a few thousand
LIVE_INTERVAL_S = 2.0  # between looks at the losses of a step that is not logged


class DivergedError(UserError):
    """A loss or weight is not finite: the options are valid, but the run cannot continue."""

    exit_code = 1


class TrainingProgress(Progress):
    """The steps of a training: "step 50/10,000  0:01:40 left  900 items/s  loss 1.2"."""

    def __init__(self, start: int, steps: int) -> None:
        super().__init__("step", steps, done=start)
        self.items_per_step = 1
        self.losses: dict[str, float] = {}
        self.losses_time = -math.inf  # when they were shown
        self.time_limit_s = math.inf  # what is left of trainer.max_minutes

    def show_losses(self, losses: dict[str, float]) -> None:
        """Set the losses that are shown."""
        self.losses, self.losses_time = losses, monotonic_seconds()

    def seconds_left(self) -> float | None:
        """Return the time until the last step or until the time limit, whichever is first."""
        left = super().seconds_left()
        return left if left is None else min(left, self.time_limit_s)

    def format_status_line(self) -> str:
        """Return the step, the time left, the rate and the losses."""
        parts = [self.format_position()]
        seconds = monotonic_seconds() - self.advanced
        if self.first is None:
            parts.append(f"the first step has taken {format_duration_as_h_mm_ss(seconds)} so far")
        elif seconds > LONG_STEP_S and self.total and self.done < self.total:
            parts.append(f"this step has taken {format_duration_as_h_mm_ss(seconds)} so far")
        if (left := self.seconds_left()) is not None:
            parts.append(f"{format_duration_as_h_mm_ss(left)} left")
        if (rate := self.units_per_s()) is not None:
            items = rate * self.items_per_step
            parts.append(f"{items:,.0f} items/s" if items >= 10 else f"{items:.2g} items/s")
        parts += [f"{k} {v:.4g}" for k, v in self.losses.items() if not k.startswith("grad_norm")]
        return "  ".join(parts)


class Logger:
    """Collects each step's losses, and writes their means at the logged steps.

    Args:
        run: the folder to write to. None writes nothing, but still checks the losses: every
            process but rank 0 has such a logger.
        start: the step that the run starts from.
        steps: the run's last step.
        unlogged: losses since the last logged step, from a checkpoint.
        redoes_start: whether the evaluation of `start` is made again: TensorBoard may have it.
    """

    def __init__(
        self,
        run: RunFolder | None,
        *,
        start: int,
        steps: int,
        unlogged: Sequence[dict[str, float]],
        group: ProcessGroup,
        redoes_start: bool = False,
    ) -> None:
        self.run, self.group, self.steps = run, group, steps
        self.unlogged: list[dict[str, Any]] = list(unlogged)
        self.tensorboard: SummaryWriter | None = None
        self.stats: RawIOBase | None = None
        self.progress = TrainingProgress(start, steps)
        self.excepthook: Callable[[threading.ExceptHookArgs], Any] | None = None
        if run:
            self.events = run.tensorboard
            self._open_files(run, start if redoes_start else start + 1)
            if redoes_start:
                self._write_again(run, start)

    def _open_files(self, run: RunFolder, first_step: int) -> None:
        """Open the files; what they show of `first_step` and later steps is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.excepthook = threading.excepthook
        threading.excepthook = self.ignore_tensorboard_error
        try:
            with add_path_to_os_errors(self.events):
                # what a killed training wrote after its last checkpoint
                purge_step = first_step if any(self.events.glob("*tfevents*")) else None
                self.tensorboard = SummaryWriter(self.events, purge_step=purge_step)
            self.stats = open_stats(run)
        except OSError:
            self.close_files()
            raise
        self.progress.__enter__()

    def _write_again(self, run: RunFolder, step: int) -> None:
        """Write what the run has of a step to TensorBoard again."""
        for record in run.read_log():
            if record["step"] == step and not record.get("partial"):
                self._add_means(step, {k: v for k, v in record.items() if isinstance(v, float)})
        if (path := run.preview_path(step)).exists():
            self.add_image("samples", read_image(path), step)

    # --- losses -----------------------------------------------------------------------------------

    def add_losses(self, losses: dict[str, Tensor]) -> None:
        """Store one step's losses, and show the progress.

        It waits for the device only every few seconds, to show the losses of this process.
        """
        self.unlogged.append(losses)
        self.progress.update()
        if self.run and monotonic_seconds() - self.progress.losses_time > LIVE_INTERVAL_S:
            self.progress.show_losses({name: float(value) for name, value in losses.items()})

    def resolve_losses(self, step: int, hint: str) -> list[dict[str, float]]:
        """Return the unlogged losses as numbers, averaged over all processes, and check them.

        Args:
            hint: what to do after a divergence, for the message.

        Raises:
            DivergedError: a loss is not finite; names the step and the loss.
        """
        tensors = [
            i
            for i, losses in enumerate(self.unlogged)
            if any(isinstance(v, Tensor) for v in losses.values())
        ]
        if tensors:  # one wait for the device, and one message
            values = torch.stack(
                [v.detach().double() for i in tensors for v in self.unlogged[i].values()]
            )
            self.group.all_reduce_mean([values])
            numbers = iter(values.tolist())
            for i in tensors:
                self.unlogged[i] = {name: next(numbers) for name in self.unlogged[i]}
        for i, losses in enumerate(self.unlogged):
            broken = [f"{k} is {v}" for k, v in losses.items() if not math.isfinite(v)]
            if broken:
                broken_step = step - len(self.unlogged) + 1 + i
                self.write_means(broken_step - 1, mean_losses(self.unlogged[:i]), is_partial=True)
                raise DivergedError(f"step {broken_step}: {', '.join(broken)}; {hint}")
        return self.unlogged

    def log_step(
        self, step: int, extra: dict[str, float], hint: str, *, is_partial: bool = False
    ) -> dict[str, float]:
        """Log and return the mean losses since the last logged step, with `extra` numbers.

        Args:
            is_partial: the run ends between two logged steps. A resume continues the interval, and
                its line replaces this one.
        """
        means = mean_losses(self.resolve_losses(step, hint))
        if not is_partial:
            self.unlogged = []
        self.write_means(step, {**means, **extra}, is_partial=is_partial)
        self.progress.show_losses(means)
        if self.run and (is_partial or step >= self.steps):
            print_above_progress(self.progress.format_status_line())
        return means

    def write_means(self, step: int, means: dict[str, float], *, is_partial: bool) -> None:
        """Write mean losses and other numbers to stats.jsonl and TensorBoard, if there are any."""
        if not means:
            return
        self.write_line({"step": step, **means, **({"partial": True} if is_partial else {})})
        if not is_partial:  # TensorBoard cannot drop them again
            self._add_means(step, means)

    def _add_means(self, step: int, means: dict[str, float]) -> None:
        for name, value in means.items():
            self.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def log_note(self, step: int, message: str) -> None:
        """Print a remark about the numbers, and keep it in the log."""
        self.write_line({"step": step, "notes": [message]})
        self.print_message(f"step {step:,}: {message}")

    # --- files ------------------------------------------------------------------------------------

    def write_line(self, record: dict[str, Any]) -> None:
        """Append one line to stats.jsonl."""
        if self.run and self.stats:
            data = (json.dumps(record) + "\n").encode()
            with add_path_to_os_errors(self.run.stats):
                while data:
                    data = data[self.stats.write(data) :]

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write a number to TensorBoard."""
        self._write_tensorboard("add_scalar", name, value, step)

    def add_text(self, name: str, text: str) -> None:
        """Write a text to TensorBoard."""
        self._write_tensorboard("add_text", name, text)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an image (H, W, 3) of bytes to TensorBoard."""
        self._write_tensorboard("add_image", name, image, step, dataformats="HWC")

    def write_hyperparameters(
        self, step: int, options: dict[str, Any], final: dict[str, float]
    ) -> None:
        """Write the hyperparameters with the final numbers to TensorBoard, once."""
        if self.tensorboard and self.run and not has_hyperparameters(self.run, step):
            hyperparameters = {
                key: value if isinstance(value, int | float | str | bool) else str(value)
                for key, value in options.items()
            }
            metrics = {f"final/{name}": value for name, value in final.items()}
            metrics[FINAL_STEP] = step
            self._write_tensorboard("add_hparams", hyperparameters, metrics, run_name=".")

    def sync(self) -> None:
        """Flush the log to disk: a checkpoint is never newer than the log of its step."""
        if self.run and self.stats:
            with add_path_to_os_errors(self.run.stats):
                os.fsync(self.stats.fileno())
        self._write_tensorboard("flush")

    def _write_tensorboard(self, method: str, *arguments: Any, **options: Any) -> None:
        """Call a method of TensorBoard's writer, and open another if its folder was deleted."""
        if self.tensorboard:
            with add_path_to_os_errors(self.events):
                try:
                    getattr(self.tensorboard, method)(*arguments, **options)
                except FileNotFoundError:
                    self._reopen_tensorboard()

    def _reopen_tensorboard(self) -> None:
        """Continue in a new folder after TensorBoard's was deleted, and say so."""
        from torch.utils.tensorboard import SummaryWriter

        assert self.tensorboard and self.run
        with suppress(OSError):  # of events that are lost
            self.tensorboard.close()
        self.tensorboard = SummaryWriter(self.events)
        self.print_message(
            f"{self.events} was deleted while training; its curves continue from here, and "
            f"{self.run.stats} has all of them"
        )

    def stats_content(self) -> bytes:
        """Return the lines of stats.jsonl, even if the file was deleted."""
        if not self.stats:
            return b""
        self.stats.seek(0)
        return self.stats.read() or b""  # writes append, wherever the position is

    def restore_files(self) -> list[str]:
        """Write stats.jsonl and TensorBoard's folder again if they were deleted.

        Returns:
            One message for each that was.
        """
        if not (self.run and self.stats):
            return []
        messages = []
        path = self.run.stats
        if not path.exists() or not os.path.samestat(os.fstat(self.stats.fileno()), path.stat()):
            # deleted, or replaced as by an editor
            lines = self.stats_content().splitlines(keepends=True)
            found = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            known = set(found)
            atomic_write(path, b"".join([*found, *(line for line in lines if line not in known)]))
            self.stats.close()
            self.stats = open_stats(self.run)
            messages.append(f"{path} was deleted or replaced while training; it is complete again")
        if self.tensorboard and not self.events.exists():
            self._reopen_tensorboard()
        return messages

    def close(self) -> None:
        """Close the files; what cannot be written to TensorBoard is an error."""
        self._write_tensorboard("close")
        self.tensorboard = None
        self.close_files()

    def close_files(self) -> None:
        """Close the files after an error, ignoring what cannot be written any more."""
        self.progress.__exit__(None, None, None)
        if self.tensorboard:
            with suppress(OSError):
                self.tensorboard.close()
        if self.stats:
            self.stats.close()
        if self.excepthook:
            threading.excepthook, self.excepthook = self.excepthook, None

    def ignore_tensorboard_error(self, error: threading.ExceptHookArgs) -> None:
        """Ignore a failed write of TensorBoard's thread: the next event raises the same error."""
        is_tensorboard = type(error.thread).__module__.startswith("tensorboard")
        if not (isinstance(error.exc_value, OSError) and is_tensorboard) and self.excepthook:
            self.excepthook(error)

    # --- terminal ---------------------------------------------------------------------------------

    def print_message(self, message: str) -> None:
        """Print a line for the user, above the progress."""
        if self.run:
            print_above_progress(message)


def read_image(path: Path) -> np.ndarray:
    """Return the pixels (H, W, 3) of a preview that this run has written."""
    import numpy as np
    from PIL import Image

    with open_regular_file(path) as file, Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def has_hyperparameters(run: RunFolder, step: int) -> bool:
    """Whether TensorBoard's files have the hyperparameters and final numbers of a step.

    They are the last thing that a complete run writes to TensorBoard, in a small file of their own.
    """
    # the bytes of this entry in the file: its name, and the step as a float32
    entry = FINAL_STEP.encode() + b"\x15" + struct.pack("<f", step)
    for path in run.tensorboard.glob("events.out.tfevents.*"):
        try:
            if entry in read_bytes(path, MAX_HYPERPARAMETER_BYTES):
                return True
        except UserError:  # of the training, which is larger
            continue
    return False


def open_stats(run: RunFolder) -> RawIOBase:
    """Open stats.jsonl for appending and reading.

    It is not buffered: the error of a full disk belongs to the line that caused it.
    """
    return open(run.stats, "a+b", buffering=0)


def mean_losses(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each loss over the steps that have it."""
    means = {}
    for name in dict.fromkeys(name for losses in steps for name in losses):
        values = [losses[name] for losses in steps if name in losses]
        means[name] = sum(values) / len(values)
    return means
