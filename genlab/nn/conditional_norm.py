"""Batch normalisation whose scale and shift depend on a class.

Dumoulin et al. 2017, https://arxiv.org/abs/1610.07629; de Vries et al. 2017, https://arxiv.org/abs/1707.00683.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConditionalBatchNorm(nn.Module):
    """γ_y (x − mean) / deviation + β_y, with a scale and a shift a channel for each class; classes 0: plain normalisation."""

    def __init__(self, channels: int, classes: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not classes)
        self.scale = nn.Parameter(torch.ones(classes, channels)) if classes else None
        self.shift = nn.Parameter(torch.zeros(classes, channels)) if classes else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return (B, C, H, W) of x (B, C, H, W) and the weights y (B, classes) of its classes: one-hot, or a mixture."""
        x = self.norm(x)
        if self.scale is None:
            return x
        scale, shift = y @ self.scale, y @ self.shift  # (B, C)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])
