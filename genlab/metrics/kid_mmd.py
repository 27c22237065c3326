"""Kernel distances between drawn and held-out items, without bias: of the KID's cubic kernel, and of a Gaussian one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named

CHUNK = 1000  # rows of a kernel matrix at a time: 80 MB of 10,000 columns
MEDIAN = 2000  # held-out items whose distances tell the bandwidth

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)
Distance = Callable[
    [Tensor, Tensor], tuple[float, float]
]  # (N, D), (M, D) -> the distance and its standard error


def fits(subject: Subject) -> bool:
    return "sample" in subject.abilities and subject.spec.kind in ("image", "points")


def kid_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `kid_measure` gives."""
    return [named("kernel_distance", space) for space in subject.spaces] if fits(subject) else []


def mmd_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `mmd_measure` gives."""
    return [named("mmd", space) for space in subject.spaces] if fits(subject) else []


def kernel_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the kernel distance (KID) of x (N, D) and y (M, D), and its analytic standard error (see `squared_mmd`).

    Bińkowski et al. 2018 (https://arxiv.org/abs/1801.01401), section 4: the squared MMD of the kernel (xᵀy/D + 1)³,
    of all items at once rather than in the mean over random subsets. It sees three moments and no more.
    """
    return squared_mmd(x, y, cubic)


def gaussian_mmd(x: Tensor, y: Tensor, bandwidth: float) -> tuple[float, float]:
    """Return the squared MMD of x (N, D) and y (M, D), and its analytic standard error (see `squared_mmd`).

    Gretton et al. 2012 (https://jmlr.org/papers/v13/gretton12a.html) with the kernel exp(−|x − y|² / 2σ²); `bandwidth`
    is σ, in the features' unit. It is zero in the mean only where the two laws are the same, and at most 2.
    """
    return squared_mmd(x, y, partial(gaussian, sigma=bandwidth))


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Return (xᵀy/D + 1)³ (N, M)."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def gaussian(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Return exp(−|x − y|² / 2σ²) (N, M)."""
    return torch.cdist(x, y).square_().div_(-2 * sigma**2).exp_()


def median_distance(x: Tensor) -> float:
    """Return the median Euclidean distance of items of x (N, D): the bandwidth of Gretton et al. 2012, section 8."""
    distance = torch.pdist(x[:MEDIAN].double())
    distance = distance[distance > 0]  # copies of an item say nothing about the scale
    return distance.median().item() if len(distance) else 1.0


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[float, float]:
    """Return the unbiased squared MMD of x (N, D) and y (M, D), and its analytic standard error.

    Gretton et al. 2012, lemma 6. The error is the root of the U-statistic's variance, of both orders of its Hoeffding
    decomposition (as Sutherland et al. 2017, https://arxiv.org/abs/1611.04488), so that it also holds near zero, where
    the first order vanishes.

    Raises:
        UserError: there are fewer than two items of a kind.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise UserError(
            f"a kernel distance needs two items of each kind or more; there are {n} and {m}"
        )
    x, y = x.double(), y.double()
    xx, yy, xy = within(x, kernel), within(y, kernel), between(x, y, kernel)
    value = xx.mean + yy.mean - 2 * xy.mean

    # First order: an item's part in the sum, h(x) = E k(x, X') − E k(x, Y). Its variance over the items also holds what
    # the means over finitely many partners vary by, which is taken off.
    first_x = (xx.rows - xy.rows).var() - xx.residual / n - xy.residual / m
    first_y = (yy.rows - xy.columns).var() - yy.residual / m - xy.residual / n
    first = 4 * first_x.clamp(min=0) / n + 4 * first_y.clamp(min=0) / m
    # Second order: what the pairs vary by, given both of their items' parts.
    second = (
        2 * xx.residual / (n * (n - 1))
        + 2 * yy.residual / (m * (m - 1))
        + 4 * xy.residual / (n * m)
    )
    return value.item(), (first + second).sqrt().item()


class Sums(NamedTuple):
    """Of a kernel matrix: its means, and the variance that is left when those of rows and columns are taken off."""

    mean: Tensor  # ()
    rows: Tensor  # (N,)
    columns: Tensor  # (M,)
    residual: Tensor  # ()


def between(x: Tensor, y: Tensor, kernel: Kernel) -> Sums:
    """Return the means of k(x, y) over all pairs of x (N, D) with y (M, D)."""
    rows, columns, square = x.new_zeros(len(x)), x.new_zeros(len(y)), x.new_zeros(())
    for i in range(0, len(x), CHUNK):
        k = kernel(x[i : i + CHUNK], y)  # (chunk, M)
        rows[i : i + CHUNK] = k.mean(1)
        columns += k.sum(0) / len(x)
        square += k.square_().sum() / (len(x) * len(y))
    mean = rows.mean()
    residual = square - rows.square().mean() - columns.square().mean() + mean**2
    return Sums(mean, rows, columns, residual.clamp(min=0))


def within(x: Tensor, kernel: Kernel) -> Sums:
    """Return the means of k(x, x') over all pairs of different items of x (N, D)."""
    n = len(x)
    rows, square = x.new_zeros(n), x.new_zeros(())
    for i in range(0, n, CHUNK):
        j = min(i + CHUNK, n)
        k = kernel(x[i:j], x[i:])  # (chunk, N − i): by symmetry the rest is known
        k.diagonal().zero_()
        rows[i:j] += k.sum(1) / (n - 1)
        rows[j:] += k[:, j - i :].sum(0) / (n - 1)
        k.square_()
        square += (k.sum() + k[:, j - i :].sum()) / (n * (n - 1))
    mean = rows.mean()
    residual = square - 2 * rows.square().mean() + mean**2
    return Sums(mean, rows, rows, residual.clamp(min=0))


def kid_measure(subject: Subject) -> list[Row]:
    """Return the kernel distance of n samples to n held-out items in each feature space, with its floor."""
    return [row(subject, "kernel_distance", space, kernel_distance) for space in subject.spaces]


def mmd_measure(subject: Subject) -> list[Row]:
    """Return the squared MMD of n samples to n held-out items in each feature space, with its floor.

    The bandwidth is that of the held-out items alone, so that all models are held against them with the same kernel.
    """
    found = []
    for space in subject.spaces:
        sigma = median_distance(subject.features(space, "real"))
        found.append(
            row(
                subject,
                "mmd",
                space,
                partial(gaussian_mmd, bandwidth=sigma),
                bandwidth=f"{sigma:.4g}",
            )
        )
    return found


def row(subject: Subject, metric: str, space: str, distance: Distance, **more: str) -> Row:
    """Return the row of a distance in a feature space."""
    value, error = distance(subject.features(space, "drawn"), subject.features(space, "real"))
    floor, _ = distance(subject.features(space, "half"), subject.features(space, "other_half"))
    return Row(
        named(metric, space),
        value,
        "",
        "estimate",
        error,
        floor,
        "lower",
        subject.conditions(space, **more),
    )
