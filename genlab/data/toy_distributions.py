"""Distributions of points with exact sampling and a known log-density.

Most are in the plane; some are on the line, and the Swiss roll is in space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genlab.spec import Positive, PositiveFloat

NORMAL_ENTROPY = (1 + math.log(2 * math.pi)) / 2  # of a standard normal on the line, in nats
ENTROPY_SAMPLES = 50_000  # samples of the Monte Carlo estimate of an entropy
QUADRATURE_NODES = 20_000  # of an entropy on the line
MAX_PAIRS = 1_000_000  # (point, component) pairs of a mixture density in memory at once


class ToyDistribution(ABC):
    """A distribution of points of `dim` coordinates."""

    dim: int = 2
    num_classes: int = 0
    centers: Tensor | None = None  # (M, dim) of a mixture of isotropic Gaussians
    std: float | None = None  # standard deviation of the noise
    log_weights: Tensor | None = None  # (M,) of the mixture's components

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return x (n, dim) and labels y (n,), or None without classes."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density (B,) in nats of x (B, dim)."""

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
    """Return log Σₘ wₘ N(x; cₘ, std² I) (B,) of x (B, dim)."""
    centers, log_weights = centers.to(x), log_weights.to(x)
    log_probs = []
    for part in x.split(max(1, MAX_PAIRS // len(centers))):
        square = part.new_zeros(len(part), len(centers))  # (B, M)
        for value, center in zip(part.T, centers.T, strict=True):
            square = square + (value[:, None] - center).square()
        log_probs.append(torch.logsumexp(log_weights - square / (2 * std**2), 1))
    return torch.cat(log_probs) - x.shape[1] / 2 * math.log(2 * math.pi * std**2)


def entropy_by_quadrature(distribution: ToyDistribution, low: float, high: float) -> float:
    """Return −∫ p log p dx over [low, high] in nats, for a smooth density on the line.

    The trapezoidal rule converges exponentially for a density that vanishes at both ends.
    """
    x = torch.linspace(low, high, QUADRATURE_NODES, dtype=torch.float64)
    log_p = distribution.log_prob(x[:, None])
    return -torch.trapezoid(log_p.exp() * log_p, x).item()


class GaussianMixture(ToyDistribution):
    """Equally likely isotropic Gaussians; the label is the mode."""

    centers: Tensor
    std: float
    log_weights: Tensor

    def set_centers(self, centers: Tensor) -> None:
        """Set the means (M, dim) of the modes."""
        self.centers, self.num_classes = centers, len(centers)
        self.dim = centers.shape[1]
        log_weight = -math.log(self.num_classes)
        self.log_weights = torch.full((self.num_classes,), log_weight, dtype=centers.dtype)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, self.num_classes, (n,), generator=generator)
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return self.centers[y] + self.std * noise, y

    def log_prob(self, x: Tensor) -> Tensor:
        return gaussian_mixture_log_prob(x, self.centers, self.log_weights, self.std)

    @cached_property
    def entropy(self) -> float:
        """ln M + dim/2 ln(2πe std²) where the modes do not overlap, else by integration.

        The closed form is used from a distance of 12 standard deviations on: an error of 1e-8 nats.
        On the line the integral is a quadrature, elsewhere an estimate from samples.
        """
        distance = torch.pdist(self.centers).min().item() if self.num_classes > 1 else math.inf
        if distance >= 12 * self.std:
            of_one = self.dim * (NORMAL_ENTROPY + math.log(self.std))
            return math.log(self.num_classes) + of_one
        if self.dim > 1:
            return self.estimate_entropy()
        margin = 12 * self.std
        return entropy_by_quadrature(
            self, self.centers.min().item() - margin, self.centers.max().item() + margin
        )


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


@dataclass(eq=False)
class Gaussian1D(ToyDistribution):
    """A normal distribution on the line."""

    mean: float = 0.0
    std: PositiveFloat = 1.0
    dim = 1

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        noise = torch.randn(n, 1, dtype=torch.float64, generator=generator)
        return self.mean + self.std * noise, None

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x[:, 0] - self.mean) / self.std
        return -z.square() / 2 - math.log(self.std) - math.log(2 * math.pi) / 2

    @cached_property
    def entropy(self) -> float:
        """½ ln(2πe std²)."""
        return NORMAL_ENTROPY + math.log(self.std)


