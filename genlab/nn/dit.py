"""DiT: Peebles & Xie 2023, Scalable Diffusion Models with Transformers, https://arxiv.org/abs/2212.09748."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.embeddings import TimeEmbedding, sinusoidal


class DiTBlock(nn.Module):
    """Attention and an MLP over tokens (B, N, D), shifted, scaled and gated by the condition (B, D): adaLN-zero (figure 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(e))[:, None].chunk(
            6, -1
        )  # (B, 1, D) each
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, N, D/heads) each
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))


class DiT(nn.Module):
    """Maps images (B, C, H, W), times t (B,) or (1,), and perhaps classes y (B,) to maps (B, outputs, H, W).

    Args:
        shape: (C, H, W) of an image, H and W multiples of `patch`.
        patch: side of a patch; each is a token.
        width: dimension of a token, a multiple of 4·heads; layers: blocks.
        outputs: channels of the maps; None: C.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch: int = 2,
        width: int = 384,
        layers: int = 12,
        heads: int = 6,
        outputs: int | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        inputs, height, wide = shape
        self.patch, self.outputs, self.places = (
            patch,
            outputs or inputs,
            (height // patch, wide // patch),
        )
        self.embed = TimeEmbedding(256, width, classes=classes)
        self.first = nn.Conv2d(inputs, width, patch, stride=patch)
        self.register_buffer("position", grid(*self.places, width), persistent=False)  # (1, N, D)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, patch * patch * self.outputs)
        self.initialise()

    def initialise(self) -> None:
        """Draw weights as the authors' code does; each block starts as the identity, the output at zero."""
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
        nn.init.xavier_uniform_(self.first.weight.flatten(1))
        nn.init.zeros_(self.first.bias)
        for m in (self.embed.time[0], self.embed.time[2], self.embed.label):
            if m is not None:
                nn.init.normal_(m.weight, std=0.02)
        for m in (*(block.modulation for block in self.blocks), self.modulation, self.last):
            nn.init.zeros_(m.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        e = self.embed(t, y)  # (B, D) or (1, D)
        h = self.first(x).flatten(2).transpose(1, 2) + self.position  # (B, N, D)
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.modulation(F.silu(e))[:, None].chunk(2, -1)
        h = self.last(self.norm(h) * (1 + scale) + shift)  # (B, N, patch² · outputs)
        h = h.unflatten(2, (self.outputs, self.patch, self.patch)).unflatten(1, self.places)
        return h.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def grid(rows: int, columns: int, dim: int) -> Tensor:
    """Return the sines and cosines (1, rows · columns, dim) of each place's row, then of its column."""
    row = sinusoidal(torch.arange(rows), dim // 2)[:, None].expand(-1, columns, -1)
    column = sinusoidal(torch.arange(columns), dim // 2)[None].expand(rows, -1, -1)
    return torch.cat([row, column], -1).flatten(0, 1)[None]
