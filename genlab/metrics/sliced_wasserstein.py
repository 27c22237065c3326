"""The sliced Wasserstein distance: optimal transport along random lines, where sorting solves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named

DIRECTIONS = 512
AT_ONCE = 32  # directions projected and sorted together


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = "sample" in subject.abilities and subject.spec.kind in ("image", "points")
    return [named("sliced_wasserstein", space) for space in subject.spaces] if fits else []


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, directions: int = DIRECTIONS, seed: int = 0
) -> tuple[float, float]:
    """Return the sliced 2-Wasserstein distance of x (N, D) and y (M, D), in their units, and its standard error.

    SW₂² = E_θ W₂²(θ·x, θ·y) over unit directions θ (Rabin et al. 2011, "Wasserstein barycenter and its application to
    texture mixing"; Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures"). Each W₂² is exact: the
    empirical quantile functions are steps, also where N ≠ M.

    The error holds the sampling of the items and of the directions. That of the items is the delta method: the first
    variation of W₂² is the Kantorovich potential φ with φ'(u) = 2 (u − T(u)) for the optimal map T (del Barrio & Loubes
    2019, "Central limit theorems for empirical transportation cost in general dimension"), here its mean over directions.
    The distance of two finite samples of one law is above 0, by about the floor that is told with it; there the error is
    up to twice too wide.
    """
    x, y = x.double(), y.double()
    n, m, dim = len(x), len(y), x.shape[1]
    i, j, weight = coupling(n, m)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.functional.normalize(
        torch.randn(directions, dim, generator=generator, dtype=torch.float64)
    )
    squares = []
    phi, psi = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    for some in theta.split(AT_ONCE):  # (L, D)
        u, u_order = (some @ x.T).sort(1)  # (L, N)
        v, v_order = (some @ y.T).sort(1)  # (L, M)
        move = u[:, i] - v[:, j]  # (L, P) of each piece of mass
        squares.append((weight * move.square()).sum(1))
        phi += potential(u, torch.zeros_like(u).index_add_(1, i, move * weight * n), u_order)
        psi += potential(v, torch.zeros_like(v).index_add_(1, j, -move * weight * m), v_order)
    square = torch.cat(squares)  # (directions,)
    value = square.mean().sqrt().item()
    variance = (
        (phi / directions).var().item() / n
        + (psi / directions).var().item() / m
        + square.var().item() / directions
    )
    return value, math.sqrt(variance) / (2 * value) if value else 0.0


def coupling(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the monotone coupling of n and m equal masses: indices into each, and weights (P,) that sum to 1."""
    ends = torch.cat(
        [torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]
    ).unique()  # in units of 1/(n m), exact
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def potential(u: Tensor, move: Tensor, order: Tensor) -> Tensor:
    """Return Σ over lines of φ (N,) at each item; u (L, N) sorted places, move (L, N) = u − T(u), order (L, N)."""
    steps = (move[:, 1:] + move[:, :-1]) * u.diff(dim=1)  # ∫ 2 (u − T(u)) du by the trapezoid rule
    phi = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    phi -= phi.mean(1, keepdim=True)
    return torch.zeros_like(u).scatter_(1, order, phi).sum(0)


def measure(subject: Subject) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space, with its floor."""
    found, seed = [], subject.settings.seed
    for space in subject.spaces:
        drawn, real, half, other = (
            subject.features(space, w) for w in ("drawn", "real", "half", "other_half")
        )
        value, error = sliced_wasserstein(drawn, real, seed=seed)
        floor, _ = sliced_wasserstein(half, other, seed=seed)
        conditions = subject.conditions(space, directions=DIRECTIONS)
        name = named("sliced_wasserstein", space)
        found.append(Row(name, value, "distance", "estimate", error, floor, "lower", conditions))
    return found
