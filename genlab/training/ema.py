"""The running mean of a model's weights, which usually samples better than the last weights (Polyak & Juditsky 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of the model whose weights are w̄ ← decay·w̄ + (1 − decay)·w; its buffers are the model's own.

    In the first steps the decay is (1 + t)/(10 + t), so that the first weights are forgotten.

    Args:
        start: a copy of the model, where it cannot be copied here.
    """

    def __init__(self, model: nn.Module, decay: float, start: nn.Module | None = None) -> None:
        self.decay = decay
        self.model = (copy.deepcopy(model) if start is None else start).eval().requires_grad_(False)
        self.means, self.weights = (
            list(self.model.parameters()),
            list(model.parameters()),
        )  # walking a model takes a while

    @torch.no_grad()
    def update(self, model: nn.Module, at: int) -> None:
        """Move the mean toward the weights after update number `at`, counted from 0."""
        decay = min(self.decay, (1 + at) / (10 + at))
        torch._foreach_lerp_(
            [own(p) for p in self.means], [own(p) for p in self.weights], 1 - decay
        )
        if buffers := list(model.buffers()):
            torch._foreach_copy_(list(self.model.buffers()), buffers)


def own(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter: all of it, unless it is cut over several."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
