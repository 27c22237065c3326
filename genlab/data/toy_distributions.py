"""Laws of points in the plane that are drawn exactly and whose log-density is known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genlab.spec import Positive, PositiveFloat

GAUSS = 1 + math.log(2 * math.pi)  # entropy of a standard normal in the plane, in nats


class Law:
    """A law in the plane: `sample(n, generator) -> (x (n, 2), y (n,))`, `log_prob(x) -> (B,)` and `entropy` in nats."""

    classes: int = 0
    centers: Tensor | None = (
        None  # (M, 2) of a mixture of round Gaussians with standard deviation `std`
    )

    @cached_property
    def entropy(self) -> float:
        """Entropy in nats, the mean of −log p over 50,000 draws where no closed form is at hand."""
        x, _ = self.sample(50_000, torch.Generator().manual_seed(0))
        return -self.log_prob(x).mean().item()


def mixture(x: Tensor, centers: Tensor, log_weights: Tensor, std: float) -> Tensor:
    """Return log Σₘ wₘ N(x; cₘ, std² I) (B,) of x (B, 2)."""
    centers, log_weights = centers.to(x), log_weights.to(x)
    terms = []
    for part in x.split(max(1, 1_000_000 // len(centers))):  # bounds the memory of (B, M)
        square = (part[:, :1] - centers[:, 0]).square() + (
            part[:, 1:] - centers[:, 1]
        ).square()  # (B, M)
        terms.append(torch.logsumexp(log_weights - square / (2 * std**2), 1))
    return torch.cat(terms) - math.log(2 * math.pi * std**2)


class Modes(Law):
    """Equally likely round Gaussians; the label is the mode."""

    std: float

    def hold(self, centers: Tensor) -> None:
        self.centers, self.classes = centers, len(centers)
        self.log_weights = torch.full((self.classes,), -math.log(self.classes), dtype=centers.dtype)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, self.classes, (n,), generator=generator)
        noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
        return self.centers[y] + self.std * noise, y

    def log_prob(self, x: Tensor) -> Tensor:
        return mixture(x, self.centers, self.log_weights, self.std)

    @cached_property
    def entropy(self) -> float:
        """ln M + ln(2πe std²) where the modes do not overlap (12 standard deviations apart: 1e-8 nats)."""
        apart = torch.pdist(self.centers).min().item() if self.classes > 1 else math.inf
        if apart < 12 * self.std:
            return Law.entropy.func(self)
        return math.log(self.classes) + GAUSS + 2 * math.log(self.std)


@dataclass(eq=False)
class Ring(Modes):
    """`modes` Gaussians on a circle."""

    radius: PositiveFloat = 2.0
    std: PositiveFloat = 0.1
    modes: Positive = 8

    def __post_init__(self) -> None:
        angle = torch.arange(self.modes, dtype=torch.float64) * (2 * math.pi / self.modes)
        self.hold(self.radius * torch.stack([angle.cos(), angle.sin()], 1))


@dataclass(eq=False)
class Grid(Modes):
    """`side`² Gaussians on a square grid around the origin."""

    side: Positive = 5
    spacing: PositiveFloat = 2.0
    std: PositiveFloat = 0.05

    def __post_init__(self) -> None:
        at = (torch.arange(self.side, dtype=torch.float64) - (self.side - 1) / 2) * self.spacing
        self.hold(torch.cartesian_prod(at, at).reshape(-1, 2))


@dataclass(eq=False)
class Checkerboard(Law):
    """Uniform on every second one of 4×4 squares, which tile [−extent, extent]²."""

    extent: PositiveFloat = 4.0

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        u = torch.rand(n, 2, dtype=torch.float64, generator=generator)
        cell = torch.randint(0, 8, (n,), generator=generator)
        row = cell // 2  # (n,) 0 … 3; its two squares are columns of the row's parity
        column = 2 * (cell % 2) + row % 2
        return (torch.stack([column, row], 1) + u) * (self.extent / 2) - self.extent, None

    def log_prob(self, x: Tensor) -> Tensor:
        square = ((x + self.extent) / (self.extent / 2)).floor()  # (B, 2)
        inside = ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)
        return torch.where(inside, -self.entropy, -math.inf).to(x.dtype)

    @cached_property
    def entropy(self) -> float:
        """ln of the area, which is half of the square's."""
        return math.log(2 * self.extent**2)


