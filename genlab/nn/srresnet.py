"""SRResNet: Ledig et al. 2017, https://arxiv.org/abs/1609.04802, figure 4; sub-pixel convolution: Shi et al. 2016."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SRResNet(nn.Module):
    """Images (B, inputs, h, w) to (B, outputs, factor·h, factor·w), for any h and w.

    Args:
        blocks: residual blocks, all at the small size.
        norm: normalise by the batch; without it small networks learn faster (Lim et al. 2017, https://arxiv.org/abs/1707.02921).
        kernel: side of the first and the last convolution.
        stages: enlarge features by prime factors with a convolution after, as the paper does; False: the last convolution
            stands at the small size and its maps become the pixels (Shi et al. 2016, https://arxiv.org/abs/1609.05158).
        bicubic: learn what is missing from bicubic interpolation, which the network then is before training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        factor: int,
        *,
        width: int = 64,
        blocks: int = 16,
        norm: bool = True,
        kernel: int = 9,
        stages: bool = True,
        bicubic: bool = False,
    ) -> None:
        super().__init__()
        self.factor, self.bicubic = factor, bicubic
        self.head = nn.Sequential(nn.Conv2d(inputs, width, kernel, padding=kernel // 2), nn.PReLU())
        self.body = nn.Sequential(
            *(PReLUBlock(width, norm) for _ in range(blocks)), *conv(width, norm)
        )
        tail: list[nn.Module] = []
        for f in prime_factors(factor) if stages else ():
            tail += [nn.Conv2d(width, width * f * f, 3, padding=1), nn.PixelShuffle(f), nn.PReLU()]
        last = nn.Conv2d(
            width, outputs if stages else outputs * factor**2, kernel, padding=kernel // 2
        )
        if bicubic:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.tail = nn.Sequential(*tail, last, *([] if stages else [nn.PixelShuffle(factor)]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        y = self.tail(h + self.body(h))
        return y + bicubic(x, self.factor) if self.bicubic else y


class PReLUBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))) (B, C, H, W)."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(width, norm), nn.PReLU(), *conv(width, norm))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv(width: int, norm: bool) -> list[nn.Module]:
    layer = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
    return [layer, nn.BatchNorm2d(width)] if norm else [layer]


def bicubic(x: Tensor, factor: int) -> Tensor:
    """Return images (B, C, h, w) enlarged by Keys's cubic kernel with a = −1/2, as Matlab and Pillow do."""
    return F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)


def prime_factors(n: int) -> list[int]:
    """Return the prime factors of n, the smallest first."""
    for f in range(2, n + 1):
        if n % f == 0:
            return [f, *prime_factors(n // f)]
    return []
