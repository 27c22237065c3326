"""The decoder-only transformer of GPT-2: Radford et al. 2019, section 2.3; Vaswani et al. 2017, https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cache:
    """The keys and values of the places seen so far, so that a new place costs the work of one.

    `at` is the number of places seen; a layer's keys and values are (B, heads, at, width / heads).
    """

    def __init__(self, places: int) -> None:
        self.places, self.at = places, 0
        self.held: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # layer -> keys and values (B, heads, places, width / heads)

    def add(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take keys and values (B, heads, T, d) of the next T places; return those of all places so far."""
        if layer not in self.held:
            room = (*k.shape[:2], self.places, k.shape[3])
            self.held[layer] = k.new_empty(room), v.new_empty(room)
        end = self.at + k.shape[2]
        for new, held in zip((k, v), self.held[layer], strict=True):
            held[:, :, self.at : end] = new
        keys, values = self.held[layer]
        return keys[:, :, :end], values[:, :, :end]


def rotations(places: int, width: int, *, base: float = 10_000.0) -> Tensor:
    """Return cos and sin (2, places, width / 2) of t θ_i with θ_i = base^(−2 i / width), for `rotated`."""
    angles = torch.outer(torch.arange(places), base ** (-torch.arange(0, width, 2) / width))
    return torch.stack([angles.cos(), angles.sin()])


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Return x (…, T, d) with the pair (x_i, x_{i + d/2}) of place t turned by the angle t θ_i.

    Su et al. 2021 (RoFormer, https://arxiv.org/abs/2104.09864), equation 34: a product of two such vectors depends on how
    far their places are apart.
    """
    (cos, sin), (a, b) = rotation, x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class CausalAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V over the places up to each one's own (Vaswani et al. 2017, equation 1 and section 3.2.2)."""

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Return (B, T, width); with a cache, x are the next T places, of which there is one unless the cache is empty.

        Args:
            rotation: of the T places (2, T, width / heads / 2); None: queries and keys stay as they are.
        """
        B, T, C = x.shape
        q, k, v = (
            self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        )  # (B, heads, T, d) each
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        if cache is not None:
            k, v = cache.add(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): normalised before each, as in GPT-2."""

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = CausalAttention(width, heads=heads, dropout=dropout, bias=bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.widen, self.narrow = (
            nn.Linear(width, 4 * width, bias=bias),
            nn.Linear(4 * width, width, bias=bias),
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotation: Tensor | None = None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), rotation, cache, layer))
        return x + self.drop(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class Transformer(nn.Module):
    """A stack of blocks over sequences of vectors (B, T, width), T ≤ `places`.

    Weights start from N(0, 0.02²), those that end a residual branch from N(0, 0.02² / (2 layers)), biases from 0 (GPT-2).

    Args:
        rotary: what a place is enters by rotations of queries and keys, instead of a learned vector for each place.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        places: int,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.places = None if rotary else nn.Parameter(0.02 * torch.randn(places, width))
        self.register_buffer(
            "rotation", rotations(places, width // heads) if rotary else None, persistent=False
        )
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, dropout=dropout, bias=bias) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, p in self.blocks.named_parameters():
            if name.endswith("weight") and p.ndim == 2:
                ends = name.endswith(("out.weight", "narrow.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if ends else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Return (B, T, width) of x (B, T, width), which with a cache are the places after those that it holds."""
        at = 0 if cache is None else cache.at
        here = slice(at, at + x.shape[1])
        x = self.drop(x if self.places is None else x + self.places[here])
        rotation = None if self.rotation is None else self.rotation[:, here]
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, cache, layer)
        if cache is not None:
            cache.at = here.stop
        return self.norm(x)
