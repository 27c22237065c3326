"""Batch normalization whose scale and shift depend on a class.

Dumoulin et al. 2017, https://arxiv.org/abs/1610.07629;
de Vries et al. 2017, https://arxiv.org/abs/1707.00683.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConditionalBatchNorm(nn.Module):
    """γ_y (x − mean) / std + β_y, with a scale and a shift per channel for each class.

    Args:
        num_classes: 0 makes it plain batch normalization.
    """

    def __init__(self, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not num_classes)
        self.scale: nn.Parameter | None = None
        self.shift: nn.Parameter | None = None
        if num_classes:
            self.scale = nn.Parameter(torch.ones(num_classes, channels))
            self.shift = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return (B, C, H, W) of x (B, C, H, W).

        Args:
            y: class weights (B, num_classes): one-hot, or a mixture of classes.
        """
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        assert y is not None
        scale, shift = y @ self.scale, y @ self.shift  # (B, C)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])
