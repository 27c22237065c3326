"""Precision and recall, density and coverage (PRDC): how samples and real items overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.console import track
from genlab.metrics.base import NotMeasurableError, Row
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space

K_PRECISION = 3  # nearest neighbors, as in Kynkäänniemi et al.
K_DENSITY = 5  # as in Naeem et al.
MIN_ITEMS = max(K_PRECISION, K_DENSITY) + 1  # of each set
NUM_PARTS = 10  # of each set, whose spread gives the standard error
NUM_CUTS = 8  # random cuts into parts, over which the spread is averaged
MAX_BLOCK_DISTANCES = 2_000_000  # distances in memory at once: few enough to stay in the cache
MIN_BLOCK_ROWS = 128  # so that a matrix product is efficient
# Squared distances below this fraction of the items' squared norms are only rounding.
EQUAL_TOLERANCE = 1e-12
RADIUS_TOLERANCE = 1 + 1e-9  # a point on the surface of a ball, up to rounding, is inside


class PRDC(NamedTuple):
    """Precision, recall, density and coverage of two sets, in the order of their rows."""

    precision: float
    recall: float
    density: float
    coverage: float


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "sample" not in context.abilities or context.spec.kind not in ("image", "points"):
        return []
    return [
        row_name_in_space(name, space) for space in context.feature_spaces for name in PRDC._fields
    ]


def prdc(real: Tensor, fake: Tensor, *, k: int = K_PRECISION, k_density: int = K_DENSITY) -> PRDC:
    """Return precision, recall, density and coverage.

    They compare fake items (M, D) with real ones (N, D). B_k(z) is the ball around an item that
    reaches its k-th nearest neighbor in its own set. Precision is the fraction of fake items in the
    ball of a real one, recall the fraction of real items in the ball of a fake one (Kynkäänniemi et
    al. 2019, https://arxiv.org/abs/1904.06991, equations 1 and 2). Density is the number of real
    balls that contain a fake item, over k, and coverage the fraction of real balls that contain a
    fake item (Naeem et al. 2020, https://arxiv.org/abs/2002.09797, section 3). For equal
    distributions density is 1 on average, and may be more; coverage is then 1 − (N−1)…(N−k) /
    ((N+M−1)…(N+M−k)), about 1 − 2^−k.

    A ball includes its surface, as in the first paper: a copy of an item is in every ball that the
    item is in, and k + 1 equal items have balls of radius 0, which contain only further copies.

    Raises:
        NotMeasurableError: a set does not have a k-th neighbor.
    """
    n, m, largest_k = len(real), len(fake), max(k, k_density)
    if min(n, m) <= largest_k:
        raise NotMeasurableError(
            f"precision, recall, density and coverage require more than {largest_k} items in each "
            f"set, not {n} and {m}"
        )
    # the smaller the norms, the less |x|² + |y|² − 2 x·y is rounded
    center = real.double().mean(0)
    real, fake = real.double() - center, fake.double() - center
    real_k, real_kd = kth_neighbor_squared_distances(real, (k, k_density))  # (N,) each
    (fake_k,) = kth_neighbor_squared_distances(fake, (k,))  # (M,)
    in_real = torch.zeros(m, dtype=torch.bool)  # (M,) whether it is in some real ball of k
    num_balls = torch.zeros(m, dtype=torch.float64)  # (M,) the real balls of k_density it is in
    in_fake, covered = [], []  # of (N,)
    for rows, d in iterate_squared_distance_blocks(real, fake):  # (B, M)
        in_fake.append((d <= fake_k).any(1))
        in_real |= (d <= real_k[rows, None]).any(0)
        in_ball = d <= real_kd[rows, None]
        num_balls += in_ball.float().sum(0)  # several times as fast as on booleans
        covered.append(in_ball.any(1))
    values = (in_real, torch.cat(in_fake), num_balls / k_density, torch.cat(covered))
    return PRDC(*(x.double().mean().item() for x in values))


def prdc_standard_errors(
    real: Tensor, fake: Tensor, *, k: int = K_PRECISION, k_density: int = K_DENSITY
) -> list[float | None]:
    """Return the standard errors of the four numbers: their spread over 10 parts, over √10.

    Both sets are cut into parts, because items that use the same balls are not independent (the
    binomial error is up to 3 times too small), and because a bootstrap's copies would be each
    other's neighbors. The spread is averaged over several random cuts, since that of one is within
    a quarter of its mean only; it is not below the binomial error. The errors are None if a part
    has too few items.
    """
    n, m = len(real), len(fake)
    if min(n, m) < 2 * NUM_PARTS * (max(k, k_density) + 1):
        return [None] * 4
    generator = torch.Generator().manual_seed(0)
    variances, means = [], []
    for _ in range(NUM_CUTS):
        shuffled = (x[torch.randperm(len(x), generator=generator)] for x in (real, fake))
        parts = zip(*(x.tensor_split(NUM_PARTS) for x in shuffled), strict=True)
        values = torch.tensor(
            [prdc(a, b, k=k, k_density=k_density) for a, b in parts], dtype=torch.float64
        )  # (NUM_PARTS, 4)
        variances.append(values.var(0) / NUM_PARTS)
        means.append(values.mean(0))
    share = torch.stack(means).mean(0).clamp(max=1)  # of a density, which is not a share, below 1
    binomial = share * (1 - share) / torch.tensor([m, n, m, n])
    error = torch.maximum(torch.stack(variances).mean(0), binomial).sqrt()
    return [*map(float, error)]


def kth_neighbor_squared_distances(x: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """Return the squared distances (N,) of x (N, D) to their k-th neighbors, for each k."""
    # an item's nearest neighbor is the item itself
    near = [
        d.topk(max(ks) + 1, largest=False).values for _, d in iterate_squared_distance_blocks(x, x)
    ]
    return [torch.cat(near)[:, k] * RADIUS_TOLERANCE for k in ks]


def iterate_squared_distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of x (N, D) with their squared distances (B, M) to y (M, D).

    They are 0 between equal items.
    """
    size = max(MIN_BLOCK_ROWS, MAX_BLOCK_DISTANCES // len(y))
    x_square, y_square = x.square().sum(1), y.square().sum(1)
    for i in track(range(0, len(x), size), "distances", unit="blocks"):
        rows = slice(i, i + size)
        norms = x_square[rows, None] + y_square  # (B, M)
        d = torch.addmm(norms, x[rows], y.T, alpha=-2)
        yield rows, d.masked_fill_(d <= norms.mul_(EQUAL_TOLERANCE), 0)


def measure(context: MetricContext) -> list[Row]:
    """Return the four numbers of n samples and n held-out items in each feature space."""
    rows = []
    for space in context.feature_spaces:
        generated, real = (context.features(space, which) for which in ("generated", "real"))
        floor: Sequence[float | None] | None = context.floor_distance(
            space, MIN_ITEMS, lambda fresh, real: prdc(real, fresh)
        )
        numbers = zip(
            PRDC._fields,
            prdc(real, generated),
            prdc_standard_errors(real, generated),
            floor or [None] * len(PRDC._fields),
            strict=True,
        )
        for name, value, error, real_vs_real in numbers:
            k = K_PRECISION if name in ("precision", "recall") else K_DENSITY
            rows.append(
                Row(
                    row_name_in_space(name, space),
                    value,
                    "balls/k" if name == "density" else "share",
                    "estimate",
                    error,
                    real_vs_real,
                    "higher",
                    context.make_conditions(space, k=k),
                )
            )
    return rows
