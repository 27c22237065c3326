"""Exponential moving average (EMA) of a model's weights (Polyak & Juditsky 1992).

It usually samples better than the last weights.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from genlab.model import GenerativeModel


class EMA:
    """A copy of the model with averaged weights: w̄ ← decay·w̄ + (1 − decay)·w.

    Its buffers are the model's own. In the first steps the decay is (1 + t)/(10 + t), so that the
    initial weights are forgotten.

    Args:
        ema_model: a copy of the model, where it cannot be copied here.
    """

    def __init__(
        self, model: GenerativeModel, decay: float, ema_model: GenerativeModel | None = None
    ) -> None:
        self.decay = decay
        ema_model = copy.deepcopy(model) if ema_model is None else ema_model
        self.model: GenerativeModel = ema_model.eval().requires_grad_(False)
        # traversing a model takes a while
        self.ema_weights, self.weights = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self, model: GenerativeModel, step: int) -> None:
        """Move the average toward the weights after update number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local_shard(p) for p in self.ema_weights]
        torch._foreach_lerp_(averages, [local_shard(p) for p in self.weights], 1 - decay)
        if buffers := list(model.buffers()):
            torch._foreach_copy_(list(self.model.buffers()), buffers)


def local_shard(parameter: Tensor) -> Tensor:
    """Return this process's part of a parameter: all of it, unless FSDP shards it."""
    to_local = getattr(parameter, "to_local", None)  # of a DTensor, whose import takes a while
    return parameter if to_local is None else to_local()
