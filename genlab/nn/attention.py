"""Self-attention between the places of a feature map."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of 32 groups, or of fewer with at least 4 channels in each."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 4))), channels, eps=1e-6)


class SelfAttention2d(nn.Module):
    """x + attention over the H·W places of x (B, C, H, W) (Vaswani et al. 2017; at one head as in DDPM).

    The last projection starts at zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int, *, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = (
            self.qkv(self.norm(x))
            .permute(0, 2, 3, 1)
            .reshape(B, H * W, 3, self.heads, C // self.heads)
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, HW, C/heads)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2)
        return x + self.out(h)


class CrossAttention2d(nn.Module):
    """x + attention of the H·W places of x (B, C, H, W) to the vectors (B, L, D) of a context (Rombach et al. 2022, section 3.3).

    The last projection starts at zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int, context: int, *, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.q, self.kv = nn.Conv2d(channels, channels, 1), nn.Linear(context, 2 * channels)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor, there: Tensor) -> Tensor:
        """Return (B, C, H, W).

        Args:
            there: which vectors of the context say something, bool (B, L).
        """
        B, C, H, W = x.shape
        q = (
            self.q(self.norm(x)).reshape(B, self.heads, C // self.heads, H * W).transpose(2, 3)
        )  # (B, heads, HW, C/heads)
        k, v = (
            self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, L, C/heads) each
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
        return x + self.out(h.transpose(2, 3).reshape(B, C, H, W))
