"""The update rule of a game that grows: Karras et al. 2018, https://arxiv.org/abs/1710.10196, section 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, Positive


class ProgressiveTrainer(GANTrainer):
    """The game at 4×4 for `hold` steps, then again and again a doubling that fades in over `fade` steps, and `hold` more.

    The step count alone says how far: a resumed run goes on within a fade-in.
    """

    @dataclass(kw_only=True)
    class Options(GANTrainer.Options):
        fade: Positive = 50_000  # steps in which a new resolution fades in
        hold: Positive = 50_000  # steps at each resolution before the next

    @property
    def starts(self) -> list[int]:
        """The step at which each resolution begins."""
        o = self.options
        return [0, *(o.hold + k * (o.fade + o.hold) for k in range(self.model.levels))]

    def level(self, at: int) -> float:
        """Return the doublings that are done in step `at`, the fraction α of the newest; its first step has α = 1/fade."""
        o = self.options
        if at < o.hold:
            return 0.0
        whole, since = divmod(at - o.hold, o.fade + o.hold)
        return min(self.model.levels, whole + min(1.0, (since + 1) / o.fade))

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        self.model.grow(self.level(self.at))
        return {**super().step(batches), "level": self.model.generator.level.clone()}
