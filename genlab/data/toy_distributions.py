"""Distributions of points in the plane with exact sampling and a known log-density."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genlab.spec import Positive, PositiveFloat

NORMAL_ENTROPY = 1 + math.log(2 * math.pi)  # of a standard normal in the plane, in nats
ENTROPY_SAMPLES = 50_000  # samples of the Monte Carlo estimate of an entropy
MAX_PAIRS = 1_000_000  # (point, component) pairs of a mixture density in memory at once


class ToyDistribution(ABC):
    """A distribution in the plane."""

    num_classes: int = 0
    centers: Tensor | None = None  # (M, 2) of a mixture of isotropic Gaussians
    std: float | None = None  # standard deviation of the noise
    log_weights: Tensor | None = None  # (M,) of the mixture's components

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return x (n, 2) and labels y (n,), or None without classes."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density (B,) in nats of x (B, 2)."""

    @cached_property
    def entropy(self) -> float:
        """The entropy in nats, estimated from samples unless a closed form exists."""
        return self.estimate_entropy()

    def estimate_entropy(self) -> float:
        """Return the mean of −log p over seeded samples, in nats."""
        x, _ = self.sample(ENTROPY_SAMPLES, torch.Generator().manual_seed(0))
        return -self.log_prob(x).mean().item()


def gaussian_mixture_log_prob(
    x: Tensor, centers: Tensor, log_weights: Tensor, std: float
) -> Tensor:
    """Return log Σₘ wₘ N(x; cₘ, std² I) (B,) of x (B, 2)."""
    centers, log_weights = centers.to(x), log_weights.to(x)
    log_probs = []
    for part in x.split(max(1, MAX_PAIRS // len(centers))):
        across, up = part[:, :1] - centers[:, 0], part[:, 1:] - centers[:, 1]  # (B, M)
        square = across.square() + up.square()
        log_probs.append(torch.logsumexp(log_weights - square / (2 * std**2), 1))
    return torch.cat(log_probs) - math.log(2 * math.pi * std**2)


class GaussianMixture(ToyDistribution):
    """Equally likely isotropic Gaussians; the label is the mode."""

    centers: Tensor
    std: float
    log_weights: Tensor

    def set_centers(self, centers: Tensor) -> None:
        """Set the means (M, 2) of the modes."""
        self.centers, self.num_classes = centers, len(centers)
        log_weight = -math.log(self.num_classes)
        self.log_weights = torch.full((self.num_classes,), log_weight, dtype=centers.dtype)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, self.num_classes, (n,), generator=generator)
        noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return self.centers[y] + self.std * noise, y

    def log_prob(self, x: Tensor) -> Tensor:
        return gaussian_mixture_log_prob(x, self.centers, self.log_weights, self.std)

    @cached_property
    def entropy(self) -> float:
        """ln M + ln(2πe std²) where the modes do not overlap, else an estimate.

        The closed form is used from a distance of 12 standard deviations on: an error of 1e-8 nats.
        """
        distance = torch.pdist(self.centers).min().item() if self.num_classes > 1 else math.inf
        if distance < 12 * self.std:
            return self.estimate_entropy()
        return math.log(self.num_classes) + NORMAL_ENTROPY + 2 * math.log(self.std)


@dataclass(eq=False)
class Ring(GaussianMixture):
    """`num_modes` Gaussians on a circle."""

    radius: PositiveFloat = 2.0
    std: PositiveFloat = 0.1
    num_modes: Positive = 8

    def __post_init__(self) -> None:
        angle = torch.arange(self.num_modes, dtype=torch.float64) * (2 * math.pi / self.num_modes)
        self.set_centers(self.radius * torch.stack([angle.cos(), angle.sin()], 1))


@dataclass(eq=False)
class Grid(GaussianMixture):
    """`grid_size`² Gaussians on a square grid around the origin."""

    grid_size: Positive = 5
    spacing: PositiveFloat = 2.0
    std: PositiveFloat = 0.05

    def __post_init__(self) -> None:
        index = torch.arange(self.grid_size, dtype=torch.float64)
        position = (index - (self.grid_size - 1) / 2) * self.spacing
        self.set_centers(torch.cartesian_prod(position, position).reshape(-1, 2))


@dataclass(eq=False)
class Checkerboard(ToyDistribution):
    """Uniform on every second of the 4×4 squares that tile [−extent, extent]²."""

    extent: PositiveFloat = 4.0

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        u = torch.rand(n, 2, dtype=torch.float64, generator=generator)
        cell = torch.randint(0, 8, (n,), generator=generator)
        row = cell // 2  # (n,) 0 … 3; its two squares are the columns of the row's parity
        column = 2 * (cell % 2) + row % 2
        return (torch.stack([column, row], 1) + u) * (self.extent / 2) - self.extent, None

    def log_prob(self, x: Tensor) -> Tensor:
        square = ((x + self.extent) / (self.extent / 2)).floor()  # (B, 2)
        inside = ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)
        return torch.where(inside, -self.entropy, -math.inf).to(x.dtype)

    @cached_property
    def entropy(self) -> float:
        """The logarithm of the area, which is half of the whole square's."""
        return math.log(2 * self.extent**2)


