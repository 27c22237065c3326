"""The distribution that a flow starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """N(0, I) over vectors (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("place", torch.zeros(()), persistent=False)  # tells samples their device and dtype

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; 0, I) (B,) in nats."""
        return -0.5 * (z.square().sum(1) + self.dim * math.log(2 * math.pi))

    def sample(self, n: int) -> Tensor:
        """Draw n vectors (n, dim)."""
        return torch.randn(n, self.dim, dtype=self.place.dtype, device=self.place.device)
