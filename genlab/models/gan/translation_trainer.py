"""The update rule of a translation: its errors alone first, then the game, each stage with a rate of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from genlab.errors import UserError
from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, Count, Decay


class TranslationTrainer(GANTrainer):
    """Descent of G on `model.loss` until the game begins; a model without a discriminator never plays.

    Raises:
        UserError: `starts` is neither [0] nor [0, a later step].
    """

    @dataclass(kw_only=True)
    class Options(GANTrainer.Options):
        starts: tuple[Count, ...] = (
            0,
        )  # [0]: the game from the start; [0, n]: G alone for n steps
        hold: Decay = 0.0  # share of each stage before its rate begins to fall

    def configure(self) -> None:
        starts = self.options.starts
        if starts != (0,) and (len(starts) != 2 or starts[0] != 0 or starts[1] == 0):
            raise UserError(
                f"trainer.starts={list(starts)}: give [0], or [0, the step at which the discriminator joins]"
            )
        self.joins = starts[-1]
        if hasattr(self.model, "discriminator"):
            super().configure()
        else:
            self.optimizers["generator"] = self.optimizer(self.model.generator.parameters())
            self.joins = self.options.steps
            self.since = {}  # no game, no ailments

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        if (
            self.at == self.joins
        ):  # what Adam knows of gradients is of others: steps by it could be thirty times too long
            self.optimizers["generator"].state.clear()
        if self.at >= self.joins:
            return super().step(batches)
        return self.descend("generator", self.model.loss, self.pull(batches))

    def span(self) -> tuple[int, int]:
        return (0, self.joins) if self.at < self.joins else (self.joins, self.options.steps)

    def progress(self) -> float:
        return max(0.0, super().progress() - self.options.hold) / (1 - self.options.hold)
