"""Embeddings of times, classes and points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return sines and cosines (B, dim) of t (B,) (Vaswani et al. 2017).

    There are dim/2 frequencies from 1 to 1/max_period.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, device=t.device) * (-math.log(max_period) / max(half - 1, 1))
    )
    angles = t[:, None].float() * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, dim % 2))


def fourier_features(x: Tensor, num_frequencies: int) -> Tensor:
    """Append sines and cosines of the coordinates to points x (B, D): (B, D·(1 + 2·num)).

    The frequencies are 1, 2, 4, …, 2^(num_frequencies − 1). They let a network distinguish points
    that are close together (Tancik et al. 2020, 2006.10739).
    """
    angles = (x[..., None] * 2.0 ** torch.arange(num_frequencies, device=x.device)).flatten(1)
    return torch.cat([x, angles.sin(), angles.cos()], 1)


class TimeEmbedding(nn.Module):
    """Embed a time, and a class if there are classes, as one vector (B, out).

    The class number `num_classes` is the null condition; y = None stands for it.
    """

    def __init__(self, dim: int, out: int, *, num_classes: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.num_classes = num_classes
        self.time = nn.Sequential(nn.Linear(dim, out), nn.SiLU(), nn.Linear(out, out))
        self.label = nn.Embedding(num_classes + 1, out) if num_classes else None

    def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        dtype = next(self.time.parameters()).dtype
        h = self.time(sinusoidal_embedding(t, self.dim).to(dtype))
        if self.label is None:
            return h
        if y is None:
            y = torch.full_like(t, self.num_classes, dtype=torch.long)
        return h + self.label(y)
