"""The decoder-only transformer of GPT-2: Radford et al. 2019, section 2.3.

After Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KVCache:
    """Keys and values of earlier positions, which need not be computed again.

    Attributes:
        length: number of positions in the cache.
        kv: layer -> buffers for keys and values (B, heads, max_length, width / heads).
    """

    def __init__(self, max_length: int) -> None:
        self.max_length, self.length = max_length, 0
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values (B, heads, T, d) of T new positions; return all so far.

        The transformer increases `length` once all layers have stored theirs.
        """
        if layer not in self.kv:
            shape = (*k.shape[:2], self.max_length, k.shape[3])
            self.kv[layer] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        for new, buffer in zip((k, v), self.kv[layer], strict=True):
            buffer[:, :, self.length : end] = new
        keys, values = self.kv[layer]
        return keys[:, :, :end], values[:, :, :end]


def rotary_cos_sin(max_length: int, width: int, *, base: float = 10_000.0) -> Tensor:
    """Return cos and sin (2, max_length, width / 2) of t θ_i, θ_i = base^(−2 i / width)."""
    angles = torch.outer(torch.arange(max_length), base ** (-torch.arange(0, width, 2) / width))
    return torch.stack([angles.cos(), angles.sin()])


def apply_rotary(x: Tensor, rotation: Tensor) -> Tensor:
    """Return x (…, T, d) with the pair (x_i, x_{i + d/2}) of position t rotated by t θ_i.

    Su et al. 2021 (RoFormer, https://arxiv.org/abs/2104.09864), equation 34: the product of two
    such vectors depends on the distance of their positions.

    Args:
        rotation: from `rotary_cos_sin` (2, T, d / 2).
    """
    (cos, sin), (a, b) = rotation, x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class CausalAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V over the positions up to the current one.

    Vaswani et al. 2017, equation 1 and section 3.2.2.
    """

    def __init__(
        self, width: int, *, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Return (B, T, width).

        Args:
            x: (B, T, width); with a cache, the next T positions. T must be 1 unless it is empty.
            rotation: of the T positions (2, T, width / heads / 2); None leaves queries and keys as
                they are.
            layer: number of this layer in the cache.
        """
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, d) each
        if rotation is not None:
            q, k = apply_rotary(q, rotation), apply_rotary(k, rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-normalization, as in GPT-2."""

    def __init__(
        self, width: int, *, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = CausalAttention(width, num_heads=num_heads, dropout=dropout, bias=bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.widen = nn.Linear(width, 4 * width, bias=bias)
        self.narrow = nn.Linear(4 * width, width, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), rotation, cache, layer))
        return x + self.drop(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class Transformer(nn.Module):
    """A stack of blocks over sequences of vectors (B, T, width), T ≤ `max_length`.

    As in GPT-2, weights start from N(0, 0.02²), those that end a residual branch from
    N(0, 0.02² / (2 num_layers)), and biases from 0.

    Args:
        rotary: encode positions by rotations of queries and keys, instead of a learned vector for
            each position.
    """

    rotation: Tensor | None  # (2, max_length, width / heads / 2)

    def __init__(
        self,
        width: int,
        *,
        num_layers: int,
        num_heads: int,
        max_length: int,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.places = None if rotary else nn.Parameter(0.02 * torch.randn(max_length, width))
        self.register_buffer(
            "rotation",
            rotary_cos_sin(max_length, width // num_heads) if rotary else None,
            persistent=False,
        )
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, num_heads=num_heads, dropout=dropout, bias=bias)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, p in self.blocks.named_parameters():
            if name.endswith("weight") and p.ndim == 2:
                ends_branch = name.endswith(("out.weight", "narrow.weight"))
                std = 0.02 / math.sqrt(2 * num_layers) if ends_branch else 0.02
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return (B, T, width).

        Args:
            x: (B, T, width); with a cache, the positions after those in the cache.
        """
        start = 0 if cache is None else cache.length
        positions = slice(start, start + x.shape[1])
        x = self.drop(x if self.places is None else x + self.places[positions])
        rotation = None if self.rotation is None else self.rotation[:, positions]
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, cache, layer)
        if cache is not None:
            cache.length = positions.stop
        return self.norm(x)
