"""DiT: Peebles & Xie 2023, Scalable Diffusion Models with Transformers.

https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.embeddings import TimeEmbedding, sinusoidal_embedding


class DiTBlock(nn.Module):
    """Attention and an MLP over tokens (B, N, D), conditioned by adaLN-zero (figure 3).

    The condition (B, D) shifts, scales and gates both.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        modulation = self.modulation(F.silu(e))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)  # (B, 1, D) each
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, D/heads) each
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))


class DiT(nn.Module):
    """A network from images, times and optional classes to maps (B, outputs, H, W).

    Images are (B, C, H, W), times t (B,) or (1,), classes y (B,).

    Args:
        shape: (C, H, W) of an image, H and W multiples of `patch_size`.
        patch_size: side of a patch in pixels; each patch is a token.
        width: dimension of a token, a multiple of 4·num_heads.
        num_layers: number of blocks.
        outputs: channels of the result; None for C.
    """

    position: Tensor  # (1, N, D)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch_size: int = 2,
        width: int = 384,
        num_layers: int = 12,
        num_heads: int = 6,
        outputs: int | None = None,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        in_channels, image_height, image_width = shape
        self.patch_size, self.outputs = patch_size, outputs or in_channels
        self.grid_size = (image_height // patch_size, image_width // patch_size)
        self.embed = TimeEmbedding(256, width, num_classes=num_classes)
        self.first = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.register_buffer(
            "position", position_embedding_2d(*self.grid_size, width), persistent=False
        )
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, patch_size * patch_size * self.outputs)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw the weights as in the authors' code: blocks start as identities, the output at 0."""
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
        nn.init.xavier_uniform_(self.first.weight.flatten(1))
        assert self.first.bias is not None
        nn.init.zeros_(self.first.bias)
        for m in self.embed.modules():
            if isinstance(m, nn.Linear | nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)
        for m in self.modules():
            if isinstance(m, DiTBlock | DiT):
                nn.init.zeros_(m.modulation.weight)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        e = self.embed(t, y)  # (B, D) or (1, D)
        h = self.first(x).flatten(2).transpose(1, 2) + self.position  # (B, N, D)
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.modulation(F.silu(e))[:, None].chunk(2, -1)
        h = self.last(self.norm(h) * (1 + scale) + shift)  # (B, N, patch_size² · outputs)
        h = h.unflatten(2, (self.outputs, self.patch_size, self.patch_size))
        h = h.unflatten(1, self.grid_size)
        return h.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def position_embedding_2d(rows: int, columns: int, dim: int) -> Tensor:
    """Return sines and cosines (1, rows · columns, dim) of each position's row and column."""
    row = sinusoidal_embedding(torch.arange(rows), dim // 2)[:, None].expand(-1, columns, -1)
    column = sinusoidal_embedding(torch.arange(columns), dim // 2)[None].expand(rows, -1, -1)
    return torch.cat([row, column], -1).flatten(0, 1)[None]
