"""The update rule of the classical models: a fit in closed form, a pass over the data a step; there is no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genlab.models.classical.full_batch import Items
from genlab.seeding import mix
from genlab.spec import Batch
from genlab.training.trainer import Data, Losses, Trainer

WHOLE = 2**31  # bytes that a set may take in double precision to be fitted whole


class ClassicalTrainer(Trainer):
    """Calls `model.improve` once a step with all training items; every process does the same work.

    The items are the same in every pass, their noise included (one draw of dequantisation or binarisation), so that EM's
    likelihood can only rise.
    """

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        whole: bool | None = (
            None  # fit the set as one; false: batch by batch; null: whole where it fits in memory
        )

    def configure(self) -> None:
        """Nothing descends."""

    def stream(self, data: Data, **how: Any) -> Iterator[Batch]:
        """Return the batches as ever, though no step pulls one: from now on the steps fit `data`."""
        whole = self.options.whole
        if whole is None:
            whole = data.size("train") * self.model.spec.dim * 8 <= WHOLE
        size = self.options.batch_size
        one_pass = lambda: map(  # noqa: E731
            self.device.ready,
            data.batches("train", size, seed=self.seed, device=self.device.torch, shuffle=False),
        )
        self.items = Items(one_pass, whole=whole)
        self.items_a_step = data.size("train")
        return super().stream(data, **how)

    def step(self, batches: Iterator[Batch]) -> Losses:
        seed = mix(self.seed, self.at)
        self.device.seed(seed)
        return self.model.improve(self.items, step=self.at, seed=seed)
