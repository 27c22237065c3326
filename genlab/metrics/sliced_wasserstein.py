"""The sliced Wasserstein distance: optimal transport along random lines, by sorting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics.base import Row, require_min_items
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space

NUM_DIRECTIONS = 512
DIRECTIONS_PER_BATCH = 32  # projected and sorted together


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "sample" not in context.abilities or context.spec.kind not in ("image", "points"):
        return []
    return [row_name_in_space("sliced_wasserstein", space) for space in context.feature_spaces]


def sliced_wasserstein_and_error(
    x: Tensor, y: Tensor, *, directions: int = NUM_DIRECTIONS, seed: int = 0
) -> tuple[float, float]:
    """Return the sliced 2-Wasserstein distance of x (N, D) and y (M, D), and its error.

    SW₂² = E_θ W₂²(θ·x, θ·y) over unit directions θ (Rabin et al. 2011, "Wasserstein barycenter and
    its application to texture mixing"; Bonneel et al. 2015, "Sliced and Radon Wasserstein
    barycenters of measures"), in the units of the items. Each W₂² is exact: the empirical quantile
    functions are steps, also where N ≠ M.

    The error covers the sampling of the items and of the directions. That of the items is the delta
    method: the first variation of W₂² is the Kantorovich potential φ with φ'(u) = 2 (u − T(u)) for
    the optimal map T (del Barrio & Loubes 2019, "Central limit theorems for empirical
    transportation cost in general dimension"), here its mean over directions. The distance of two
    finite samples of the same distribution is above 0 (about `Row.real_vs_real`); there the error
    is up to twice too large.

    Raises:
        NotMeasurableError: a set has fewer than two items.
    """
    require_min_items("a sliced Wasserstein distance", 2, samples=len(x), real_items=len(y))
    x, y = x.double(), y.double()
    n, m, dim = len(x), len(y), x.shape[1]
    i, j, weight = monotone_coupling(n, m)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.functional.normalize(
        torch.randn(directions, dim, generator=generator, dtype=torch.float64)
    )
    squares = []
    phi, psi = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    for lines in theta.split(DIRECTIONS_PER_BATCH):  # (L, D)
        u, u_order = (lines @ x.T).sort(1)  # (L, N)
        v, v_order = (lines @ y.T).sort(1)  # (L, M)
        shift = u[:, i] - v[:, j]  # (L, P) of each piece of mass
        squares.append((weight * shift.square()).sum(1))
        shift_x = torch.zeros_like(u).index_add_(1, i, shift * weight * n)
        shift_y = torch.zeros_like(v).index_add_(1, j, -shift * weight * m)
        phi += kantorovich_potential(u, shift_x, u_order)
        psi += kantorovich_potential(v, shift_y, v_order)
    square = torch.cat(squares)  # (directions,)
    value = square.mean().sqrt().item()
    variance = (
        (phi / directions).var().item() / n
        + (psi / directions).var().item() / m
        + square.var().item() / directions
    )
    return value, math.sqrt(variance) / (2 * value) if value else 0.0


def monotone_coupling(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the monotone coupling of n and m equal masses.

    It is indices into each (P,), and the weights (P,) of the pieces, which sum to 1.
    """
    # in units of 1/(n m), exact
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def kantorovich_potential(u: Tensor, shift: Tensor, order: Tensor) -> Tensor:
    """Return Σ over lines of φ (N,) at each item.

    Args:
        u: sorted projections (L, N).
        shift: u − T(u) (L, N).
        order: the items of the sorted projections (L, N).
    """
    steps = (shift[:, 1:] + shift[:, :-1]) * u.diff(dim=1)  # ∫ 2 (u − T(u)) du, trapezoid rule
    phi = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    phi -= phi.mean(1, keepdim=True)
    return torch.zeros_like(u).scatter_(1, order, phi).sum(0)


def measure(context: MetricContext) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space."""
    rows, seed = [], context.settings.seed
    for space in context.feature_spaces:
        value, error = sliced_wasserstein_and_error(
            context.features(space, "generated"), context.features(space, "real"), seed=seed
        )
        floor = context.floor_distance(
            space, 2, lambda a, b: sliced_wasserstein_and_error(a, b, seed=seed)
        )
        rows.append(
            Row(
                row_name_in_space("sliced_wasserstein", space),
                value,
                "distance",
                "estimate",
                error,
                None if floor is None else floor[0],
                conditions=context.make_conditions(space, directions=NUM_DIRECTIONS),
            )
        )
    return rows
