"""Image preprocessing: flip, binarize, dequantize and map to a range, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.nn.broadcast import expand_like

Binarize = Literal["none", "threshold", "dynamic"]

# Fraction of the variance of binarized pixels up to which their draw may be noise. It is 0.17 for
# MNIST, 0.33 for the 8×8 digits, 0.39 for gray clothing, and 0.6 to 0.8 for photographs.
MAX_BINARIZATION_NOISE = 0.4


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """Maps levels k in {0, …, levels−1} to `range`.

    A uint8 batch becomes float32 of the same shape. Random draws have 16 bits, which is all that
    float32 keeps of k+u; probabilities 0 and 1 are exact.

    Args:
        binarize: `threshold` gives 1 above half of the top level; `dynamic` draws 1 with
            probability k/(levels−1) each time (Salakhutdinov & Murray 2008, section 5).
        dequantize: (k+u)/levels with u uniform on [0, 1) (Theis et al. 2016,
            https://arxiv.org/abs/1511.01844, section 3.1).
        flip: mirrors half of the images left to right, in training only.
    """

    levels: int = 256
    range: tuple[float, float] = (-1.0, 1.0)
    binarize: Binarize = "none"
    dequantize: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        low, high = self.range
        if not low < high:
            raise UserError(
                f"dataset.range=[{low:g},{high:g}] is empty: the lower bound must come first"
            )

    @property
    def num_levels_out(self) -> int:
        """The number of values that a channel can take after binarization."""
        return self.levels if self.binarize == "none" else 2

    def __call__(self, k: Tensor, generator: torch.Generator, *, augment: bool = False) -> Tensor:
        """Return float32 (B, …, H, W) from levels k (B, …, H, W) uint8.

        Args:
            augment: allows the flip, which is of all frames and channels of an item together.
        """
        if self.flip and augment:
            coin = torch.rand(len(k), device=k.device, generator=generator) < 0.5
            k = torch.where(expand_like(coin, k), k.flip(-1), k)
        top = self.levels - 1
        if self.binarize == "threshold":
            k = k.gt(top // 2).view(torch.uint8)  # integers: k > top/2
        elif self.binarize == "dynamic":  # r + 2¹⁵ is uniform on {0, …, 2¹⁶−1}
            k = k.mul(65536 / top).sub_(32768).gt_(random_uniform_int16(k.shape, generator))
        if self.binarize != "none":
            top = 1
        low, high = self.range
        if self.dequantize:
            u = random_uniform_int16(k.shape, generator).mul(2.0**-16).add_(0.5)  # [0, 1)
            x = u.add_(k).mul_((high - low) / (top + 1))
            return x.add_(low) if low else x
        # (k − c) / d hits both ends of the range exactly, which k·scale + low does not
        c, d = -low * top / (high - low), top / (high - low)
        return k.sub(c).div_(d) if c else k.div(d)

    def levels_to_bytes(self, k: Tensor) -> Tensor:
        """Return bytes uint8 (B, C, H, W) of levels k: thresholded if set, but without noise."""
        top = self.levels - 1
        if self.binarize == "threshold":
            return k.gt(top // 2).to(torch.uint8).mul_(255)
        return k if top == 255 else k.float().mul(255 / top).round().to(torch.uint8)


def binarization_noise_fraction(k: Tensor, top: int) -> float:
    """Return how much of the variance of binarized pixels is the noise of their draw, 0 … 1.

    A pixel that is 1 with probability p = k/top has the variance p(1 − p) given the image, and
    m(1 − m) in all, where m is the mean of p. The ratio is 0 for black and white images, and 1 if
    all pixels have the same gray. A threshold loses the same information.

    Args:
        k: levels of images (N, …), integers.
        top: the highest level.
    """
    p = k.double() / top
    mean = p.mean()
    variance = mean * (1 - mean)
    return ((p * (1 - p)).mean() / variance).item() if variance else 0.0


def random_uniform_int16(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return int16 uniform on {−2¹⁵, …, 2¹⁵−1}.

    Each 64-bit draw gives four of them, which is four times as fast as `rand`.
    """
    n = shape.numel()
    words = torch.empty((n + 3) // 4, dtype=torch.int64, device=generator.device)
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)[:n].view(shape)
