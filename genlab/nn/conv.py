"""Convolutional networks between images of any size and vectors, and upsampling."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.mlp import ACTIVATIONS, MLP, Activation


def halved_sizes(size: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """Return the sizes (H, W) of an image that is halved `times` times, rounding down."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(times):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def can_halve(shape: tuple[int, ...], times: int) -> bool:
    """Whether samples of a shape are images (C, H, W) that can be halved `times` times."""
    return len(shape) == 3 and min(shape[1:]) >= 2**times


class ConvEncoder(nn.Sequential):
    """An image (B, C, H, W) to a vector (B, outputs): convolutions, then dense layers.

    H and W may be any numbers of at least 2**len(channels).

    Args:
        channels: of each convolution.
        dense: units of the hidden dense layers.
        dropout: fraction of the dense layers' inputs and units dropped in training.
        pool: use LeNet's layers instead, a 5×5 convolution and 2×2 max pooling.
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
            if pool:
                layers.append(nn.Conv2d(c, width, 5, padding=2))
            else:
                layers.append(nn.Conv2d(c, width, 4, stride=2, padding=1))
            layers.append(ACTIVATIONS[activation]())
            if pool:
                layers.append(nn.MaxPool2d(2))  # (B, width, H//2, W//2)
            c = width
        h, w = halved_sizes(tuple(size), len(channels))[-1]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(
            *layers,
            nn.Flatten(),
            *MLP(c * h * w, dense, outputs, activation=activation, dropout=dropout),
        )


class ConvDecoder(nn.Sequential):
    """A vector (B, inputs) to an image (B, C, H, W): the mirror image of ConvEncoder.

    Args:
        channels: of the inputs of each transposed convolution, in the order of computation.
        dense: units of the hidden dense layers.
    """

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
        sizes = halved_sizes(tuple(size), len(channels))[::-1]
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


def upsample_nearest(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) with each pixel repeated as 2×2 pixels: (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


# As in the authors' code of Karras et al. 2018, https://arxiv.org/abs/1710.10196: the four copies
# of a pixel meet the same weights, which are added once. This takes 16 multiplications per pixel of
# x and pair of channels instead of 36, and no upsampled maps in memory.
def upsample_then_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the convolution of `upsample_nearest(x)` as a transposed convolution of x.

    Args:
        x: maps (B, C, H, W).
        weight: (out, C, 3, 3); the padding is 1, so the result is (B, out, 2H, 2W).
    """
    padded_weight = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    sums = F.avg_pool2d(padded_weight, 2, stride=1, divisor_override=1)  # (out, C, 4, 4)
    return F.conv_transpose2d(x, sums.transpose(0, 1), bias, stride=2, padding=1)


class UpConv2d(nn.Conv2d):
    """Nearest upsampling and a 3×3 convolution, (B, in, H, W) to (B, out, 2H, 2W)."""

    def __init__(self, in_: int, out: int) -> None:
        super().__init__(in_, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_then_conv2d(x, self.weight, self.bias)
