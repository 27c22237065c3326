"""Convolutional networks between an image of any size and a vector."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.mlp import ACTIVATIONS, MLP, Activation


def halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """Return the sizes (H, W) that an image passes through when halved, rounded down, `times` times."""
    sizes = [tuple(size)]
    for _ in range(times):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def halves(shape: tuple[int, ...], times: int) -> bool:
    """Whether items of a shape are images (C, H, W) that can be halved so often."""
    return len(shape) == 3 and min(shape[1:]) >= 2**times


class ConvEncoder(nn.Sequential):
    """An image (B, C, H, W) -> a vector (B, outputs): stride-2 convolutions of `channels`, then layers of `dense` units.

    H and W may be any number of at least 2**len(channels). With `pool` a step is LeNet's instead: a 5×5 convolution, then
    the largest of each 2×2. `dropout` is the share of the dense units, and of what they see, that a pass leaves out.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...],
        outputs: int,
        *,
        dense: tuple[int, ...] = (),
        activation: Activation = "relu",
        dropout: float = 0.0,
        pool: bool = False,
    ) -> None:
        c, *size = shape
        layers: list[nn.Module] = []
        for width in channels:
            conv = (
                nn.Conv2d(c, width, 5, padding=2)
                if pool
                else nn.Conv2d(c, width, 4, stride=2, padding=1)
            )
            layers += [
                conv,
                ACTIVATIONS[activation](),
                *([nn.MaxPool2d(2)] if pool else []),
            ]  # (B, width, H//2, W//2)
            c = width
        h, w = halved(size, len(channels))[-1]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(
            *layers,
            nn.Flatten(),
            *MLP(c * h * w, dense, outputs, activation=activation, dropout=dropout),
        )


class ConvDecoder(nn.Sequential):
    """A vector (B, inputs) -> an image (B, C, H, W): ConvEncoder's mirror, with `channels` in the order of the way."""

    def __init__(
        self,
        inputs: int,
        channels: tuple[int, ...],
        shape: tuple[int, ...],
        *,
        dense: tuple[int, ...] = (),
        activation: Activation = "relu",
    ) -> None:
        c, *size = shape
        sizes = halved(size, len(channels))[::-1]
        start = (channels[0], *sizes[0])
        layers: list[nn.Module] = [
            *MLP(inputs, dense, math.prod(start), activation=activation),
            nn.Unflatten(1, start),
        ]
        for width, out, to in zip(channels, (*channels[1:], c), sizes[1:], strict=True):
            odd = (to[0] % 2, to[1] % 2)  # the row and column that halving dropped
            layers += [
                ACTIVATIONS[activation](),
                nn.ConvTranspose2d(width, out, 4, stride=2, padding=1, output_padding=odd),
            ]
        super().__init__(*layers)


def doubled(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) with each pixel as 2×2 of them (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


# As the authors' code of Karras et al. 2018, https://arxiv.org/abs/1710.10196, has it: a pixel's four copies meet the same
# weights, which are added once. 16 multiplications a pixel of x and pair of maps instead of 36, and no doubled maps in memory.
def conv_of_doubled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the convolution of `doubled(x)` (B, out, 2H, 2W) by weights (out, C, 3, 3), padded by one: a transposed one of x."""
    sums = F.avg_pool2d(
        F.pad(weight.flip(2, 3), (1, 1, 1, 1)), 2, stride=1, divisor_override=1
    )  # (out, C, 4, 4)
    return F.conv_transpose2d(x, sums.transpose(0, 1), bias, stride=2, padding=1)


class UpConv2d(nn.Conv2d):
    """A 3×3 convolution of doubled maps, (B, in, H, W) to (B, out, 2H, 2W)."""

    def __init__(self, in_: int, out: int) -> None:
        super().__init__(in_, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv_of_doubled(x, self.weight, self.bias)