class NoisyCurves(ToyDistribution):
    """Two curves with isotropic Gaussian noise: p(x) = ½ Σ_c ∫₀¹ N(x; γ_c(u), std² I) du.

    The integral is a Gauss–Legendre quadrature with `nodes_per_std / std` nodes, which leaves an
    error near 1e-10 in log p. The label is the curve.
    """

    num_classes = 2
    nodes_per_std: float
    std: float

    @abstractmethod
    def points_on_curve(self, u: Tensor, y: Tensor) -> Tensor:
        """Return the points γ_y(u) (n, 2) of u (n,) in [0, 1] and y (n,)."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, 2, (n,), generator=generator)
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return self.points_on_curve(u, y) + self.std * noise, y

    @cached_property
    def quadrature_points_and_log_weights(self) -> tuple[Tensor, Tensor]:
        """The points (M, 2) and log-weights (M,)."""
        nodes = max(64, math.ceil(self.nodes_per_std / self.std))
        v, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
        # on [0, 1]; u = v² places more nodes where the curve in u is fast: du = 2 v dv
        v, w = (v + 1) / 2, w / 2
        points = [
            self.points_on_curve(v**2, torch.full_like(v, c, dtype=torch.int64)) for c in range(2)
        ]
        return torch.cat(points), (w * v).log().repeat(2)  # ½ · 2 v w

    def log_prob(self, x: Tensor) -> Tensor:
        points, log_weights = self.quadrature_points_and_log_weights
        return gaussian_mixture_log_prob(x, points, log_weights, self.std)


@dataclass(eq=False)
class Moons(NoisyCurves):
    """Two interlocking half circles of radius 1, placed as by scikit-learn's `make_moons`."""

    std: PositiveFloat = 0.1
    nodes_per_std = 12

    def points_on_curve(self, u: Tensor, y: Tensor) -> Tensor:
        angle = math.pi * u
        upper = torch.stack([angle.cos(), angle.sin()], 1)
        return torch.where(y[:, None] == 0, upper, torch.tensor([1.0, 0.5], dtype=u.dtype) - upper)


@dataclass(eq=False)
class Spirals(NoisyCurves):
    """Two arms of one and a half turns, of radius t/3 at the angle t = 3π√u."""

    std: PositiveFloat = 0.1
    nodes_per_std = 40

    def points_on_curve(self, u: Tensor, y: Tensor) -> Tensor:
        t = 3 * math.pi * u.sqrt()
        arm = torch.stack([-t.cos(), t.sin()], 1) * t[:, None] / 3
        return torch.where(y[:, None] == 0, arm, -arm)


@dataclass(eq=False)
class Pinwheel(ToyDistribution):
    """`num_modes` long Gaussian blades around the origin, twisted into a spiral.

    The angle of the twist grows with the radius. A rotation by an angle that depends only on the
    radius preserves area, so the density is that of the straight blades.
    """

    num_modes: Positive = 5
    radius: PositiveFloat = 2.0
    std: PositiveFloat = 0.6  # along a blade; a sixth of it across
    twist: float = 0.5  # radians per unit of radius

    def __post_init__(self) -> None:
        self.num_classes = self.num_modes
        self.blade_std = torch.tensor([self.std, self.std / 6], dtype=torch.float64)

    def rotate_and_twist(self, x: Tensor, y: Tensor, sign: int) -> Tensor:
        """Return x (n, 2) rotated by sign · (2π y / num_modes + twist · |x|)."""
        angle = sign * (2 * math.pi / self.num_modes * y + self.twist * x.norm(dim=-1))
        cos, sin = angle.cos(), angle.sin()
        return torch.stack(
            [cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1
        )

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, self.num_modes, (n,), generator=generator)
        blade = torch.randn(n, 2, dtype=torch.float64, generator=generator) * self.blade_std
        return self.rotate_and_twist(
            blade + torch.tensor([self.radius, 0.0], dtype=torch.float64), y, 1
        ), y

    def log_prob(self, x: Tensor) -> Tensor:
        y = torch.arange(self.num_modes, device=x.device)
        straight = self.rotate_and_twist(x[:, None], y, -1)  # (B, M, 2)
        z = (straight - straight.new_tensor([self.radius, 0.0])) / self.blade_std.to(x)
        exponents = -z.square().sum(-1) / 2  # (B, M)
        return (
            torch.logsumexp(exponents, 1)
            - math.log(2 * math.pi * self.num_modes)
            - self.blade_std.log().sum().item()
        )


TOY_DISTRIBUTIONS: dict[str, type[ToyDistribution]] = {
    "moons": Moons,
    "ring": Ring,
    "grid": Grid,
    "checkerboard": Checkerboard,
    "spirals": Spirals,
    "pinwheel": Pinwheel,
}
