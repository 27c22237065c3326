"""Forecasts that are given by their quantiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Returns the quantiles (Q, B, H, C) in own units at levels (Q,).
QuantileFn = Callable[[Tensor], Tensor]


def gaussian_quantiles(mean: Tensor, deviation: Tensor) -> QuantileFn:
    """Return the quantiles of Gaussians with mean and deviation (B, H, C)."""

    def quantiles(levels: Tensor) -> Tensor:
        z = torch.special.ndtri(levels.double())
        return mean + deviation * z.view(-1, 1, 1, 1)

    return quantiles