class Curves(Law, ABC):
    """Two curves with round Gaussian noise: p(x) = ½ Σ_c ∫₀¹ N(x; γ_c(u), std² I) du, by Gauss–Legendre quadrature.

    `curve(u, y)` gives the points γ_y(u) (n, 2). `nodes` over `std` nodes leave an error near 1e-10 in log p.
    """

    classes = 2
    nodes: float
    std: float

    @abstractmethod
    def curve(self, u: Tensor, y: Tensor) -> Tensor:
        """Return γ_y(u) (n, 2) of u (n,) in [0, 1] and y (n,)."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, 2, (n,), generator=generator)
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        return self.curve(u, y) + self.std * torch.randn(
            n, 2, dtype=torch.float64, generator=generator
        ), y

    @cached_property
    def quadrature(self) -> tuple[Tensor, Tensor]:
        """The points (M, 2) and log-weights (M,)."""
        nodes = max(64, math.ceil(self.nodes / self.std))
        v, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
        v, w = (
            (v + 1) / 2,
            w / 2,
        )  # on [0, 1]; u = v² packs the nodes where u's curve is fast: du = 2 v dv
        points = [self.curve(v**2, torch.full_like(v, c, dtype=torch.int64)) for c in range(2)]
        return torch.cat(points), (w * v).log().repeat(2)  # ½ · 2 v w

    def log_prob(self, x: Tensor) -> Tensor:
        points, log_weights = self.quadrature
        return mixture(x, points, log_weights, self.std)


@dataclass(eq=False)
class Moons(Curves):
    """Two half circles of radius 1 that interlock, as scikit-learn's `make_moons` places them."""

    std: PositiveFloat = 0.1
    nodes = 12

    def curve(self, u: Tensor, y: Tensor) -> Tensor:
        angle = math.pi * u
        upper = torch.stack([angle.cos(), angle.sin()], 1)
        return torch.where(y[:, None] == 0, upper, torch.tensor([1.0, 0.5], dtype=u.dtype) - upper)


@dataclass(eq=False)
class Spirals(Curves):
    """Two arms of one and a half turns, of radius t/3 at the angle t = 3π√u."""

    std: PositiveFloat = 0.1
    nodes = 40

    def curve(self, u: Tensor, y: Tensor) -> Tensor:
        t = 3 * math.pi * u.sqrt()
        arm = torch.stack([-t.cos(), t.sin()], 1) * t[:, None] / 3
        return torch.where(y[:, None] == 0, arm, -arm)


@dataclass(eq=False)
class Pinwheel(Law):
    """`modes` long Gaussian blades around the origin, twisted by an angle that grows with the radius.

    A rotation by an angle of the radius alone keeps area, so the density is that of the straight blades.
    """

    modes: Positive = 5
    radius: PositiveFloat = 2.0
    std: PositiveFloat = 0.6  # along a blade; a sixth of it across
    twist: float = 0.5  # radians a unit of radius

    def __post_init__(self) -> None:
        self.classes = self.modes
        self.spread = torch.tensor([self.std, self.std / 6], dtype=torch.float64)

    def turned(self, x: Tensor, y: Tensor, sign: int) -> Tensor:
        """Return x (n, 2) turned by sign · (2π y / modes + twist · |x|)."""
        angle = sign * (2 * math.pi / self.modes * y + self.twist * x.norm(dim=-1))
        cos, sin = angle.cos(), angle.sin()
        return torch.stack(
            [cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1
        )

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, self.modes, (n,), generator=generator)
        blade = torch.randn(n, 2, dtype=torch.float64, generator=generator) * self.spread
        return self.turned(blade + torch.tensor([self.radius, 0.0], dtype=torch.float64), y, 1), y

    def log_prob(self, x: Tensor) -> Tensor:
        y = torch.arange(self.modes, device=x.device)
        straight = self.turned(x[:, None], y, -1)  # (B, M, 2)
        z = (straight - straight.new_tensor([self.radius, 0.0])) / self.spread.to(x)
        terms = -z.square().sum(-1) / 2  # (B, M)
        return (
            torch.logsumexp(terms, 1)
            - math.log(2 * math.pi * self.modes)
            - self.spread.log().sum().item()
        )


LAWS: dict[str, type[Law]] = {
    "moons": Moons,
    "ring": Ring,
    "grid": Grid,
    "checkerboard": Checkerboard,
    "spirals": Spirals,
    "pinwheel": Pinwheel,
}
