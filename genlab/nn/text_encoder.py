"""A transformer encoder of short texts, byte by byte."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class TextEncoder(nn.Module):
    """Bytes (B, L) int64, padded with 0, to vectors (B, L + 1, width) and a mask (B, L + 1).

    The mask is True where a vector is not padding. The first vector is always valid, so that an
    empty text has an embedding too.

    Args:
        max_length: largest L.
    """

    # Kim et al. 2016, https://arxiv.org/abs/1508.06615: a convolution over the letters recognizes a
    # word at any position. Attention with an embedding of each position has to learn it separately
    # at each position.
    KERNEL_SIZE = 7  # bytes: a word of five letters and its boundaries

    def __init__(
        self,
        max_length: int,
        *,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(0.02 * torch.randn(max_length + 1, width))
        self.words = nn.Conv1d(width, width, self.KERNEL_SIZE, padding=self.KERNEL_SIZE // 2)
        nn.init.normal_(self.bytes.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.width = width

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        B, L = text.shape
        first = text.new_zeros(B, 1)
        mask = torch.cat([first == 0, text != 0], 1)
        # padding is zero, as it is beyond the end in the convolution
        x = self.bytes(torch.cat([first, text], 1)) * mask[..., None]
        x = x + gelu(self.words(x.transpose(1, 2)).transpose(1, 2)) + self.places[: L + 1]
        return self.layers(x, src_key_padding_mask=~mask), mask
