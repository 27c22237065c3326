"""Invertible maps: `forward(x)` gives z and log |det dz/dx| (B,), `inverse(z)` gives x back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Transform(nn.Module, ABC):
    """An invertible map of x (B, …) to z (B, …)."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the log of the Jacobian's absolute determinant (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return the x that `forward` maps to z."""


class Chain(Transform):
    """One transform after another."""

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for transform in self.transforms:
            x, ladj = transform(x)
            total = total + ladj
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            z = transform.inverse(z)
        return z


class AffineCoupling(Transform):
    """The masked affine coupling of Dinh et al. 2017, equation 9, with the log-scale s bounded.

    Args:
        net: gives s and t, (B, 2C, …), from the kept part (B, C, …); its last layer is set to zero, so that the
            coupling starts as the identity.
        mask: 1 where a value is kept, 0 where it is changed; broadcasts against one item (C, …).
    """

    def __init__(self, net: nn.Sequential, mask: Tensor) -> None:
        super().__init__()
        self.net = net
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)
        self.register_buffer("mask", mask, persistent=False)
        channels = net[-1].bias.numel() // 2
        self.bound = nn.Parameter(torch.ones(channels, *[1] * (mask.dim() - 1)))  # s lies within ±bound, per channel

    def scale_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t (B, C, …), 0 where the mask keeps a value."""
        s, t = self.net(self.mask * x).chunk(2, dim=1)
        change = 1 - self.mask
        return change * self.bound * s.tanh(), change * t

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.scale_shift(x)
        return x * s.exp() + t, s.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        s, t = self.scale_shift(z)  # the kept part of z is that of x
        return (z - t) * (-s).exp()


class Logit(Transform):
    """z = logit(alpha + (1 − 2 alpha) u) with u = x moved to [0, 1]: Dinh et al. 2017, section 4.1, made symmetric.

    Args:
        range: the interval of x's values.
    """

    def __init__(self, alpha: float, range: tuple[float, float]) -> None:
        super().__init__()
        self.alpha, (self.low, self.high) = alpha, range

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = (1 - 2 * self.alpha) / (self.high - self.low)
        p = self.alpha + slope * (x - self.low)
        z = torch.logit(p)
        # dz/dp = 1 / (p (1 − p)), and −log p (1 − p) = softplus(z) + softplus(−z)
        ladj = math.log(slope) + F.softplus(z) + F.softplus(-z)
        return z, ladj.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return self.low + (z.sigmoid() - self.alpha) * (self.high - self.low) / (1 - 2 * self.alpha)


class Squeeze(Transform):
    """(B, C, H, W) -> (B, 4C, H/2, W/2): each 2×2 square of pixels becomes channels (Dinh et al. 2017, section 3.6)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


class MultiScale(Transform):
    """An image (B, C, H, W) -> a vector (B, D): after each scale but the last, half of the channels leave as they are.

    Dinh et al. 2017, equations 13 to 16. Each scale but the last ends on squeezed channels.

    Args:
        shape: of one image, (C, H, W).
    """

    def __init__(self, scales: list[Transform], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        self.shapes = [tuple(shape)]  # of what enters each scale
        for _ in scales[1:]:
            c, h, w = self.shapes[-1]
            self.shapes.append((2 * c, h // 2, w // 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, left = x.new_zeros(len(x)), []
        for scale in self.scales[:-1]:
            x, ladj = scale(x)  # (B, 4C, H/2, W/2)
            out, x = x.chunk(2, dim=1)
            left.append(out.flatten(1))
            total = total + ladj
        x, ladj = self.scales[-1](x)
        return torch.cat([*left, x.flatten(1)], dim=1), total + ladj

    def inverse(self, z: Tensor) -> Tensor:
        sizes = [math.prod(shape) for shape in self.shapes[1:]]  # what leaves is as large as what goes on
        *left, x = z.split([*sizes, z.shape[1] - sum(sizes)], dim=1)
        x = self.scales[-1].inverse(x.unflatten(1, self.shapes[-1]))
        for scale, out, shape in zip(self.scales[-2::-1], left[::-1], self.shapes[:0:-1], strict=True):
            x = scale.inverse(torch.cat([out.unflatten(1, shape), x], dim=1))
        return x


def checkerboard(shape: tuple[int, ...], parity: int) -> Tensor:
    """Return the mask (1, H, W) that is 1 where row + column + parity is even."""
    rows, columns = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
    return ((rows + columns + parity) % 2 == 0).float()[None]


def halves(channels: int, parity: int) -> Tensor:
    """Return the mask (C, 1, 1) that is 1 on the first half of the channels, or with parity 1 on the second."""
    first = torch.arange(channels) < channels // 2
    return (~first if parity else first).float()[:, None, None]


def alternating(size: int, parity: int) -> Tensor:
    """Return the mask (size,) that is 1 where index + parity is even."""
    return ((torch.arange(size) + parity) % 2 == 0).float()
