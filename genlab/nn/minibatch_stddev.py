"""Minibatch standard deviation: lets a discriminator see how much its batch varies.

Karras et al. 2018, https://arxiv.org/abs/1710.10196, section 3, after Salimans et al. 2016,
https://arxiv.org/abs/1606.03498.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.nn.broadcast import expand_like


class MinibatchStddev(nn.Module):
    """Append one channel: the standard deviation within a group of samples.

    It is averaged over the features.

    Args:
        group_size: maximum number of samples in a group. If it does not divide the batch size, the
            largest smaller number that does is used.
    """

    depends_on_batch = "a minibatch standard deviation"

    def __init__(self, group_size: int = 4) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C + 1, H, W) of x (B, C, H, W), or (B, F + 1) of x (B, F)."""
        sizes = range(1, min(self.group_size, len(x)) + 1)
        size = max(g for g in sizes if len(x) % g == 0)
        groups = x.unflatten(0, (size, -1))  # (G, M, C, …): sample i is in group i mod M
        variance = groups.var(0, unbiased=False).flatten(1)  # (M, C·H·W)
        # (B,); the gradient of √0 is infinite, hence the constant
        stddev = (variance + 1e-8).sqrt().mean(1).repeat(size)
        return torch.cat([x, expand_like(stddev, x).expand(-1, 1, *x.shape[2:])], 1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}"
