"""Unbiased kernel distances: the KID, with its cubic kernel, and the Gaussian MMD."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.console import track
from genlab.metrics.base import Row, require_min_items
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space

KERNEL_CHUNK_ROWS = 1000  # rows of a kernel matrix in memory: 80 MB for 10,000 columns
MAX_BANDWIDTH_ITEMS = 2000  # held-out items whose distances determine the bandwidth

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)
# (N, D), (M, D) -> the distance and its standard error
Distance = Callable[[Tensor, Tensor], tuple[float, float]]


def has_image_or_point_samples(context: MetricContext) -> bool:
    """Whether there are samples of images or points."""
    return "sample" in context.abilities and context.spec.kind in ("image", "points")


def kid_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_kid` gives."""
    if not has_image_or_point_samples(context):
        return []
    return [row_name_in_space("kid", space) for space in context.feature_spaces]


def mmd_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_mmd` gives."""
    if not has_image_or_point_samples(context):
        return []
    return [row_name_in_space("mmd", space) for space in context.feature_spaces]


def kernel_inception_distance_and_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the kernel distance (KID) of x (N, D) and y (M, D), and its standard error.

    Bińkowski et al. 2018 (https://arxiv.org/abs/1801.01401), section 4: the squared MMD of the
    kernel (xᵀy/D + 1)³, over all items at once rather than averaged over random subsets. It depends
    on three moments only. See `squared_mmd_and_error`.
    """
    return squared_mmd_and_error(x, y, cubic_kernel)


def gaussian_mmd_and_error(x: Tensor, y: Tensor, bandwidth: float) -> tuple[float, float]:
    """Return the squared Gaussian MMD of x (N, D) and y (M, D), and its standard error.

    Gretton et al. 2012 (https://jmlr.org/papers/v13/gretton12a.html) with the kernel
    exp(−|x − y|² / 2σ²). Its mean is zero only for equal distributions, and at most 2. See
    `squared_mmd_and_error`.

    Args:
        bandwidth: σ, in the features' unit.
    """
    return squared_mmd_and_error(x, y, partial(gaussian_kernel, sigma=bandwidth))


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (xᵀy/D + 1)³ (N, M)."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def gaussian_kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Return exp(−|x − y|² / 2σ²) (N, M)."""
    return torch.cdist(x, y).square_().div_(-2 * sigma**2).exp_()


def median_pairwise_distance(x: Tensor) -> float:
    """Return the median Euclidean distance between items of x (N, D).

    It is the bandwidth of Gretton et al. 2012, section 8.
    """
    require_min_items("a Gaussian MMD", 2, real_items=len(x))
    distance = torch.pdist(x[:MAX_BANDWIDTH_ITEMS].double())
    distance = distance[distance > 0]  # copies of an item do not inform about the scale
    return distance.median().item() if len(distance) else 1.0


def squared_mmd_and_error(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[float, float]:
    """Return the unbiased squared MMD of x (N, D) and y (M, D), and its standard error.

    Gretton et al. 2012, lemma 6. The error is analytic. It is the root of the U-statistic's
    variance, with both orders of its Hoeffding decomposition (as Sutherland et al. 2017,
    https://arxiv.org/abs/1611.04488), so that it also holds near zero, where the first order
    vanishes.

    Raises:
        NotMeasurableError: a set has fewer than two items.
    """
    n, m = len(x), len(y)
    require_min_items("a kernel distance", 2, samples=n, real_items=m)
    x, y = x.double(), y.double()
    xx, yy, xy = (
        kernel_means_within_set(x, kernel),
        kernel_means_within_set(y, kernel),
        kernel_means_between_sets(x, y, kernel),
    )
    value = xx.mean + yy.mean - 2 * xy.mean

    # First order: an item's contribution to the sum, h(x) = E k(x, X') − E k(x, Y). Its variance
    # over the items includes that of the means over finitely many partners, which is subtracted.
    first_x = (xx.rows - xy.rows).var() - xx.residual / n - xy.residual / m
    first_y = (yy.rows - xy.columns).var() - yy.residual / m - xy.residual / n
    first = 4 * first_x.clamp(min=0) / n + 4 * first_y.clamp(min=0) / m
    # Second order: the variance of the pairs given the contributions of both items.
    second = (
        2 * xx.residual / (n * (n - 1))
        + 2 * yy.residual / (m * (m - 1))
        + 4 * xy.residual / (n * m)
    )
    return value.item(), (first + second).sqrt().item()


class KernelMeans(NamedTuple):
    """Means of a kernel matrix, and the variance left after those of rows and columns."""

    mean: Tensor  # ()
    rows: Tensor  # (N,)
    columns: Tensor  # (M,)
    residual: Tensor  # ()


def kernel_means_between_sets(x: Tensor, y: Tensor, kernel: Kernel) -> KernelMeans:
    """Return the means of k(x, y) over all pairs of x (N, D) with y (M, D)."""
    rows, columns, square = x.new_zeros(len(x)), x.new_zeros(len(y)), x.new_zeros(())
    for i in track(range(0, len(x), KERNEL_CHUNK_ROWS), "kernel", unit="chunks"):
        k = kernel(x[i : i + KERNEL_CHUNK_ROWS], y)  # (chunk, M)
        rows[i : i + KERNEL_CHUNK_ROWS] = k.mean(1)
        columns += k.sum(0) / len(x)
        square += k.square_().sum() / (len(x) * len(y))
    mean = rows.mean()
    residual = square - rows.square().mean() - columns.square().mean() + mean**2
    return KernelMeans(mean, rows, columns, residual.clamp(min=0))


def kernel_means_within_set(x: Tensor, kernel: Kernel) -> KernelMeans:
    """Return the means of k(x, x') over all pairs of different items of x (N, D)."""
    n = len(x)
    rows, square = x.new_zeros(n), x.new_zeros(())
    for i in track(range(0, n, KERNEL_CHUNK_ROWS), "kernel", unit="chunks"):
        j = min(i + KERNEL_CHUNK_ROWS, n)
        k = kernel(x[i:j], x[i:])  # (chunk, N − i): the rest follows by symmetry
        k.diagonal().zero_()
        rows[i:j] += k.sum(1) / (n - 1)
        rows[j:] += k[:, j - i :].sum(0) / (n - 1)
        k.square_()
        square += (k.sum() + k[:, j - i :].sum()) / (n * (n - 1))
    mean = rows.mean()
    residual = square - 2 * rows.square().mean() + mean**2
    return KernelMeans(mean, rows, rows, residual.clamp(min=0))


def measure_kid(context: MetricContext) -> list[Row]:
    """Return the kernel distance of n samples to n held-out items in each feature space."""
    return [
        make_distance_row(context, "kid", space, kernel_inception_distance_and_error)
        for space in context.feature_spaces
    ]


def measure_mmd(context: MetricContext) -> list[Row]:
    """Return the squared MMD of n samples to n held-out items in each feature space.

    The bandwidth depends only on the held-out items, so that all models are measured with the same
    kernel.
    """
    rows = []
    for space in context.feature_spaces:
        sigma = median_pairwise_distance(context.features(space, "real"))
        distance = partial(gaussian_mmd_and_error, bandwidth=sigma)
        rows.append(make_distance_row(context, "mmd", space, distance, bandwidth=f"{sigma:.4g}"))
    return rows


def make_distance_row(
    context: MetricContext, metric: str, space: str, distance: Distance, **conditions: str
) -> Row:
    """Return the row of a distance in a feature space."""
    value, error = distance(context.features(space, "generated"), context.features(space, "real"))
    floor = context.floor_distance(space, 2, distance)
    return Row(
        row_name_in_space(metric, space),
        value,
        unit="",
        tag="estimate",
        error=error,
        real_vs_real=None if floor is None else floor[0],
        conditions=context.make_conditions(space, **conditions),
    )
