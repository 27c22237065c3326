"""Invertible maps: `forward` returns z and log |det dz/dx| (B,), `inverse` returns x."""

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
        """Return z and the log of the absolute determinant of the Jacobian (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return the x that `forward` maps to z."""


class Chain(Transform):
    """A composition of transforms."""

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
            assert isinstance(transform, Transform)
            z = transform.inverse(z)
        return z


class Inverse(Transform):
    """The inverse of another transform."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.transform.inverse(x)
        return z, -self.transform(z)[1]

    def inverse(self, z: Tensor) -> Tensor:
        x: Tensor = self.transform(z)[0]
        return x


class DataDependentInit(Transform):
    """A transform whose parameters are initialized from its inputs for the first batch."""

    @abstractmethod
    def initialize_from_data(self, x: Tensor) -> None:
        """Initialize the parameters from inputs x (B, …)."""


class Flatten(Transform):
    """(B, *shape) -> (B, D)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.shape)


class Permute(Transform):
    """A permutation of the values or channels: z_i = x_order(i)."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z[:, self.order.argsort()]


class Logit(Transform):
    """z = logit(alpha + (1 − 2 alpha) u) with u = x scaled to [0, 1].

    Dinh et al. 2017, section 4.1, in symmetric form.

    Args:
        range: the interval of the values of x.
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
    """(B, C, H, W) -> (B, 4C, H/2, W/2): each 2×2 square of pixels becomes channels.

    Dinh et al. 2017, section 3.6.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


class MultiScale(Transform):
    """A multi-scale architecture: an image (B, C, H, W) -> a vector (B, D).

    After each scale but the last, half of the channels are factored out. Dinh et al. 2017,
    equations 13 to 16. Each scale but the last ends with squeezed channels.

    Args:
        shape: of one image, (C, H, W).
    """

    def __init__(self, scales: list[Transform], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        self.shapes = [tuple(shape)]  # of the input of each scale
        for _ in scales[1:]:
            c, h, w = self.shapes[-1]
            self.shapes.append((2 * c, h // 2, w // 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, factored_out = x.new_zeros(len(x)), []
        for scale in self.scales[:-1]:
            x, ladj = scale(x)  # (B, 4C, H/2, W/2)
            out, x = x.chunk(2, dim=1)
            factored_out.append(out.flatten(1))
            total = total + ladj
        x, ladj = self.scales[-1](x)
        return torch.cat([*factored_out, x.flatten(1)], dim=1), total + ladj

    def inverse(self, z: Tensor) -> Tensor:
        # the factored out half is as large as the half that stays
        sizes = [math.prod(shape) for shape in self.shapes[1:]]
        *factored_out, x = z.split([*sizes, z.shape[1] - sum(sizes)], dim=1)
        last, *scales = reversed(self.scales)
        assert isinstance(last, Transform)
        x = last.inverse(x.unflatten(1, self.shapes[-1]))
        for scale, out, shape in zip(scales, factored_out[::-1], self.shapes[:0:-1], strict=True):
            assert isinstance(scale, Transform)
            x = scale.inverse(torch.cat([out.unflatten(1, shape), x], dim=1))
        return x
