"""Embeddings of a time, of a class and of a point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal(t: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """Return sines and cosines (B, dim) of t (B,) at dim/2 frequencies from 1 to 1/longest (Vaswani et al. 2017)."""
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, device=t.device) * (-math.log(longest) / max(half - 1, 1))
    )
    angles = t[:, None].float() * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, dim % 2))


def waves(x: Tensor, count: int) -> Tensor:
    """Return points x (B, D) beside the sines and cosines of 1, 2, 4, …, 2^(count − 1) times their coordinates.

    By them a network tells places apart that lie close together: (B, D·(1 + 2·count)) (Tancik et al. 2020, 2006.10739).
    """
    angles = (x[..., None] * 2.0 ** torch.arange(count, device=x.device)).flatten(1)
    return torch.cat([x, angles.sin(), angles.cos()], 1)


class TimeEmbedding(nn.Module):
    """Embeds a time, and a class where there are any, as one vector (B, out).

    Class number `classes` stands for "not told"; it is what y = None means.
    """

    def __init__(self, dim: int, out: int, *, classes: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.classes = classes
        self.time = nn.Sequential(nn.Linear(dim, out), nn.SiLU(), nn.Linear(out, out))
        self.label = nn.Embedding(classes + 1, out) if classes else None

    def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.time(sinusoidal(t, self.dim).to(self.time[0].weight.dtype))
        if self.label is not None:
            h = h + self.label(
                torch.full_like(t, self.classes, dtype=torch.long) if y is None else y
            )
        return h
