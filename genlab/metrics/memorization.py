"""Memorization: whether samples are nearer to the training items than new items are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space
from genlab.metrics.precision_recall import iterate_squared_distance_blocks

# Nearest neighbors in single precision, of which the nearest in double precision is chosen.
NUM_CANDIDATES = 3


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    is_applicable = (
        "sample" in context.abilities
        and context.spec.kind in ("image", "points")
        and context.dataset.size("train")
    )
    if not is_applicable:
        return []
    return [
        row_name_in_space(name, space)
        for space in context.feature_spaces
        for name in ("nearest_train", "data_copying")
    ]


def nearest_train_distances_and_indices(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each x (N, D) to its nearest item of train (M, D), and its index.

    The distance (N,) float64 is Euclidean and exact. Of several items that are equally near in
    single precision, any may be returned (N,).
    """
    center = train.mean(0).float()
    distance, index = [], []
    x_single, train_single = x.float() - center, train.float() - center
    for rows, d in iterate_squared_distance_blocks(x_single, train_single):  # (B, M)
        near = d.topk(min(NUM_CANDIDATES, len(train)), largest=False).indices  # (B, C)
        exact = (x[rows, None].double() - train[near].double()).norm(dim=-1)  # (B, C)
        least = exact.min(1)
        distance.append(least.values)
        index.append(near.gather(1, least.indices[:, None])[:, 0])
    return torch.cat(distance), torch.cat(index)


def copying_probability_and_error(samples: Tensor, fresh: Tensor) -> tuple[float, float]:
    """Return P(sample < fresh) + ½ P(equal) of distances (N,) and (M,), and its error.

    It is the Mann–Whitney statistic over N M that Meehan, Chaudhuri & Dasgupta 2020 test for data
    copying (https://arxiv.org/abs/2004.05675), counted so that 1 means copying, and below ½ a model
    that avoids the data. They test cell by cell; this uses the whole space as one cell. The error
    is by DeLong, DeLong & Clarke-Pearson 1988.
    """
    n, m = len(samples), len(fresh)
    of_samples = fraction_of_b_above_each_a(samples, fresh)  # (N,)
    of_fresh = 1 - fraction_of_b_above_each_a(fresh, samples)  # (M,)
    if min(n, m) > 1:
        error = math.sqrt(of_samples.var().item() / n + of_fresh.var().item() / m)
    else:
        error = math.nan
    return of_samples.mean().item(), error


def fraction_of_b_above_each_a(a: Tensor, b: Tensor) -> Tensor:
    """Return for each of a (N,) the fraction of b (M,) that is greater; equal ones count half."""
    b = b.sort().values
    return 1 - (torch.searchsorted(b, a) + torch.searchsorted(b, a, right=True)) / (2.0 * len(b))


def samples_and_nearest_train_items(
    context: MetricContext, n: int = 8, *, space: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return the first n samples, and the training item nearest to each in a feature space.

    Both are (n, *shape), images as bytes.

    Args:
        space: None uses the first space of the context.
    """
    space = space or context.feature_spaces[0]
    samples, train = context.features(space, "generated")[:n], context.features(space, "train")
    _, index = nearest_train_distances_and_indices(samples, train)
    return context.items("generated").x[:n], context.items("train").x[index]


def measure(context: MetricContext) -> list[Row]:
    """Return the mean distance to the nearest training item, and the probability of copying.

    `real_vs_real` of the distance is that of held-out items; the error is the standard deviation
    over √n. That of the probability is 1/2 by symmetry. Neither number is better for being lower or
    higher: the aim is the value of held-out items.
    """
    rows = []
    for space in context.feature_spaces:
        real, train = context.features(space, "real"), context.features(space, "train")
        generated, _ = nearest_train_distances_and_indices(
            context.features(space, "generated"), train
        )
        fresh, _ = nearest_train_distances_and_indices(real, train)
        total = context.dataset.size("train")
        mirrored = context.dataset.is_flipped_in_training
        used = len(train) // 2 if mirrored else len(train)
        num_train: Any = used if used == total else f"{used} of {total}"
        if mirrored:
            num_train = f"{num_train}, each also mirrored"
        conditions = context.make_conditions(space, train=num_train)
        copying, copying_error = copying_probability_and_error(generated, fresh)
        rows += [
            Row(
                row_name_in_space("nearest_train", space),
                generated.mean().item(),
                "distance",
                "estimate",
                error=generated.std().item() / math.sqrt(len(generated)),
                real_vs_real=fresh.mean().item(),
                better="neither",
                conditions=conditions,
            ),
            Row(
                row_name_in_space("data_copying", space),
                copying,
                "probability",
                "estimate",
                error=copying_error,
                real_vs_real=0.5,
                better="neither",
                conditions=conditions,
            ),
        ]
    return rows
