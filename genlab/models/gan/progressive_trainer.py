"""The update rule of growing GANs: Karras et al. 2018, https://arxiv.org/abs/1710.10196."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from genlab.models.gan.progan import ProGAN
from genlab.models.gan.trainer import GANTrainer
from genlab.spec import Batch, Positive


class ProgressiveTrainer(GANTrainer):
    """Train at 4×4 for `hold_steps`, then double the resolution again and again (section 2).

    Each new resolution fades in over `fade_steps` and is held for `hold_steps`. The stage depends
    on the step only, so a resumed run continues within a fade-in.
    """

    @dataclass(kw_only=True)
    class Options(GANTrainer.Options):
        # steps in which a new resolution fades in
        fade_steps: Positive = 50_000
        # steps at each resolution before the next
        hold_steps: Positive = 50_000
        # forget Adam's moments when a fade-in begins and when it ends, as in the authors' code
        reset_optimizers: bool = False

    options: Options
    model: ProGAN

    @property
    def resolution_starts(self) -> list[int]:
        """The step at which each resolution begins."""
        o = self.options
        period = o.fade_steps + o.hold_steps
        return [0, *(o.hold_steps + k * period for k in range(self.model.num_levels))]

    def growth_level_at(self, step: int) -> float:
        """Return the number of doublings at a step; its fraction is α of the newest resolution.

        The first step of a fade-in has α = 1/fade_steps.
        """
        o = self.options
        if step < o.hold_steps:
            return 0.0
        doublings, since = divmod(step - o.hold_steps, o.fade_steps + o.hold_steps)
        return min(self.model.num_levels, doublings + min(1.0, (since + 1) / o.fade_steps))

    def is_new_phase(self, step: int) -> bool:
        """Whether a fade-in begins at this step, or has just reached α = 1."""
        now, before = self.growth_level_at(step), self.growth_level_at(max(0, step - 1))
        return (math.floor(now), math.ceil(now)) != (math.floor(before), math.ceil(before))

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        level = self.growth_level_at(self.global_step)
        if self.options.reset_optimizers and self.is_new_phase(self.global_step):
            for optimizer in self.optimizers.values():
                optimizer.state.clear()
        self.model.set_growth_level(level)
        return {**super().step(batches), "level": self.model.generator.level.clone()}
