"""The denoising network of data without a grid (points)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.embed import TimeEmbedding


class PointDenoiser(nn.Module):
    """An MLP told the time in every layer: points (B, D), times t (B,) or (1,), classes y (B,) -> (B, D)."""

    def __init__(self, dim: int, *, hidden: Sequence[int] = (128, 128, 128), classes: int = 0) -> None:
        super().__init__()
        embed = max(hidden)
        self.embed = TimeEmbedding(embed, embed, classes=classes)
        sizes = [dim, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.times = nn.ModuleList(nn.Linear(embed, b) for b in hidden)
        self.last = nn.Linear(sizes[-1], dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        e = F.silu(self.embed(t, y))
        for layer, time in zip(self.layers, self.times, strict=True):
            x = F.silu(layer(x) + time(e))
        return self.last(x)
