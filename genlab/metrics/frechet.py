"""The Fréchet distance of generated and held-out items; FID in Inception's space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics.base import Row, require_min_items
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "sample" not in context.abilities or context.spec.kind not in ("image", "points"):
        return []
    return [row_name_in_space("frechet", space) for space in context.feature_spaces]


def frechet_distance_and_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the Fréchet distance of x (N, D) and y (M, D), and its standard error.

    |μx − μy|² + Tr(Σx + Σy − 2 (Σx Σy)^½): Heusel et al. 2017 (https://arxiv.org/abs/1706.08500),
    equation 6; Dowson & Landau 1982. Its unit is the square of the features'. Covariances may be
    singular.

    It is biased upward, by about (1/N + 1/M) D (D + 5) / 4 for equal distributions of unit
    covariance, so only distances with the same counts are comparable. It ignores all moments above
    the second; the first two moments of pixels are not informative. The error (delta method) covers
    the variation of the items, not the bias; it is too large by up to two thirds where the
    distributions are nearly equal. Features that are not finite give NaN.

    Raises:
        NotMeasurableError: a set has fewer than two items.
    """
    require_min_items("a Fréchet distance", 2, samples=len(x), real_items=len(y))
    x, y = x.double(), y.double()
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan, math.nan
    delta = x.mean(0) - y.mean(0)  # (D,)
    x, y = x - x.mean(0), y - y.mean(0)
    l_x, l_y = covariance_factor(x), covariance_factor(y)  # Σx = Lx Lxᵀ
    # Tr (Σx Σy)^½ = Tr (Lxᵀ Σy Lx)^½ = Tr (K Kᵀ)^½ with K = Lxᵀ Ly = U S Vᵀ
    u, s, vh = torch.linalg.svd(l_x.T @ l_y, full_matrices=False)
    square_x, square_y = x.square().sum(1), y.square().sum(1)  # (N,), (M,)
    trace = square_x.sum() / (len(x) - 1) + square_y.sum() / (len(y) - 1)
    value = delta.square().sum() + trace - 2 * s.sum()

    # Influence of an item, by ∂ Tr(Σx Σy)^½ / ∂Σx = A / 2, where A = Lx⁻ᵀ (K Kᵀ)^½ Lx⁻¹ carries
    # N(0, Σx) to N(0, Σy): 2 δᵀ(x − μx) + (x − μx)ᵀ (I − A) (x − μx), where
    # (x − μx)ᵀ A (x − μx) is |S^½ Uᵀ Lx⁻¹ (x − μx)|².
    influence_x = (
        x @ (2 * delta) + square_x - (x @ (transposed_pseudo_inverse(l_x) @ u)).square_() @ s
    )
    influence_y = (
        y @ (-2 * delta) + square_y - (y @ (transposed_pseudo_inverse(l_y) @ vh.T)).square_() @ s
    )
    error = (influence_x.var() / len(x) + influence_y.var() / len(y)).sqrt()
    return max(value.item(), 0.0), error.item()  # below 0 only by rounding


def covariance_factor(x: Tensor) -> Tensor:
    """Return L (D, R) with orthogonal columns and L Lᵀ the covariance of centered x (N, D).

    R is the rank of the covariance.
    """
    n, d = x.shape
    gram = x.T @ x if d <= n else x @ x.T  # both have the same nonzero eigenvalues
    values, vectors = torch.linalg.eigh(gram / (n - 1))
    nonzero = values > values[-1].clamp(min=0) * max(n, d) * torch.finfo(x.dtype).eps
    values, vectors = values[nonzero], vectors[:, nonzero]
    return vectors * values.sqrt() if d <= n else x.T @ vectors / (n - 1) ** 0.5


def transposed_pseudo_inverse(factor: Tensor) -> Tensor:
    """Return the transposed pseudo-inverse (D, R) of a factor (D, R) with orthogonal columns."""
    return factor / factor.square().sum(0)


def measure(context: MetricContext) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space."""
    rows = []
    for space in context.feature_spaces:
        value, error = frechet_distance_and_error(
            context.features(space, "generated"), context.features(space, "real")
        )
        floor = context.floor_distance(space, 2, frechet_distance_and_error)
        rows.append(
            Row(
                row_name_in_space("frechet", space),
                value,
                unit="",
                tag="estimate",
                error=error,
                real_vs_real=None if floor is None else floor[0],
                conditions=context.make_conditions(space),
            )
        )
    return rows
