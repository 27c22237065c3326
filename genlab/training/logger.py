"""What a run says while it trains: a bar or lines on the terminal, stats.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.fileio import naming

if TYPE_CHECKING:
    import numpy as np

    from genlab.distributed.process_group import Ranks
    from genlab.runs.run_folder import RunFolder

QUIET = 5.0  # seconds between lines where there is no terminal


class Diverged(UserError):
    """A loss that is no number: no option was wrong, but the run cannot go on."""

    exit_code = 1


class Log:
    """Gathers each step's losses and writes their means at the logged steps.

    Args:
        run: where to write; None (any process but the first) writes nothing but still checks the losses.
    """

    def __init__(
        self,
        run: RunFolder | None,
        *,
        start: int,
        steps: int,
        pending: list[dict[str, float]],
        ranks: Ranks,
    ) -> None:
        self.run = run
        self.ranks = ranks
        self.steps = steps
        self.pending: list[dict[str, Any]] = list(
            pending
        )  # since the last logged step; kept in checkpoints
        self.said = time.monotonic()
        self.board = self.bar = self.stats = self.hook = None
        if run:
            self.events = run.path / "tensorboard"
            from torch.utils.tensorboard import SummaryWriter

            self.hook, threading.excepthook = threading.excepthook, self.unraised
            try:
                with naming(self.events):
                    self.board = SummaryWriter(self.events, purge_step=start + 1 if start else None)
                self.stats = open(run.stats, "ab", buffering=0)  # noqa: SIM115 a full disk is to be known with the line itself
            except OSError:
                self.drop()
                raise
            if sys.stderr.isatty():
                from tqdm import tqdm

                self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Remember one step's losses, without waiting for the device."""
        self.pending.append(losses)

    def settle(self, step: int, hint: str) -> list[dict[str, float]]:
        """Turn the pending losses into numbers, means over all processes, with one wait for the device; check them.

        Raises:
            Diverged: one of them is not finite; names the step and the part.
        """
        waiting = [
            i
            for i, losses in enumerate(self.pending)
            if any(isinstance(v, Tensor) for v in losses.values())
        ]
        if waiting:
            values = torch.stack(
                [v.detach().double() for i in waiting for v in self.pending[i].values()]
            )
            self.ranks.average([values])
            numbers = iter(values.tolist())
            for i in waiting:
                self.pending[i] = {name: next(numbers) for name in self.pending[i]}
        for i, losses in enumerate(self.pending):
            broken = [name for name, value in losses.items() if not math.isfinite(value)]
            if broken:
                at = step - len(self.pending) + 1 + i
                raise Diverged(
                    f"step {at}: {', '.join(f'{n} is {losses[n]}' for n in broken)}; {hint}"
                )
        return self.pending

    def write(self, step: int, extra: dict[str, float], hint: str) -> dict[str, float]:
        """Write and return the means since the last logged step."""
        pending = self.settle(step, hint)
        names = {name: None for losses in pending for name in losses}
        means = {}
        for name in names:
            values = [losses[name] for losses in pending if name in losses]
            means[name] = sum(values) / len(values)
        self.pending = []
        self.line({"step": step, **means, **extra})
        for name, value in {**means, **extra}.items():
            self.scalar(name if "/" in name else f"train/{name}", value, step)
        self.say(step, means, extra)
        return means

    def note(self, step: int, message: str) -> None:
        """Say what the numbers mean, and keep it beside them."""
        self.line({"step": step, "notes": [message]})
        self.tell(f"step {step:,}: {message}")

    def line(self, record: dict[str, Any]) -> None:
        """Append one line to stats.jsonl."""
        if self.stats:
            data = (json.dumps(record) + "\n").encode()
            with naming(self.run.stats):
                while data:
                    data = data[self.stats.write(data) :]

    def scalar(self, name: str, value: float, step: int) -> None:
        if self.board:
            with naming(self.events):
                self.board.add_scalar(name, value, step)

    def text(self, name: str, text: str) -> None:
        if self.board:
            with naming(self.events):
                self.board.add_text(name, text)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Show a picture (H, W, 3) of bytes on TensorBoard."""
        if self.board:
            with naming(self.events):
                self.board.add_image(name, image, step, dataformats="HWC")

    def say(self, step: int, means: dict[str, float], extra: dict[str, float]) -> None:
        if not self.run:
            return
        shown = {k: f"{v:.4g}" for k, v in means.items() if not k.startswith("grad_norm")}
        rate = extra["items_per_s"]
        if self.bar is not None:
            self.bar.set_postfix({**shown, "items/s": f"{rate:.0f}"}, refresh=False)
            self.bar.update(step - self.bar.n)
        elif time.monotonic() - self.said > QUIET or step >= self.steps:
            self.said = time.monotonic()
            words = "  ".join(f"{k} {v}" for k, v in shown.items())
            left = extra["seconds_left"]
            print(
                f"step {step:,}/{self.steps:,}  {words}  {rate:,.0f} items/s  {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def tell(self, message: str) -> None:
        """Print a line for the user, above the bar."""
        if self.bar is not None:
            self.bar.write(message, file=sys.stderr)
        elif self.run:
            print(message, file=sys.stderr, flush=True)

    def close(self, options: dict[str, Any], final: dict[str, float]) -> None:
        """Write the hyperparameters with the final numbers, and close the files."""
        if self.board:
            plain = {
                k: v if isinstance(v, int | float | str | bool) else str(v)
                for k, v in options.items()
            }
            with naming(self.events):
                self.board.add_hparams(
                    plain, {f"final/{k}": v for k, v in final.items()}, run_name="."
                )
                self.board.close()
            self.board = None
        self.drop()

    def drop(self) -> None:
        """Close the files, where an error ended the run as well: what they could not hold was that error."""
        if self.bar is not None:
            self.bar.close()
        if self.board:
            with suppress(OSError):
                self.board.close()
        if self.stats:
            self.stats.close()
        if self.hook:
            threading.excepthook, self.hook = self.hook, None

    def unraised(self, error: threading.ExceptHookArgs) -> None:
        """Leave it to `naming` to say what TensorBoard's thread could not write: the next event raises the same error."""
        if not (
            isinstance(error.exc_value, OSError)
            and type(error.thread).__module__.startswith("tensorboard")
        ):
            self.hook(error)


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    s = int(seconds)
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"
