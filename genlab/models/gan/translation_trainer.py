"""The update rule of translation models: reconstruction first, then adversarial training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genlab.errors import UserError
from genlab.models.gan.regularizers import DiscriminatorRegularization
from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, Count, Decay


class TranslationTrainer(GANTrainer):
    """Train G on `model.loss` until the adversarial stage begins, then G and D as a GAN.

    A model without a discriminator has only the first stage. Each stage has its own learning rate
    schedule.

    Raises:
        UserError: `stage_starts` is neither [0] nor [0, a later step].
    """

    @dataclass(kw_only=True)
    class Options(GANTrainer.Options):
        # [0]: adversarial from the start; [0, n]: reconstruction only for n steps
        stage_starts: tuple[Count, ...] = (0,)
        # fraction of each stage before its learning rate begins to fall
        constant_fraction: Decay = 0.0

    options: Options

    def configure(self) -> None:
        starts = self.options.stage_starts
        if starts != (0,) and (len(starts) != 2 or starts[0] != 0 or starts[1] == 0):
            raise UserError(
                f"trainer.stage_starts={list(starts)}: give [0], or [0, n] for a discriminator "
                "that joins at step n"
            )
        model = self.model
        if not isinstance(model, DiscriminatorRegularization) or model.is_adversarial:
            self.adversarial_start = starts[-1]
            super().configure()
        else:
            self.adversarial_start = self.options.steps
            self.optimizers["generator"] = self.make_optimizer(model.generator.parameters())
            self.failure_counts = {}

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        if self.global_step == self.adversarial_start:
            # Adam's mean squares are those of other gradients: the first steps could be thirty
            # times too long
            self.optimizers["generator"].state.clear()
        if self.global_step >= self.adversarial_start:
            return super().step(batches)
        return self.optimizer_step("generator", self.model.loss, self.next_batch(batches))

    def statistics_pass(self, model: Any, batch: Batch) -> None:
        if self.adversarial_start < self.options.steps:  # there is a discriminator
            super().statistics_pass(model, batch)
        else:
            model.loss(batch)

    def schedule_range(self) -> tuple[int, int]:
        start = self.adversarial_start
        return (0, start) if self.global_step < start else (start, self.options.steps)

    def schedule_progress(self) -> float:
        constant = self.options.constant_fraction
        return max(0.0, super().schedule_progress() - constant) / (1 - constant)
