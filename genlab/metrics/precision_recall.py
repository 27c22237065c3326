"""Precision and recall, density and coverage: which samples lie where real items do, and which real items are reached."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named

K_PRECISION = 3  # neighbours, as Kynkäänniemi et al. take them
K_DENSITY = 5  # as Naeem et al. do
PARTS = 10  # of each set, whose spread is the standard error
BLOCK = 2_000_000  # distances held at once: few enough to stay near the processor
ROWS = 128  # at least, so that a product of matrices is worth its name
EQUAL = 1e-12  # of the squares of two items' norms: a squared distance below it is rounding alone
INSIDE = 1 + 1e-9  # on the surface of a ball, up to rounding, is inside


class Manifold(NamedTuple):
    """The four numbers of two sets, in the order of their rows."""

    precision: float
    recall: float
    density: float
    coverage: float


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = "sample" in subject.abilities and subject.spec.kind in ("image", "points")
    return (
        [named(name, space) for space in subject.spaces for name in Manifold._fields]
        if fits
        else []
    )


def manifold(
    real: Tensor, fake: Tensor, *, k: int = K_PRECISION, k_density: int = K_DENSITY
) -> Manifold:
    """Return how the fake items (M, D) and the real ones (N, D) lie in the balls around each other.

    B_k(z) is the ball around an item that reaches its k-th nearest neighbour in its own set. Precision is the share of
    fake items in the ball of a real one, recall the share of real items in the ball of a fake one (Kynkäänniemi et al.
    2019, https://arxiv.org/abs/1904.06991, equations 1 and 2). Density is how many real balls hold a fake item, over k,
    and coverage the share of real balls that hold a fake item (Naeem et al. 2020, https://arxiv.org/abs/2002.09797,
    section 3): for equal laws density is 1 in the mean, and may be more; coverage is then
    1 − (N−1)…(N−k) / ((N+M−1)…(N+M−k)), about 1 − 2^−k.

    A ball holds its surface, as in the first paper: a copy of an item is in every ball that the item is in, and k + 1
    equal items have balls of radius 0, which hold only further copies.

    Raises:
        UserError: a set has no k-th neighbour.
    """
    n, m, most = len(real), len(fake), max(k, k_density)
    if min(n, m) <= most:
        raise UserError(
            f"precision, recall, density and coverage need more than {most} items in each set, not {n} and {m}"
        )
    center = real.double().mean(0)  # less is lost in |x|² + |y|² − 2 x·y where the norms are small
    real, fake = real.double() - center, fake.double() - center
    real_k, real_kd = radii(real, (k, k_density))  # (N,) each
    (fake_k,) = radii(fake, (k,))  # (M,)
    in_real = torch.zeros(m, dtype=torch.bool)  # (M,) whether some real ball of k holds it
    held_by = torch.zeros(m, dtype=torch.float64)  # (M,) how many real balls of k_density hold it
    in_fake, covered = [], []  # of (N,)
    for where, d in blocks(real, fake):  # (B, M)
        in_fake.append((d <= fake_k).any(1))
        in_real |= (d <= real_k[where, None]).any(0)
        held = d <= real_kd[where, None]
        held_by += held.float().sum(0)  # several times as fast as of booleans
        covered.append(held.any(1))
    means = (in_real, torch.cat(in_fake), held_by / k_density, torch.cat(covered))
    return Manifold(*(x.double().mean().item() for x in means))


def errors(
    real: Tensor, fake: Tensor, *, k: int = K_PRECISION, k_density: int = K_DENSITY
) -> list[float | None]:
    """Return the standard errors of the four numbers: their spread over 10 parts of both sets, over √10.

    Parts, since items judged by the same balls are not independent (the binomial error is up to 3 times too small) and
    since a bootstrap's copies would be each other's neighbours. None where a part has too few items.
    """
    if min(len(real), len(fake)) < 2 * PARTS * (max(k, k_density) + 1):
        return [None] * 4
    parts = zip(real.tensor_split(PARTS), fake.tensor_split(PARTS), strict=True)
    each = torch.tensor(
        [manifold(a, b, k=k, k_density=k_density) for a, b in parts], dtype=torch.float64
    )  # (PARTS, 4)
    return (each.std(0) / math.sqrt(PARTS)).tolist()


def radii(x: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """Return of each item of x (N, D) the squared distance (N,) to its k-th nearest neighbour in x, for each k."""
    near = [
        d.topk(max(ks) + 1, largest=False).values for _, d in blocks(x, x)
    ]  # the item itself comes first
    return [torch.cat(near)[:, k] * INSIDE for k in ks]


def blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of x (N, D) and their squared distances (B, M) to y (M, D), which are 0 between equal items."""
    size = max(ROWS, BLOCK // len(y))
    x_square, y_square = x.square().sum(1), y.square().sum(1)
    for i in range(0, len(x), size):
        where = slice(i, i + size)
        norms = x_square[where, None] + y_square  # (B, M)
        d = torch.addmm(norms, x[where], y.T, alpha=-2)
        yield where, d.masked_fill_(d <= norms.mul_(EQUAL), 0)


def measure(subject: Subject) -> list[Row]:
    """Return the four numbers of n samples against n held-out items in each feature space, with their floors."""
    found = []
    for space in subject.spaces:
        real, drawn, half, other = (
            subject.features(space, w) for w in ("real", "drawn", "half", "other_half")
        )
        numbers = zip(
            Manifold._fields,
            manifold(real, drawn),
            errors(real, drawn),
            manifold(half, other),
            strict=True,
        )
        for name, value, error, floor in numbers:
            conditions = subject.conditions(
                space, k=K_PRECISION if name in ("precision", "recall") else K_DENSITY
            )
            unit = "balls/k" if name == "density" else "share"
            found.append(
                Row(named(name, space), value, unit, "estimate", error, floor, "higher", conditions)
            )
    return found
