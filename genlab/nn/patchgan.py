"""A discriminator of patches: Isola et al. 2017, https://arxiv.org/abs/1611.07004, section 3.2.2 and appendix 6.1.2."""

from __future__ import annotations

import math

from torch import nn


class PatchGAN(nn.Sequential):
    """Images (B, channels, H, W) to a logit for each overlapping patch (B, 1, h, w), with no weight for its place.

    Three halvings see 70×70 pixels, two 34×34, one 16×16, none 7×7.

    Args:
        width: maps of the first layer; they double with each layer up to eight times as many.
        halvings: layers of stride 2; two of stride 1 follow.
    """

    def __init__(self, channels: int, *, width: int = 64, halvings: int = 3) -> None:
        maps = [min(width << i, 8 * width) for i in range(halvings + 1)]
        layers: list[nn.Module] = []
        for i, o in enumerate(maps):
            stride = 2 if i < halvings else 1
            layers.append(
                nn.Conv2d(
                    maps[i - 1] if i else channels, o, 4, stride=stride, padding=1, bias=not i
                )
            )
            layers += (
                [nn.InstanceNorm2d(o, affine=True)] if i else []
            )  # none on what the images themselves enter
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        super().__init__(*layers, nn.Conv2d(maps[-1], 1, 4, padding=1))


def halvings(size: tuple[int, int], most: int = 3) -> int:
    """Return how often a PatchGAN can halve images of a size (H, W) and still see more than one value a map."""
    return max(0, min(most, int(math.log2(min(size) / 3))))
