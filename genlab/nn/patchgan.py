"""PatchGAN, a discriminator of patches.

Isola et al. 2017, https://arxiv.org/abs/1611.07004, section 3.2.2 and appendix 6.1.2.
"""

from __future__ import annotations

import math

from torch import nn


class PatchGAN(nn.Sequential):
    """Images (B, C, H, W) to a logit for each overlapping patch (B, 1, h, w).

    The receptive field is 70×70 pixels with three downsamplings, 34×34 with two, 16×16 with one and
    7×7 with none.

    Args:
        width: maps of the first layer; they double with each layer, up to eight times the width.
        num_downsamples: layers of stride 2; two layers of stride 1 follow.
    """

    def __init__(self, in_channels: int, *, width: int = 64, num_downsamples: int = 3) -> None:
        channels = [in_channels, *(min(width << i, 8 * width) for i in range(num_downsamples + 1))]
        layers: list[nn.Module] = []
        for i in range(num_downsamples + 1):
            stride = 2 if i < num_downsamples else 1
            is_first = i == 0  # no normalization of the layer that the images enter
            layers.append(
                nn.Conv2d(channels[i], channels[i + 1], 4, stride=stride, padding=1, bias=is_first)
            )
            if not is_first:
                layers.append(nn.InstanceNorm2d(channels[i + 1], affine=True))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 4, padding=1))


def max_num_downsamples(size: tuple[int, int], maximum: int = 3) -> int:
    """Return how often a PatchGAN can halve images of a size (H, W).

    Its maps must keep more than one value.
    """
    return max(0, min(maximum, int(math.log2(min(size) / 3))))
