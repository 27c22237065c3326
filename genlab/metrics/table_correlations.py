"""Differences of the associations between columns of generated and held-out rows."""

from __future__ import annotations

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
    columns = context.spec.dim + context.conditional
    return ["pair_association"] if is_sampled_table(context) and columns > 1 else []


def association_matrix(rows: TableRows) -> np.ndarray:
    """Return the strength of association (D, D) of each pair of columns, 0 on the diagonal.

    Pearson's correlation of two columns of numbers, from −1 to 1; Cramér's V of two columns of
    categories and the correlation ratio η of a mixed pair, from 0 to 1. A missing number is left
    out of its pairs. A constant column is associated with none.
    """
    d = len(rows.names)
    found = np.zeros((d, d))
    for i in range(d):
        for j in range(i):
            a, b = rows.values[:, i], rows.values[:, j]
            known = ~(np.isnan(a) | np.isnan(b))
            a, b = a[known], b[known]
            if len(a) < 2:
                continue
            if rows.sizes[i] and rows.sizes[j]:
                value = cramers_v(a.astype(int), b.astype(int))
            elif rows.sizes[i]:
                value = correlation_ratio(a.astype(int), b)
            elif rows.sizes[j]:
                value = correlation_ratio(b.astype(int), a)
            else:
                value = pearson_correlation(a, b)
            found[i, j] = found[j, i] = value
    return found


def pearson_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of numbers (N,); 0 if one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def correlation_ratio(categories: np.ndarray, numbers: np.ndarray) -> float:
    """Return η: the root of the variance between categories (N,) over that of numbers (N,)."""
    counts = np.bincount(categories)
    sums = np.bincount(categories, weights=numbers - numbers.mean())
    total = ((numbers - numbers.mean()) ** 2).sum()
    present = counts > 0
    between = (sums[present] ** 2 / counts[present]).sum()
    return float(np.sqrt(min(1.0, between / total))) if total > 0 else 0.0


def cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    """Return √(χ² / (N (min(r, c) − 1))) of categories (N,), of which r and c occur."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    smallest = min(table.shape) - 1
    if smallest < 1:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi2 / (table.sum() * smallest)))


def mean_absolute_difference(a: TableRows, b: TableRows) -> float:
    """Return the mean over pairs of columns of the difference of their associations."""
    pairs = np.tril_indices(len(b.names), -1)
    return float(np.abs(association_matrix(a) - association_matrix(b))[pairs].mean())


def measure(context: MetricContext) -> list[Row]:
    """Return the mean difference of associations, and the pair of columns that differs most."""
    generated, real = (rows_of_set(context, which) for which in ("generated", "real"))
    difference = np.abs(association_matrix(generated) - association_matrix(real))
    pairs = np.tril_indices(len(real.names), -1)
    i, j = np.unravel_index(difference.argmax(), difference.shape)
    worst = f"{real.names[j]} and {real.names[i]} {difference[i, j]:.3f}"
    return [
        Row(
            "pair_association",
            float(difference[pairs].mean()),
            "difference",
            "estimate",
            real_vs_real=mean_over_floor_sets(context, mean_absolute_difference),
            conditions=context.make_conditions(worst=worst),
        )
    ]
