"""Copies of training rows: distances of generated rows to the nearest, and exact copies."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.metrics.memorization import (
    copying_probability_and_error,
    nearest_train_distances_and_indices,
)
from genlab.metrics.table_rows import TableRows, is_sampled_table, rows_of_set


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if not is_sampled_table(context) or not context.dataset.size("train"):
        return []
    return ["nearest_train_row", "row_copying", "nearer_to_train", "exact_copies"]


def rows_to_coordinates(rows: TableRows, like: TableRows) -> Tensor:
    """Return rows as points float32 (N, D'), so that a differing category has the distance 1.

    Numbers are in standard deviations of `like`, and a missing one is its mean.
    """
    parts = []
    for i, size in enumerate(rows.sizes):
        if size:
            codes = torch.from_numpy(rows.values[:, i]).long()
            parts.append(F.one_hot(codes, size).float() / math.sqrt(2))
            continue
        known = like.numbers(i)
        mean, scale = (known.mean(), known.std()) if len(known) else (0.0, 1.0)
        z = np.nan_to_num((rows.values[:, i] - mean) / (scale or 1.0), nan=0.0)
        parts.append(torch.from_numpy(z).float()[:, None])
    return torch.cat(parts, 1)


def fraction_in_training(rows: TableRows, train: TableRows) -> float:
    """Return the fraction of rows that equal a training row in every column."""
    known = {row.tobytes() for row in np.nan_to_num(train.values, nan=np.inf)}
    return float(
        np.mean([row.tobytes() in known for row in np.nan_to_num(rows.values, nan=np.inf)])
    )


def fraction_nearer_to_train(
    generated: Tensor, train: Tensor, heldout: Tensor
) -> tuple[float, float]:
    """Return the number of points (N, D) nearer to `train` than to `heldout`; ties count ½.

    Both sets are of the same size, the first of their points, so that ½ is expected without
    copying. The standard error counts the points of the sets, too, as they are few.
    """
    n = min(len(train), len(heldout))
    to_train, to_heldout = (
        nearest_train_distances_and_indices(generated, part[:n])[0] for part in (train, heldout)
    )
    share = (to_train < to_heldout).double() + 0.5 * (to_train == to_heldout)
    return share.mean().item(), 0.5 * math.sqrt(1 / len(generated) + 1 / n)


def measure(context: MetricContext) -> list[Row]:
    """Return the mean distance to the nearest training row, and three measures of copying.

    `row_copying` is the probability that a generated row is nearer to the training rows than a
    held-out one: ½ without copying, 1 if all are copies (see `genlab.metrics.memorization`). It is
    above ½, too, if the rows are too typical. `nearer_to_train` is not: it is the fraction of the
    generated rows that are nearer to training rows than to as many held-out rows.
    `real_vs_real` has the values of held-out rows.
    """
    generated, real, train = (
        rows_of_set(context, which) for which in ("generated", "real", "train")
    )
    points = rows_to_coordinates(train, train)
    of_generated, of_real = (
        nearest_train_distances_and_indices(rows_to_coordinates(rows, train), points)[0]
        for rows in (generated, real)
    )
    copying, copying_error = copying_probability_and_error(of_generated, of_real)
    nearer, nearer_error = fraction_nearer_to_train(
        rows_to_coordinates(generated, train), points, rows_to_coordinates(real, train)
    )
    copies = fraction_in_training(generated, train)
    conditions = context.make_conditions(train=len(train.values))
    return [
        Row(
            "nearest_train_row",
            of_generated.mean().item(),
            "distance",
            "estimate",
            error=of_generated.std().item() / math.sqrt(len(of_generated)),
            real_vs_real=of_real.mean().item(),
            better="neither",
            conditions=conditions,
        ),
        Row(
            "row_copying",
            copying,
            "probability",
            "estimate",
            error=copying_error,
            real_vs_real=0.5,
            better="neither",
            conditions=conditions,
        ),
        Row(
            "nearer_to_train",
            nearer,
            "fraction",
            "estimate",
            error=nearer_error,
            real_vs_real=0.5,
            better="neither",
            conditions=conditions,
        ),
        Row(
            "exact_copies",
            copies,
            "fraction",
            "estimate",
            error=math.sqrt(copies * (1 - copies) / len(generated.values)),
            real_vs_real=fraction_in_training(real, train),
            better="neither",
            conditions=conditions,
        ),
    ]
