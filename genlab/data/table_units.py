"""Rows of a table in its own units: undo the standardization, write and read CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.summary import Column
from genlab.spec import DataSpec
from genlab.untrusted.text import to_csv_cell

FLOAT32_DIGITS = 7  # decimal digits that a standardized value keeps
RESOLUTION = 1e-5  # relative; larger than the rounding of a standardized integer to float32


@dataclass(frozen=True)
class TableUnits:
    """The columns of a table, in the order of a point's values, and the column of its labels."""

    columns: Sequence[Column]
    label: str = ""  # "" without labels

    @classmethod
    def from_dataset(cls, dataset: Any) -> TableUnits | None:
        """Return the units of a dataset; None if it is not a table."""
        if not dataset.columns:
            return None
        return cls(dataset.columns, dataset.facts.get("label_column", ""))

    @classmethod
    def from_json(cls, summary: dict[str, Any]) -> TableUnits | None:
        """Return the units that data.json records; None if the data is not a table.

        Raises:
            ValueError: the values are not those of columns.
        """
        from pydantic import TypeAdapter

        columns = TypeAdapter(list[Column]).validate_python(summary.get("columns", []))
        label = summary.get("facts", {}).get("label_column", "")
        for column in columns:
            if not (math.isfinite(column.mean) and 0 < column.scale < math.inf):
                raise ValueError(f"column {column.name} has the scale {column.scale}")
        return cls(columns, str(label)) if columns else None

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    def standardize(self, values: np.ndarray) -> Tensor:
        """Return values in own units (N, D) as a model receives them, float32 (N, D)."""
        mean = np.array([column.mean for column in self.columns])
        scale = np.array([column.scale for column in self.columns])
        return torch.from_numpy((values.astype(np.float64) - mean) / scale).float()

    def to_own_units(self, x: Tensor | np.ndarray) -> np.ndarray:
        """Return standardized values (…, D) in own units, float64 (…, D).

        They have the digits that float32 keeps; columns of integers are rounded.
        """
        plain = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        values = plain.astype(np.float64)  # a copy
        for i, column in enumerate(self.columns):
            own = values[..., i] * column.scale + column.mean
            round_column = (
                round_preserving_variance if column.is_integer else round_to_float32_digits
            )
            values[..., i] = round_column(own, column)
        return values

    def with_label(self, cells: list[Any], label: Sequence[Any]) -> list[Any]:
        """Return the cells of a row with that of the label, if there is one, in its place."""
        return [*cells, *label]

    def format_row(self, row: Sequence[float]) -> list[str]:
        """Return the cells of a row (D,) in own units."""
        return [self.format_cell(value, i) for i, value in enumerate(row)]

    def format_cell(self, value: float, i: int) -> str:
        """Return a value of column i as text, an integer without a decimal point."""
        if self.columns[i].is_integer and math.isfinite(value):
            return str(int(value))
        return repr(float(value))

    def to_csv(
        self,
        x: Tensor | np.ndarray,
        spec: DataSpec,
        *,
        y: Tensor | np.ndarray | None = None,
        index_names: Sequence[str] = (),
        leading: dict[str, Sequence[Any]] | None = None,
    ) -> bytes:
        """Return standardized items (…, D) as a CSV file in own units, one row for each.

        Args:
            y: labels, of as many items as x has along its first axis; their names are a column.
            index_names: of the axes of x before the last, whose indices become columns. None are
                written for (N, D).
            leading: further columns before the values, of N cells each.
        """
        values = self.to_own_units(x)
        shape, rows = values.shape[:-1], values.reshape(-1, values.shape[-1])
        leading = dict(leading or {})
        if len(shape) > 1:
            indices = np.indices(shape).reshape(len(shape), -1)
            names = [*index_names, *(f"index_{k}" for k in range(len(shape)))][: len(shape)]
            leading = {**dict(zip(names, indices.tolist(), strict=True)), **leading}
        header = [first_free_column_name(name, self.column_names) for name in leading]
        labels: list[str] = []
        if y is not None and self.label and len(y) == shape[0]:
            per_item = len(rows) // len(y)
            labels = [
                spec.class_name(int(k)) for k in np.asarray(y).tolist() for _ in range(per_item)
            ]
        header += self.with_label(self.column_names, [self.label] if labels else [])
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(to_csv_cell, header))
        for r, row in enumerate(rows.tolist()):
            cells = [column[r] for column in leading.values()]
            cells += self.with_label(self.format_row(row), labels[r : r + 1])
            writer.writerow(map(to_csv_cell, cells))
        return text.getvalue().encode("utf-8", "replace")


def round_to_float32_digits(values: np.ndarray, column: Column) -> np.ndarray:
    """Round values to the decimals that float32 keeps of them when they are standardized."""
    decimals = FLOAT32_DIGITS - 1 - math.floor(math.log10(column.scale))
    flat = [round(value, decimals) for value in values.reshape(-1).tolist()]
    return np.array(flat, np.float64).reshape(values.shape)


# Sheppard 1897, https://doi.org/10.1112/plms/s1-29.1.353: rounding to integers adds 1/12 to the
# variance of a smooth distribution.
def round_preserving_variance(values: np.ndarray, column: Column) -> np.ndarray:
    """Round values to integers, such that the variance does not grow.

    Values between integers are moved toward the mean before. Integers stay as they are, as those of
    given rows.
    """
    mean, variance = column.mean, column.scale**2
    is_standardized = (column.mean, column.scale) != (0.0, 1.0)
    factor = math.sqrt(1 - 1 / (12 * variance)) if is_standardized and variance > 0.25 else 1.0
    rounded = values.round()
    tolerance = RESOLUTION * np.maximum(np.abs(values - mean), column.scale)
    is_integer = np.abs(values - rounded) <= tolerance
    return np.where(is_integer, rounded, (mean + factor * (values - mean)).round())


def first_free_column_name(name: str, taken: Sequence[str]) -> str:
    """Return a name for a further column that none of the others has."""
    while name in taken:
        name += "_"
    return name
