"""Invertible maps: `forward` returns z and log |det dz/dx| (B,), `inverse` returns x.

A map can report the steps that it consists of: see `Transform.inverse_in_steps`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# receives values (B, …) after a step, and log |det| (B,) of the forward step
StepReport = Callable[[Tensor, Tensor], None]


class Transform(nn.Module, ABC):
    """An invertible map of x (B, …) to z (B, …)."""

    # It moves values without changing them, so it is not a step.
    only_moves_values: bool = False

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the log of the absolute determinant of the Jacobian (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return the x that `forward` maps to z."""

    @property
    def num_steps(self) -> int:
        """The number of steps that `forward_in_steps` and `inverse_in_steps` report."""
        return 0 if self.only_moves_values else 1

    def forward_in_steps(
        self, x: Tensor, report: StepReport | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` returns, and report the values after each step.

        The values that are reported have the shape of x, each at the place that it came from.
        """
        z, ladj = self(x)
        if report is not None and not self.only_moves_values:
            report(z, ladj)
        return z, ladj

    def inverse_in_steps(self, z: Tensor, report: StepReport | None = None) -> Tensor:
        """Return the x that `forward` maps to z, and report the values after each step back.

        The values that are reported have the shape of x, each at the place where it will be.
        """
        x = self.inverse(z)
        if report is not None and not self.only_moves_values:
            report(x, self(x)[1])
        return x

    def move_back(self, z: Tensor) -> Tensor:
        """Return the values of z (B, …), unchanged, at their places in x (B, …)."""
        return self.inverse(z) if self.only_moves_values else z


class Chain(Transform):
    """A composition of transforms."""

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    @property
    def steps(self) -> list[Transform]:
        """The transforms in the order of `forward`."""
        return [transform for transform in self.transforms if isinstance(transform, Transform)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_in_steps(x)

    def inverse(self, z: Tensor) -> Tensor:
        return self.inverse_in_steps(z)

    @property
    def num_steps(self) -> int:
        return sum(transform.num_steps for transform in self.steps)

    def forward_in_steps(
        self, x: Tensor, report: StepReport | None = None
    ) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for i, transform in enumerate(self.steps):
            x, ladj = transform.forward_in_steps(x, self.report_from(i, report))
            total = total + ladj
        return x, total

    def inverse_in_steps(self, z: Tensor, report: StepReport | None = None) -> Tensor:
        for i, transform in reversed(list(enumerate(self.steps))):
            z = transform.inverse_in_steps(z, self.report_from(i, report))
        return z

    def report_from(self, i: int, report: StepReport | None) -> StepReport | None:
        """Return the report for transform i, which gives it values at their places in x."""
        if report is None:
            return None
        return lambda values, ladj: report(self.move_back(values, i), ladj)

    def move_back(self, z: Tensor, end: int | None = None) -> Tensor:
        """Return the values of z (B, …), unchanged, at their places in x (B, …).

        Args:
            end: z is before the transform of this number; None: after the last one.
        """
        for transform in reversed(self.steps[:end]):
            z = transform.move_back(z)
        return z


class Inverse(Transform):
    """The inverse of another transform."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.only_moves_values = transform.only_moves_values

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

    only_moves_values = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.shape)


class Permute(Transform):
    """A permutation of the values or channels: z_i = x_order(i)."""

    only_moves_values = True
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

    only_moves_values = True

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

    @property
    def transforms(self) -> list[Transform]:
        """The transform of each scale, from the finest to the coarsest."""
        return [scale for scale in self.scales if isinstance(scale, Transform)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_in_steps(x)

    def inverse(self, z: Tensor) -> Tensor:
        return self.inverse_in_steps(z)

    @property
    def num_steps(self) -> int:
        return sum(scale.num_steps for scale in self.transforms)

    def forward_in_steps(
        self, x: Tensor, report: StepReport | None = None
    ) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        factored_out: list[Tensor] = []
        *scales, last = self.transforms
        for scale in scales:
            x, ladj = scale.forward_in_steps(x, self.report_from(factored_out[:], report))
            out, x = x.chunk(2, dim=1)  # of (B, 4C, H/2, W/2)
            factored_out.append(out)
            total = total + ladj
        x, ladj = last.forward_in_steps(x, self.report_from(factored_out, report))
        return torch.cat([part.flatten(1) for part in (*factored_out, x)], dim=1), total + ladj

    def inverse_in_steps(self, z: Tensor, report: StepReport | None = None) -> Tensor:
        *factored_out, x = self.split_scales(z)
        *scales, last = self.transforms
        x = last.inverse_in_steps(x, self.report_from(factored_out, report))
        while factored_out:
            x = torch.cat([factored_out.pop(), x], dim=1)
            x = scales.pop().inverse_in_steps(x, self.report_from(factored_out[:], report))
        return x

    def split_scales(self, z: Tensor) -> list[Tensor]:
        """Return the images of each scale in z (B, D): those factored out, and the last one."""
        # the factored out half is as large as the half that stays
        shapes = [*self.shapes[1:], self.shapes[-1]]
        parts = z.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def report_from(
        self, factored_out: list[Tensor], report: StepReport | None
    ) -> StepReport | None:
        """Return the report for the scale after those whose values are factored out."""
        if report is None:
            return None
        return lambda values, ladj: report(self.move_back_scales(factored_out, values), ladj)

    def move_back(self, z: Tensor) -> Tensor:
        *factored_out, x = self.split_scales(z)
        return self.move_back_scales(factored_out, self.transforms[-1].move_back(x))

    def move_back_scales(self, factored_out: list[Tensor], x: Tensor) -> Tensor:
        """Return the values of all scales at their places in the image (B, C, H, W).

        Args:
            x: input (B, …) of the scale after those whose values are factored out.
        """
        for scale, out in reversed(list(zip(self.transforms, factored_out, strict=False))):
            x = scale.move_back(torch.cat([out, x], dim=1))
        return x
