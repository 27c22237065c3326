"""Grids of cells on the line or in the plane, and integrals over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 0.15  # of a range around data, relative to its length


@dataclass(frozen=True)
class Grid:
    """Equal cells that fill an interval or a rectangle.

    Attributes:
        edges: of the cells along each axis, float64 (cells + 1,).
    """

    edges: tuple[Tensor, ...]

    @classmethod
    def around(
        cls,
        x: Tensor,
        cells: int,
        limits: tuple[float, float] | None = None,
        *,
        margin: float = MARGIN,
    ) -> Grid:
        """Return a grid with `cells` cells along each axis.

        Args:
            x: points (N, D) that it covers, with a margin.
            limits: the range of each axis instead.
            margin: relative to the length of the range of the points.
        """
        edges = []
        for values in x.double().cpu().T:
            low, high = limits or (values.min().item(), values.max().item())
            more = 0.0 if limits else margin * ((high - low) or 1.0)
            edges.append(torch.linspace(low - more, high + more, cells + 1, dtype=torch.float64))
        return cls(tuple(edges))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of cells along each axis."""
        return tuple(len(edges) - 1 for edges in self.edges)

    @property
    def centers(self) -> tuple[Tensor, ...]:
        """The centers (cells,) of the cells along each axis."""
        return tuple((edges[1:] + edges[:-1]) / 2 for edges in self.edges)

    @property
    def cell_volume(self) -> float:
        """The length or area of a cell."""
        return math.prod((edges[1] - edges[0]).item() for edges in self.edges)

    @property
    def ranges(self) -> list[list[float]]:
        """The lower and upper end of each axis."""
        return [[edges[0].item(), edges[-1].item()] for edges in self.edges]

    def points(self) -> Tensor:
        """Return the centers of all cells, float64 (*shape flattened, D)."""
        return torch.cartesian_prod(*self.centers).view(-1, len(self.edges))

    def integrate(self, values: Tensor) -> float:
        """Return the integral of a function with these values (*shape) at the centers.

        The midpoint rule converges exponentially for a smooth function that vanishes at the border.
        """
        return values.sum().item() * self.cell_volume


def total_variation(grid: Grid, p: Tensor, q: Tensor) -> float:
    """Return ½ ∫ |p − q| dx over a grid, of densities (*shape)."""
    return grid.integrate((p - q).abs()) / 2


def kl_divergence(grid: Grid, p: Tensor, log_ratio: Tensor) -> float:
    """Return ∫ p (log p − log q) dx in nats over a grid.

    Args:
        p: the density (*shape).
        log_ratio: log p − log q (*shape).
    """
    return grid.integrate(torch.where(p > 0, p * log_ratio, 0.0))
