"""The rows of a table as its metrics compare them: units and decimals of the file, labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from genlab.data.mixed_table_units import MixedTableUnits
from genlab.metrics.context import ItemSet, MetricContext


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, with the label as a further column of categories if there is one.

    Attributes:
        values: (N, D); numbers in own units, nan where missing, and categories.
        names: of the columns.
        sizes: categories of each column; 0 for numbers.
    """

    values: np.ndarray
    names: list[str]
    sizes: list[int]

    @property
    def numeric(self) -> list[int]:
        """The columns of numbers."""
        return [i for i, size in enumerate(self.sizes) if not size]

    @property
    def categorical(self) -> list[int]:
        """The columns of categories."""
        return [i for i, size in enumerate(self.sizes) if size]

    def numbers(self, i: int) -> np.ndarray:
        """Return the numbers of a column that are not missing."""
        column: np.ndarray = self.values[:, i]
        return column[~np.isnan(column)]

    def frequencies(self, i: int) -> np.ndarray:
        """Return the frequency of each category of a column."""
        counts = np.bincount(self.values[:, i].astype(int), minlength=self.sizes[i])
        return counts / max(1, len(self.values))


def is_sampled_table(context: MetricContext) -> bool:
    """Whether samples of a table with categories can be had in this context."""
    return "sample" in context.abilities and context.spec.kind == "table"


def rows_of_items(context: MetricContext, x: Tensor, y: Tensor | None) -> TableRows:
    """Return items (N, D) as a CSV file would have them, with their labels (N,)."""
    units = MixedTableUnits.from_dataset(context.dataset)
    values = units.to_own_units(x)
    names = [column.name for column in units.columns]
    sizes = list(context.spec.categories)
    if y is not None and context.spec.num_classes:
        values = np.concatenate([values, y.numpy()[:, None]], 1)
        names.append(units.label or "label")
        sizes.append(context.spec.num_classes)
    return TableRows(values, names, sizes)


def rows_of_set(context: MetricContext, which: ItemSet) -> TableRows:
    """Return a set of items of the context as rows; labels only if the samples have them."""
    batch = context.items(which)
    has_labels = context.generated.y is not None
    return rows_of_items(context, batch.x, batch.y if has_labels else None)


def mean_over_floor_sets(
    context: MetricContext, distance: Callable[[TableRows, TableRows], float]
) -> float | None:
    """Return a distance of real rows in the place of samples; None if there are too few."""
    names, real_name = context.floor_sets()
    if context.floor.size < 2:
        return None
    real = rows_of_set(context, real_name)
    return float(np.mean([distance(rows_of_set(context, name), real) for name in names]))
