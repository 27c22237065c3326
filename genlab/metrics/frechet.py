"""The Fréchet distance between drawn and held-out items; in Inception's space it is the FID."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = "sample" in subject.abilities and subject.spec.kind in ("image", "points")
    return [named("frechet", space) for space in subject.spaces] if fits else []


def frechet_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return |μx − μy|² + Tr(Σx + Σy − 2 (Σx Σy)^½) of x (N, D) and y (M, D), and its standard error (delta method).

    Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), equation 6; Dowson & Landau 1982. Its unit is the square of
    the features'. Covariances may be singular. It is biased upward, by about (1/N + 1/M) D (D + 5) / 4 for equal laws
    of unit covariance, so that only distances of the same counts compare; and it is blind beyond two moments, which in
    the space of pixels say little. The error is of what the items vary by, not of the bias; it is too large by up to
    two thirds where the laws are nearly the same. Features that are not finite give NaN.

    Raises:
        UserError: there are fewer than two items of a kind.
    """
    if min(len(x), len(y)) < 2:
        raise UserError(
            f"a Fréchet distance needs two items of each kind or more; there are {len(x)} and {len(y)}"
        )
    x, y = x.double(), y.double()
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan, math.nan
    delta = x.mean(0) - y.mean(0)  # (D,)
    x, y = x - x.mean(0), y - y.mean(0)
    l_x, l_y = factor(x), factor(y)  # Σx = Lx Lxᵀ
    # Tr (Σx Σy)^½ = Tr (Lxᵀ Σy Lx)^½ = Tr (K Kᵀ)^½ with K = Lxᵀ Ly = U S Vᵀ
    u, s, vh = torch.linalg.svd(l_x.T @ l_y, full_matrices=False)
    square_x, square_y = x.square().sum(1), y.square().sum(1)  # (N,), (M,)
    trace = square_x.sum() / (len(x) - 1) + square_y.sum() / (len(y) - 1)
    value = delta.square().sum() + trace - 2 * s.sum()

    # Influence of an item, by ∂ Tr(Σx Σy)^½ / ∂Σx = A / 2, where A = Lx⁻ᵀ (K Kᵀ)^½ Lx⁻¹ carries N(0, Σx) to N(0, Σy):
    # 2 δᵀ(x − μx) + (x − μx)ᵀ (I − A) (x − μx), in which (x − μx)ᵀ A (x − μx) is |S^½ Uᵀ Lx⁻¹ (x − μx)|².
    influence_x = x @ (2 * delta) + square_x - (x @ (inverse(l_x) @ u)).square_() @ s
    influence_y = y @ (-2 * delta) + square_y - (y @ (inverse(l_y) @ vh.T)).square_() @ s
    error = (influence_x.var() / len(x) + influence_y.var() / len(y)).sqrt()
    return max(value.item(), 0.0), error.item()  # below 0 it is rounding


def factor(x: Tensor) -> Tensor:
    """Return L (D, R) of orthogonal columns with L Lᵀ the covariance of centred x (N, D), of rank R."""
    n, d = x.shape
    small = x.T @ x if d <= n else x @ x.T  # both have the same values other than 0
    values, vectors = torch.linalg.eigh(small / (n - 1))
    kept = values > values[-1].clamp(min=0) * max(n, d) * torch.finfo(x.dtype).eps
    values, vectors = values[kept], vectors[:, kept]
    return vectors * values.sqrt() if d <= n else x.T @ vectors / (n - 1) ** 0.5


def inverse(factor: Tensor) -> Tensor:
    """Return the transposed pseudo-inverse (D, R) of a factor (D, R), whose columns are orthogonal."""
    return factor / factor.square().sum(0)


def measure(subject: Subject) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space, with its floor."""
    found = []
    for space in subject.spaces:
        value, error = frechet_distance(
            subject.features(space, "drawn"), subject.features(space, "real")
        )
        floor, _ = frechet_distance(
            subject.features(space, "half"), subject.features(space, "other_half")
        )
        conditions = subject.conditions(space)
        found.append(
            Row(named("frechet", space), value, "", "estimate", error, floor, "lower", conditions)
        )
    return found