@dataclass(eq=False)
class Mixture1D(GaussianMixture):
    """`num_modes` Gaussians on the line, centered on 0."""

    num_modes: Positive = 3
    spacing: PositiveFloat = 3.0
    std: PositiveFloat = 0.5

    def __post_init__(self) -> None:
        index = torch.arange(self.num_modes, dtype=torch.float64)
        self.set_centers((index - (self.num_modes - 1) / 2)[:, None] * self.spacing)


@dataclass(eq=False)
class Skewed1D(ToyDistribution):
    """The Gumbel distribution, skewed to the right: p(x) = exp(−z − e⁻ᶻ)/scale, z = x/scale."""

    scale: PositiveFloat = 1.0
    dim = 1

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        u = torch.rand(n, 1, dtype=torch.float64, generator=generator)
        tiny = torch.finfo(u.dtype).tiny  # u may be 0
        return -self.scale * (-(u.clamp_min(tiny)).log()).log(), None

    def log_prob(self, x: Tensor) -> Tensor:
        z = x[:, 0] / self.scale
        return -z - (-z).exp() - math.log(self.scale)

    @cached_property
    def entropy(self) -> float:
        """ln(scale) + γ + 1, with the Euler–Mascheroni constant γ."""
        return math.log(self.scale) + float(np.euler_gamma) + 1


@dataclass(eq=False)
class SwissRoll(ToyDistribution):
    """A rolled-up rectangle in space, with isotropic Gaussian noise.

    The first two coordinates are the spiral (t cos t, t sin t)/5 with t uniform in [1.5π, 4.5π], as
    in scikit-learn's `make_swiss_roll`. The third one is uniform in [−extent, extent]. So p(x) is
    the density of a noisy curve in the plane, by quadrature, times that of a noisy uniform number.
    """

    std: PositiveFloat = 0.1
    extent: PositiveFloat = 2.0
    dim = 3

    def points_on_spiral(self, u: Tensor) -> Tensor:
        """Return the points (n, 2) of the spiral at u (n,) in [0, 1]."""
        t = 1.5 * math.pi * (1 + 2 * u)
        return torch.stack([t.cos(), t.sin()], 1) * t[:, None] / 5

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        u = torch.rand(n, 2, dtype=torch.float64, generator=generator)
        noise = torch.randn(n, 3, dtype=torch.float64, generator=generator)
        height = self.extent * (2 * u[:, 1:] - 1)
        x = torch.cat([self.points_on_spiral(u[:, 0]), height], 1)
        return x + self.std * noise, None

    @cached_property
    def quadrature_points_and_log_weights(self) -> tuple[Tensor, Tensor]:
        """The points (M, 2) and log-weights (M,) of a Gauss–Legendre quadrature over u."""
        # neighbors are less than half a standard deviation apart, an error below 1e-10 in log p
        nodes = max(64, math.ceil(60 / self.std))
        v, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
        return self.points_on_spiral((v + 1) / 2), (w / 2).log()

    def log_prob(self, x: Tensor) -> Tensor:
        points, log_weights = self.quadrature_points_and_log_weights
        in_plane = gaussian_mixture_log_prob(x[:, :2], points, log_weights, self.std)
        # Φ(b) − Φ(a) with a < b on the side where both are small, which keeps its digits
        z = x[:, 2].abs()
        inside = torch.special.log_ndtr((self.extent - z) / self.std)
        outside = torch.special.log_ndtr((-self.extent - z) / self.std)
        height = inside + torch.log1p(-(outside - inside).exp()) - math.log(2 * self.extent)
        return in_plane + height


TOY_DISTRIBUTIONS: dict[str, type[ToyDistribution]] = {
    "moons": Moons,
    "ring": Ring,
    "grid": Grid,
    "checkerboard": Checkerboard,
    "spirals": Spirals,
    "pinwheel": Pinwheel,
    "gaussian_1d": Gaussian1D,
    "mixture_1d": Mixture1D,
    "skewed_1d": Skewed1D,
    "swiss_roll": SwissRoll,
}
