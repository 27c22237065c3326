"""The update rule of variational autoencoders: descent on a bound whose KL term may be warmed up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from genlab.spec import Batch, Count
from genlab.training.trainer import Trainer


class VAETrainer(Trainer):
    """Descent on `model.loss(batch, warmth)`, warmth rising from 0 to 1 over the first `kl_warmup` steps.

    A model with an attribute `items` is told how many training items there are.
    """

    divisible = True

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        kl_warmup: Count = (
            0  # steps over which the KL term's weight rises from 0; 0: none (Sønderby et al. 2016)
        )

    def stream(self, data: Any, **how: Any) -> Iterator[Batch]:
        if hasattr(self.model, "items"):
            self.model.items = data.size("train")
        return super().stream(data, **how)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        o = self.options
        loss = (
            partial(self.model.loss, warmth=min(1.0, (self.at + 1) / o.kl_warmup))
            if o.kl_warmup
            else self.model.loss
        )
        return self.descend("model", loss, self.pull(batches))
