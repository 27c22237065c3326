"""PixelCNN++: Salimans, Karpathy, Chen & Kingma 2017, https://arxiv.org/abs/1701.05517."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.models.autoregressive.base import AutoregressiveImageModel
from genlab.models.autoregressive.likelihoods import make_likelihood
from genlab.spec import DataSpec, Fraction, Positive

# Features (B, F, H, W) of the rows above each pixel, and of all pixels before it.
Streams = tuple[Tensor, Tensor]


class PixelCNNpp(AutoregressiveImageModel):
    """A PixelCNN with down- and upsampling and shortcuts, which draws whole pixels (figure 2).

    The authors' code uses weight normalization with data-dependent initialization; plain
    convolutions replace it.

    Args:
        channels: features of each stream.
        num_blocks: residual blocks at each resolution on the way down; the way up has as many, and
            one more for each downsampling.
        num_scales: number of resolutions, including that of the image.
        num_components: logistics in the mixture.
        dropout: share of the features within each block that are dropped in training.
        conditional: learn p(x | y) with a class bias in each block.

    Raises:
        UserError: the data is continuous, or lacks labels for a conditional model.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: Positive = 160,
        num_blocks: Positive = 5,
        num_scales: Positive = 3,
        num_components: Positive = 10,
        dropout: Fraction = 0.5,
        conditional: bool = False,
    ) -> None:
        likelihood = make_likelihood("mixture", spec, num_components=num_components)
        super().__init__(spec, likelihood, conditional=conditional)
        num_classes = spec.num_classes if conditional else 0

        def make_blocks(n: int, *, has_shortcut: bool) -> nn.ModuleList:
            return nn.ModuleList(
                StreamBlock(
                    channels, has_shortcut=has_shortcut, dropout=dropout, num_classes=num_classes
                )
                for _ in range(n)
            )

        c = spec.shape[0] + 1  # a plane of ones distinguishes the image from the padding around it
        self.above = nn.Conv2d(c, channels, (2, 3))
        self.above_row, self.left = nn.Conv2d(c, channels, (1, 3)), nn.Conv2d(c, channels, (2, 1))
        self.down = nn.ModuleList(
            make_blocks(num_blocks, has_shortcut=False) for _ in range(num_scales)
        )
        self.up = nn.ModuleList(
            make_blocks(num_blocks if i == 0 else num_blocks + 1, has_shortcut=True)
            for i in range(num_scales)
        )
        self.halves = nn.ModuleList(Downsample(channels) for _ in range(num_scales - 1))
        self.doubles = nn.ModuleList(Upsample(channels) for _ in range(num_scales - 1))
        self.head = nn.Conv2d(channels, self.likelihood.num_params, 1)

    def input_streams(self, x: Tensor) -> Streams:
        """Return the first features of x (B, C, H, W).

        The second stream also includes the pixel to the left.
        """
        x = F.pad(self.scale_inputs(x), (0, 0, 0, 0, 0, 1), value=1.0)  # (B, C + 1, H, W)
        u = self.above(F.pad(x, (1, 1, 2, -1)))  # rows i − 2 and i − 1
        row = self.above_row(F.pad(x, (1, 1, 1, -1)))  # row i − 1
        return u, row + self.left(F.pad(x, (1, -1, 1, 0)))  # rows i − 1 and i of column j − 1

    def likelihood_params(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the mixture's parameters (B, P, H, W) of x (B, C, H, W)."""
        streams = self.input_streams(x)
        shortcuts = [streams]
        for i, blocks in enumerate(self.down):
            if i:
                streams = self.halves[i - 1](streams)
                shortcuts.append(streams)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                streams = block(streams, y)
                shortcuts.append(streams)
        streams = shortcuts.pop()
        for i, blocks in enumerate(self.up):
            if i:
                streams = self.doubles[i - 1](streams, shortcuts[-1][0].shape[2:])
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                streams = block(streams, y, shortcuts.pop())
        params: Tensor = self.head(F.elu(streams[1]))
        return params


class StreamBlock(nn.Module):
    """One residual block of each stream; the second stream receives the first.

    With `has_shortcut` both also receive a shortcut of the same size.
    """

    def __init__(
        self, channels: int, *, has_shortcut: bool, dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        shortcut = channels if has_shortcut else 0
        self.above = GatedBlock(
            channels, side=shortcut, row=False, dropout=dropout, num_classes=num_classes
        )
        self.before = GatedBlock(
            channels, side=channels + shortcut, row=True, dropout=dropout, num_classes=num_classes
        )

    def forward(
        self, streams: Streams, y: Tensor | None, shortcut: Streams | None = None
    ) -> Streams:
        u, v = streams
        u = self.above(u, y, None if shortcut is None else shortcut[0])
        side = u if shortcut is None else torch.cat([u, shortcut[1]], 1)
        return u, self.before(v, y, side)


class GatedBlock(nn.Module):
    """x + a ⊙ σ(b) with a, b from two causal convolutions.

    Args:
        side: number of features (B, side, H, W) that are added between the convolutions.
        row: include only the left neighbor in the row above, see `causal_conv`.
    """

    def __init__(
        self, channels: int, *, side: int, row: bool, dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        self.first = causal_conv(2 * channels, channels, row=row)
        self.side = nn.Conv2d(2 * side, channels, 1) if side else None
        self.dropout = nn.Dropout(dropout)
        self.second = causal_conv(2 * channels, 2 * channels, row=row)
        self.classes = nn.Embedding(num_classes, 2 * channels) if num_classes else None
        with torch.no_grad():
            conv = self.second[1]
            assert isinstance(conv, nn.Conv2d)
            conv.weight.mul_(0.1)  # a block starts close to the identity

    def forward(self, x: Tensor, y: Tensor | None, side: Tensor | None) -> Tensor:
        h = self.first(concat_elu(x))
        if self.side is not None:
            assert side is not None
            h = h + self.side(concat_elu(side))
        h = self.second(self.dropout(concat_elu(h)))
        if self.classes is not None:
            h = h + self.classes(y)[:, :, None, None]
        a, b = h.chunk(2, 1)
        return x + a * b.sigmoid()


class Downsample(nn.Module):
    """Both streams at half the resolution: (i, j) depends on the same pixels as (2i, 2j) did."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.above = causal_conv(channels, channels, row=False, stride=2)
        self.before = causal_conv(channels, channels, row=True, stride=2)

    def forward(self, streams: Streams) -> Streams:
        return self.above(streams[0]), self.before(streams[1])


class Upsample(nn.Module):
    """Both streams at twice the resolution.

    (i, j) depends on the same pixels as (⌊i/2⌋, ⌊j/2⌋) did.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.above = nn.ConvTranspose2d(channels, channels, (2, 3), stride=2)
        self.before = nn.ConvTranspose2d(channels, channels, (2, 2), stride=2)

    def forward(self, streams: Streams, size: tuple[int, int]) -> Streams:
        h, w = size  # an odd side was rounded up by the downsampling
        u, v = streams
        return self.above(u)[:, :, :h, 1 : w + 1], self.before(v)[:, :, :h, :w]


def causal_conv(inputs: int, outputs: int, *, row: bool, stride: int = 1) -> nn.Sequential:
    """Return a convolution of a pixel, its row neighbors and the pixels above them.

    The neighbors are those to the left and right, or with `row` only the one to the left.
    """
    pad = nn.ZeroPad2d((1, 0, 1, 0) if row else (1, 1, 1, 0))
    return nn.Sequential(pad, nn.Conv2d(inputs, outputs, (2, 2 if row else 3), stride=stride))


def concat_elu(x: Tensor) -> Tensor:
    """Return elu(x) and elu(−x) (B, 2F, H, W), concatenated."""
    return F.elu(torch.cat([x, -x], 1))
