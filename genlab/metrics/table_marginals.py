"""Differences of the columns of generated and held-out rows, one column at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.metrics.table_rows import (
    TableRows,
    is_sampled_table,
    mean_over_floor_sets,
    rows_of_set,
)


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if not is_sampled_table(context):
        return []
    sizes = context.spec.categories
    names = ["column_ks"] if not all(sizes) else []
    return names + (["column_total_variation"] if any(sizes) or context.conditional else [])


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of the distribution functions of a (N,) and b (M,).

    A column without values differs by 1 from one with values.
    """
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    a, b = np.sort(a), np.sort(b)
    points = np.concatenate([a, b])
    of_a = np.searchsorted(a, points, side="right") / len(a)
    of_b = np.searchsorted(b, points, side="right") / len(b)
    return float(np.abs(of_a - of_b).max())


def ks_by_column(a: TableRows, b: TableRows) -> dict[str, float]:
    """Return the Kolmogorov–Smirnov distance of each column of numbers."""
    return {b.names[i]: kolmogorov_smirnov(a.numbers(i), b.numbers(i)) for i in b.numeric}


def total_variation_by_column(a: TableRows, b: TableRows) -> dict[str, float]:
    """Return the total variation ½ Σ |p − q| of each column of categories."""
    return {
        b.names[i]: float(np.abs(a.frequencies(i) - b.frequencies(i)).sum() / 2)
        for i in b.categorical
    }


def measure(context: MetricContext) -> list[Row]:
    """Return the mean over columns of both distances, and the column that differs most."""
    generated, real = (rows_of_set(context, which) for which in ("generated", "real"))
    distances: dict[str, Callable[[TableRows, TableRows], dict[str, float]]] = {
        "column_ks": ks_by_column,
        "column_total_variation": total_variation_by_column,
    }
    rows = []
    for name in row_names(context):
        by_column = distances[name]

        def mean_distance(
            a: TableRows,
            b: TableRows,
            by_column: Callable[[TableRows, TableRows], dict[str, float]] = by_column,
        ) -> float:
            return float(np.mean(list(by_column(a, b).values())))

        found = by_column(generated, real)
        worst = max(found, key=lambda column: found[column])
        rows.append(
            Row(
                name,
                float(np.mean(list(found.values()))),
                "probability",
                "estimate",
                real_vs_real=mean_over_floor_sets(context, mean_distance),
                conditions=context.make_conditions(worst=f"{worst} {found[worst]:.3f}"),
            )
        )
    return rows
