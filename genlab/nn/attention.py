"""Attention of the positions of a feature map: to each other, and to a context."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def make_group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of 32 groups, or of fewer groups with at least 4 channels each."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 4))), channels, eps=1e-6)


class SelfAttention2d(nn.Module):
    """x + attention over the H·W positions of x (B, C, H, W) (Vaswani et al. 2017).

    With one head it is DDPM's. The last projection starts at zero, so that the block starts as the
    identity.
    """

    def __init__(self, channels: int, *, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = make_group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # (B, H, W, 3C)
        qkv = qkv.reshape(B, H * W, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, H·W, C/heads)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2)
        return x + self.out(h)


class CrossAttention2d(nn.Module):
    """x + attention of the H·W positions of x (B, C, H, W) to a context (B, L, D).

    Rombach et al. 2022, section 3.3. The last projection starts at zero, so that the block starts
    as the identity.

    Args:
        context_dim: D.
    """

    def __init__(self, channels: int, context_dim: int, *, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = make_group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.kv = nn.Linear(context_dim, 2 * channels)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return (B, C, H, W).

        Args:
            mask: which vectors of the context are not padding, bool (B, L).
        """
        B, C, H, W = x.shape
        q = self.q(self.norm(x)).reshape(B, self.num_heads, C // self.num_heads, H * W)
        q = q.transpose(2, 3)  # (B, heads, H·W, C/heads)
        kv = self.kv(context).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # (B, heads, L, C/heads) each
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return x + self.out(h.transpose(2, 3).reshape(B, C, H, W))


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the weight and the bias of a layer to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
