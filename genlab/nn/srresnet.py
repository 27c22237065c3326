"""SRResNet: Ledig et al. 2017, https://arxiv.org/abs/1609.04802, figure 4.

Sub-pixel convolution: Shi et al. 2016, https://arxiv.org/abs/1609.05158.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SRResNet(nn.Module):
    """Images (B, inputs, h, w) to (B, outputs, factor·h, factor·w), for any h and w.

    Args:
        num_blocks: residual blocks, all at the small size.
        batch_norm: use batch normalization; without it small networks learn faster (Lim et al.
            2017, https://arxiv.org/abs/1707.02921).
        kernel_size: of the first and the last convolution.
        staged_upsampling: upsample the features by one prime factor after another, with a
            convolution each, as in the paper. Otherwise the last convolution is computed at the
            small size, and its maps become the pixels (Shi et al. 2016).
        bicubic_residual: add the result to bicubic interpolation, which the network then equals
            before training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        factor: int,
        *,
        width: int = 64,
        num_blocks: int = 16,
        batch_norm: bool = True,
        kernel_size: int = 9,
        staged_upsampling: bool = True,
        bicubic_residual: bool = False,
    ) -> None:
        super().__init__()
        self.factor, self.bicubic_residual = factor, bicubic_residual
        padding = kernel_size // 2
        self.head = nn.Sequential(
            nn.Conv2d(inputs, width, kernel_size, padding=padding), nn.PReLU()
        )
        self.body = nn.Sequential(
            *(PReLUBlock(width, batch_norm) for _ in range(num_blocks)),
            *conv_batch_norm(width, batch_norm),
        )
        tail: list[nn.Module] = []
        if staged_upsampling:
            for f in prime_factors(factor):
                conv = nn.Conv2d(width, width * f * f, 3, padding=1)
                tail += [conv, nn.PixelShuffle(f), nn.PReLU()]
            last = nn.Conv2d(width, outputs, kernel_size, padding=padding)
            tail.append(last)
        else:
            last = nn.Conv2d(width, outputs * factor**2, kernel_size, padding=padding)
            tail += [last, nn.PixelShuffle(factor)]
        if bicubic_residual:
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        self.tail = nn.Sequential(*tail)

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        y = self.tail(h + self.body(h))
        return y + upsample_bicubic(x, self.factor) if self.bicubic_residual else y


class PReLUBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))) (B, C, H, W)."""

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_batch_norm(width, batch_norm), nn.PReLU(), *conv_batch_norm(width, batch_norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv_batch_norm(width: int, batch_norm: bool) -> list[nn.Module]:
    """Return a 3×3 convolution and batch normalization, if it is used."""
    conv = nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm)
    return [conv, nn.BatchNorm2d(width)] if batch_norm else [conv]


def upsample_bicubic(x: Tensor, factor: int) -> Tensor:
    """Upsample images (B, C, h, w) with Keys's kernel, a = −1/2, as in Matlab and Pillow."""
    return F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True)


def prime_factors(n: int) -> list[int]:
    """Return the prime factors of n, the smallest first."""
    for f in range(2, n + 1):
        if n % f == 0:
            return [f, *prime_factors(n // f)]
    return []
