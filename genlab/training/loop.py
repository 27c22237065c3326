"""The one loop around every family's update rule: numbers, pictures, measures, checkpoints, and when to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from genlab.abilities import Estimate
from genlab.signals import Signals
from genlab.spec import Batch
from genlab.training.logger import Diverged, Log

if TYPE_CHECKING:
    import numpy as np

    from genlab.runs.run_folder import RunFolder
    from genlab.training.trainer import Data, Trainer

Measures = dict[str, tuple[Estimate, bool]]  # name -> (the number, whether higher is better)


class Loop:
    """Runs a trainer from the step that it stands at.

    Args:
        run: the folder to write to; None writes nothing. Of several processes only the first writes.
        preview: draws a picture (H, W, 3) of samples.
        evaluate: measures the model on held-out data.
        verdict: hears each evaluation and its step; what it returns, other than None, is why the run ends there.
        config: the run's options, for TensorBoard's table of hyperparameters.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: RunFolder | None = None,
        *,
        preview: Callable[[nn.Module], np.ndarray] | None = None,
        evaluate: Callable[[nn.Module], Measures] | None = None,
        verdict: Callable[[int, Measures], str | None] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.trainer, self.options = trainer, trainer.options
        self.folder, self.run = run, run if trainer.ranks.first else None
        self.preview, self.evaluate, self.verdict, self.config = (
            preview,
            evaluate,
            verdict,
            config or {},
        )
        self.ruled: str | None = None  # what the verdict was

    def fit(self, data: Data) -> str:
        """Train until the options say so; return why it ended: "steps", "time", "patience", a signal's name, or the verdict.

        Raises:
            Diverged: a loss, or a weight about to be saved, is not finite.
        """
        t = self.trainer
        left = t.at < self.options.steps
        if left and self.late():  # by an earlier start
            return "time"
        batches = t.stream(data)
        if (
            left
        ):  # what is made before the first batch may take minutes, and a signal ends it at once
            batches = chain([next(batches)], batches)
        self.log = Log(
            self.run, start=t.at, steps=self.options.steps, pending=t.pending, ranks=t.ranks
        )
        try:
            ended = self.steps(batches)
        finally:
            self.log.drop()
        return ended or "steps"

    def steps(self, batches: Iterator[Batch]) -> str | None:
        """Take the steps that are left; return why they ended before the last."""
        t, o = self.trainer, self.options
        if self.run:
            self.log.text("config", f"```yaml\n{self.run.config()}\n```")
        t.model.train()
        clock = rate_from = time.monotonic()
        rate_at, ended = t.at, None
        with Signals() as signals:
            while t.at < o.steps and not ended:
                # one update
                self.log.add(t.advance(batches))

                # numbers
                now = time.monotonic()
                t.seconds, clock = t.seconds + now - clock, now
                if self.due(o.log_every) or t.at == o.steps:
                    means = self.log.write(
                        t.at, self.vitals((t.at - rate_at) / (now - rate_from)), self.hint()
                    )
                    for note in t.diagnose(means):
                        self.log.note(t.at, note)
                    rate_from, rate_at = time.monotonic(), t.at

                # pictures and measures, whose time is not training's
                if (self.preview and self.due(o.preview_every)) or (
                    self.evaluate and self.due(o.evaluate_every)
                ):
                    self.look()
                    rate_from += time.monotonic() - now

                # ends and checkpoints
                ended = self.end(signals.name)
                if ended or self.due(o.save_every) or t.at == o.steps:
                    self.save()
                clock = time.monotonic()
            self.log.close(self.config, self.run.final() if self.run else {})
        return ended

    def due(self, every: int) -> bool:
        """Whether something done every so many steps is due now."""
        return every > 0 and self.trainer.at % every == 0

    def late(self) -> bool:
        """Whether the time is over that the run was given, resumes counted in."""
        minutes = self.options.max_time
        return minutes is not None and self.trainer.seconds >= minutes * 60

    def vitals(self, rate: float) -> dict[str, float]:
        """Return what is logged beside the losses; `rate` in steps a second."""
        t, o = self.trainer, self.options
        left = (o.steps - t.at) / rate
        if o.max_time:
            left = min(left, max(0.0, o.max_time * 60 - t.seconds))
        return {
            **{
                f"lr/{name}": float(opt.param_groups[0]["lr"]) for name, opt in t.optimizers.items()
            },
            "seconds": t.seconds,
            "seconds_left": left,
            "items_per_s": rate * t.items_a_step,
            "memory_mb": t.device.peak_memory() / 2**20,
        }

    def look(self) -> None:
        """Show samples, and measure the model, in the first process; every process hears what it measured."""
        t, o = self.trainer, self.options
        model = t.sampler()
        if self.run and self.preview and self.due(o.preview_every):
            self.log.image("samples", self.preview(model), t.at)
        if self.evaluate and self.due(o.evaluate_every):
            self.judge(t.ranks.share(self.evaluate(model) if t.ranks.first else None))
        t.go_on()

    def judge(self, measures: Measures) -> None:
        """Log an evaluation, and keep the best checkpoint by the monitored metric."""
        t, monitor = self.trainer, self.options.monitor
        notes = [estimate.note for estimate, _ in measures.values() if estimate.note]
        said = {"notes": notes} if notes else {}
        self.log.line(
            {
                "step": t.at,
                "evaluation": {name: e.value for name, (e, _) in measures.items()},
                **said,
            }
        )
        for note in notes:
            self.log.tell(f"step {t.at:,}: {note}")
        for name, (estimate, _) in measures.items():
            self.log.scalar(f"evaluation/{name}", estimate.value, t.at)
        if self.verdict and t.ranks.first:
            self.ruled = self.verdict(t.at, measures)
        if monitor is None:
            return
        estimate, higher = measures[monitor]
        sign = 1 if higher else -1
        if t.best is None or sign * estimate.value > sign * t.best["value"]:
            t.best = {"value": estimate.value, "step": t.at, "since": 0}
            self.save(best=True)
        else:
            t.best["since"] += 1

    def end(self, signal: str | None) -> str | None:
        """Return why the run ends now, if it does in any process; every process gets the same answer."""
        t, o = self.trainer, self.options
        why = signal
        if self.late():
            why = why or "time"
        if o.patience and t.best and t.best["since"] >= o.patience:
            why = why or "patience"
        if t.at < o.steps:  # a whole run is no shorter for being judged
            why = why or self.ruled
        return (t.ranks.share(why) or "SIGTERM") if t.ranks.any(why is not None) else None

    def hint(self) -> str:
        """Return what to do after a divergence."""
        saved = self.folder.steps() if self.folder else []
        where = (
            f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        )
        return f"{where}; try a lower optimizer.lr, or trainer.clip=1"

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint with all that a bit-exact resume needs.

        Raises:
            Diverged: a weight is not finite; nothing is written.
        """
        t = self.trainer
        t.pending = self.log.settle(t.at, self.hint())
        broken = [n for n, p in t.model.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            raise Diverged(
                f"step {t.at}: {', '.join(broken[:3])} hold values that are not finite; {self.hint()}"
            )
        state = t.state()
        if self.run:
            self.run.save(state, keep=self.options.keep, best=best)
