"""Minibatch standard deviation: a discriminator's view of how much its batch varies.

Karras et al. 2018, https://arxiv.org/abs/1710.10196, section 3, after Salimans et al. 2016, https://arxiv.org/abs/1606.03498.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MinibatchDeviation(nn.Module):
    """Append one channel (feature): the standard deviation over a group of items, averaged over channels and places.

    Args:
        group: items a group, at most; a batch that it does not divide takes the largest number that does.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C + 1, H, W) of x (B, C, H, W), or (B, F + 1) of x (B, F)."""
        size = max(g for g in range(1, min(self.group, len(x)) + 1) if len(x) % g == 0)
        groups = x.unflatten(0, (size, -1))  # (G, M, C, …): item i is in group i mod M
        variance = groups.var(0, unbiased=False).flatten(1)  # (M, C·H·W)
        s = (
            (variance + 1e-8).sqrt().mean(1).repeat(size)
        )  # (B,); the root of exactly 0 has no gradient
        return torch.cat([x, s.view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])], 1)

    def extra_repr(self) -> str:
        return f"group={self.group}"
