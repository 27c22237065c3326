"""Logging of a run: a progress bar or lines on the terminal, stats.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.fileio import with_filename

if TYPE_CHECKING:
    from io import RawIOBase

    import numpy as np
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    from genlab.distributed.process_group import ProcessGroup
    from genlab.runs.run_folder import RunFolder

PRINT_INTERVAL_S = 5.0  # between lines if standard error is not a terminal


class DivergedError(UserError):
    """A loss or weight is not finite: the options are valid, but the run cannot continue."""

    exit_code = 1


class Logger:
    """Collects each step's losses, and writes their means at the logged steps.

    Args:
        run: the folder to write to. None writes nothing, but still checks the losses: every
            process but rank 0 has such a logger.
        start: the step that the run starts from.
        steps: the run's last step.
        unlogged: losses since the last logged step, from a checkpoint.
    """

    def __init__(
        self,
        run: RunFolder | None,
        *,
        start: int,
        steps: int,
        unlogged: Sequence[dict[str, float]],
        group: ProcessGroup,
    ) -> None:
        self.run, self.group, self.steps = run, group, steps
        self.unlogged: list[dict[str, Any]] = list(unlogged)
        self.last_print = time.monotonic()
        self.tensorboard: SummaryWriter | None = None
        self.stats: RawIOBase | None = None
        self.bar: tqdm[Any] | None = None
        self.excepthook: Callable[[threading.ExceptHookArgs], Any] | None = None
        if run:
            self.events = run.path / "tensorboard"
            self._open_files(run, start)

    def _open_files(self, run: RunFolder, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.excepthook = threading.excepthook
        threading.excepthook = self.ignore_tensorboard_error
        try:
            with with_filename(self.events):
                purge_step = start + 1 if start else None
                self.tensorboard = SummaryWriter(self.events, purge_step=purge_step)
            # unbuffered: the error of a full disk belongs to the line that caused it
            self.stats = open(run.stats, "ab", buffering=0)  # noqa: SIM115  closed in close_files
        except OSError:
            self.close_files()
            raise
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.steps, initial=start, unit="step", dynamic_ncols=True)

    # --- losses -----------------------------------------------------------------------------------

    def add_losses(self, losses: dict[str, Tensor]) -> None:
        """Store one step's losses, without waiting for the device."""
        self.unlogged.append(losses)

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
                raise DivergedError(f"step {broken_step}: {', '.join(broken)}; {hint}")
        return self.unlogged

    def log_step(self, step: int, extra: dict[str, float], hint: str) -> dict[str, float]:
        """Log and return the mean losses since the last logged step, with `extra` numbers."""
        unlogged = self.resolve_losses(step, hint)
        means = {}
        for name in dict.fromkeys(name for losses in unlogged for name in losses):
            values = [losses[name] for losses in unlogged if name in losses]
            means[name] = sum(values) / len(values)
        self.unlogged = []
        self.write_line({"step": step, **means, **extra})
        for name, value in {**means, **extra}.items():
            self.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self.print_progress(step, means, extra)
        return means

    def log_note(self, step: int, message: str) -> None:
        """Print a remark about the numbers, and keep it in the log."""
        self.write_line({"step": step, "notes": [message]})
        self.print_message(f"step {step:,}: {message}")

    # --- files ------------------------------------------------------------------------------------

    def write_line(self, record: dict[str, Any]) -> None:
        """Append one line to stats.jsonl."""
        if self.run and self.stats:
            data = (json.dumps(record) + "\n").encode()
            with with_filename(self.run.stats):
                while data:
                    data = data[self.stats.write(data) :]

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write a number to TensorBoard."""
        if self.tensorboard:
            with with_filename(self.events):
                self.tensorboard.add_scalar(name, value, step)

    def add_text(self, name: str, text: str) -> None:
        """Write a text to TensorBoard."""
        if self.tensorboard:
            with with_filename(self.events):
                self.tensorboard.add_text(name, text)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an image (H, W, 3) of bytes to TensorBoard."""
        if self.tensorboard:
            with with_filename(self.events):
                self.tensorboard.add_image(name, image, step, dataformats="HWC")

    def close(self, options: dict[str, Any], final: dict[str, float]) -> None:
        """Write the hyperparameters with the final numbers to TensorBoard, and close the files."""
        if self.tensorboard:
            hyperparameters = {
                key: value if isinstance(value, int | float | str | bool) else str(value)
                for key, value in options.items()
            }
            metrics = {f"final/{name}": value for name, value in final.items()}
            with with_filename(self.events):
                self.tensorboard.add_hparams(hyperparameters, metrics, run_name=".")
                self.tensorboard.close()
            self.tensorboard = None
        self.close_files()

    def close_files(self) -> None:
        """Close the files after an error, ignoring what cannot be written any more."""
        if self.bar is not None:
            self.bar.close()
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

    def print_progress(self, step: int, means: dict[str, float], extra: dict[str, float]) -> None:
        """Update the progress bar; without a terminal, print a line every few seconds."""
        if not self.run:
            return
        losses = {k: f"{v:.4g}" for k, v in means.items() if not k.startswith("grad_norm")}
        rate = extra["items_per_s"]
        if self.bar is not None:
            self.bar.set_postfix({**losses, "items/s": f"{rate:.0f}"}, refresh=False)
            self.bar.update(step - self.bar.n)
        elif time.monotonic() - self.last_print > PRINT_INTERVAL_S or step >= self.steps:
            self.last_print = time.monotonic()
            text = "  ".join(f"{k} {v}" for k, v in losses.items())
            left = format_duration(extra["seconds_left"])
            print(
                f"step {step:,}/{self.steps:,}  {text}  {rate:,.0f} items/s  {left} left",
                file=sys.stderr,
                flush=True,
            )

    def print_message(self, message: str) -> None:
        """Print a line for the user, above the progress bar."""
        if self.bar is not None:
            self.bar.write(message, file=sys.stderr)
        elif self.run:
            print(message, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    s = int(seconds)
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"
