"""A transformer that reads a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class TextEncoder(nn.Module):
    """Bytes (B, L) int64, 0 where there are none, -> vectors (B, L + 1, width) and which of them say something, bool (B, L + 1).

    A first place with a vector of its own is always there, so that a text of no bytes says something too.
    """

    # Kim et al. 2016, https://arxiv.org/abs/1508.06615: a convolution over the letters knows a word wherever it stands. Attention
    # alone, with a vector for each place, has to learn it anew at each one.
    REACH = 7  # bytes: a word of five letters with its bounds

    def __init__(
        self,
        places: int,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(0.02 * torch.randn(places + 1, width))
        self.words = nn.Conv1d(width, width, self.REACH, padding=self.REACH // 2)
        nn.init.normal_(self.bytes.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.width = width

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        B, L = text.shape
        first = text.new_zeros(B, 1)
        there = torch.cat([first == 0, text != 0], 1)
        x = (
            self.bytes(torch.cat([first, text], 1)) * there[..., None]
        )  # where no byte is, it is as beyond the end
        x = x + gelu(self.words(x.transpose(1, 2)).transpose(1, 2)) + self.places[: L + 1]
        return self.layers(x, src_key_padding_mask=~there), there
