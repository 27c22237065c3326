"""Rows of a table with categories in its own words and units: write and read CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.summary import Column
from genlab.data.table_columns import find_missing_cells, format_class_number
from genlab.data.table_files import MISSING_WORDS, RawTable, TextFormat, read_table
from genlab.data.table_samples import (
    find_value_and_label_columns,
    parse_class_column,
    parse_finite_column,
)
from genlab.data.table_units import TableUnits, round_to_float32_digits
from genlab.errors import UserError, did_you_mean, make_printable
from genlab.spec import Batch, DataSpec
from genlab.untrusted.text import from_csv_cell


@dataclass
class MixedColumn(Column):
    """A column of a table with categories, as a model receives it.

    Attributes:
        categories: the word of each category, in the order of their numbers; empty for numbers.
        decimals: the most decimals of a number in the file; None keeps those of float32.
        pads_decimals: whether all numbers of the file have that many decimals, as 12.50.
        presence_of: the name of the column of numbers for which this column says whether the row
            has a value (0) or none (1); "" for a column of the file.
        missing_word: how the file writes that a number is missing.
    """

    categories: tuple[str, ...] = ()
    decimals: int | None = None
    pads_decimals: bool = False
    presence_of: str = ""
    missing_word: str = ""

    @property
    def is_categorical(self) -> bool:
        """Whether the column contains numbers of categories."""
        return len(self.categories) > 0


@dataclass(frozen=True)
class MixedTableUnits(TableUnits):
    """The columns of a table with categories, in the order of an item's values.

    Attributes:
        label_place: the number of the label's column among the columns of the file that are used.
    """

    columns: Sequence[MixedColumn]
    label_place: int = 0

    @classmethod
    def from_dataset(cls, dataset: Any) -> MixedTableUnits:
        """Return the units of a dataset of kind "table"."""
        facts = dataset.facts
        return cls(
            dataset.columns, facts.get("label_column", ""), facts.get("label_column_place", 0)
        )

    @classmethod
    def from_json(cls, summary: dict[str, Any]) -> MixedTableUnits:
        """Return the units that data.json records.

        Raises:
            ValueError: the values are not those of columns.
        """
        from pydantic import TypeAdapter

        columns = TypeAdapter(list[MixedColumn]).validate_python(summary.get("columns", []))
        facts = summary.get("facts", {})
        place = TypeAdapter(int).validate_python(facts.get("label_column_place", 0))
        for column in columns:
            if not (math.isfinite(column.mean) and 0 < column.scale < math.inf):
                raise ValueError(f"column {column.name} has the scale {column.scale}")
            if not 0 <= (column.decimals or 0) <= 30:
                raise ValueError(f"column {column.name} has {column.decimals} decimals")
        names = [column.name for column in columns if not column.is_categorical]
        if lost := [c.presence_of for c in columns if c.presence_of and c.presence_of not in names]:
            raise ValueError(f"there is no column of numbers {lost[0]}")
        return cls(columns, str(facts.get("label_column", "")), max(0, place))

    def require_categories(self, categories: Sequence[int]) -> None:
        """Raise ValueError if the columns do not have these numbers of categories."""
        found = [len(column.categories) for column in self.columns]
        if found != list(categories):
            raise ValueError(f"its columns have {found} categories, not {list(categories)}")

    @property
    def column_names(self) -> list[str]:
        """The names of the file's columns, without those that say whether a value is missing."""
        return [column.name for column in self.file_columns]

    @property
    def file_columns(self) -> list[MixedColumn]:
        """The columns that the file has."""
        return [column for column in self.columns if not column.presence_of]

    def with_label(self, cells: list[Any], label: Sequence[Any]) -> list[Any]:
        """Return the cells of a row with that of the label, if there is one, in its place."""
        place = min(self.label_place, len(cells))
        return [*cells[:place], *label, *cells[place:]]

    def to_own_units(self, x: Tensor | np.ndarray) -> np.ndarray:
        """Return items (…, D) as a CSV file would have them, float64 (…, D).

        Numbers are in own units with the decimals of the file, and nan where the row has none.
        Categories stay numbers.
        """
        plain = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        values = plain.astype(np.float64)  # a copy
        places = {column.name: i for i, column in enumerate(self.columns)}
        for i, column in enumerate(self.columns):
            if column.is_categorical:
                values[..., i] = values[..., i].round().clip(0, len(column.categories) - 1)
                continue
            own = values[..., i] * column.scale + column.mean
            if column.decimals is None:
                values[..., i] = round_to_float32_digits(own, column)
            else:
                values[..., i] = own.round(column.decimals) + 0.0  # without −0
        for i, column in enumerate(self.columns):
            if column.presence_of:
                values[values[..., i] == 1, places[column.presence_of]] = np.nan
        return values

    def format_row(self, row: Sequence[float]) -> list[str]:
        """Return the cells of the file's columns of a row (D,) in own units."""
        return [
            self.format_cell(value, i)
            for i, value in enumerate(row)
            if not self.columns[i].presence_of
        ]

    def format_cell(self, value: float, i: int) -> str:
        """Return a value of column i as text: its word, or the number as the file writes it."""
        column = self.columns[i]
        if column.is_categorical:
            return str(column.categories[int(value)])
        if math.isnan(value):
            return str(column.missing_word)
        if column.is_integer:
            return str(int(value))
        if column.decimals is not None and column.pads_decimals:
            return f"{value:.{column.decimals}f}"
        return format_class_number(value)


def table_units_of_dataset(dataset: Any) -> TableUnits | None:
    """Return the units of a table of numbers, or of one with categories; None for other data."""
    if dataset.spec.kind == "table":
        return MixedTableUnits.from_dataset(dataset)
    return TableUnits.from_dataset(dataset)


# --- samples of another program -------------------------------------------------------------------


def read_mixed_table_samples(path: Path, spec: DataSpec, units: MixedTableUnits) -> Batch:
    """Return the rows of a table file as items float32 (N, D), with their labels or None.

    Its columns are found by their names, in any order, and have the words and units of the table.

    Raises:
        UserError: a column is missing, or a cell is not a number or a category of the table.
    """
    raw = read_table(path, TextFormat())
    what = f"samples={path}"
    order, label = find_value_and_label_columns(raw, units, what)
    if not raw.has_names and label is not None:  # in the order of the table's own file
        label = min(units.label_place, len(order))
        order = [c for c in range(len(raw.names)) if c != label]
    place = dict(zip(units.column_names, order, strict=True))
    values = [read_sample_column(raw, column, place, what) for column in units.columns]
    y = None if label is None else parse_class_column(raw, label, spec, what)
    return Batch(torch.from_numpy(np.stack(values, 1)).float(), y)


def read_sample_column(
    raw: RawTable, column: MixedColumn, place: dict[str, int], what: str
) -> np.ndarray:
    """Return the values (N,) of a column as a model receives them."""
    c = place[column.presence_of or column.name]
    cells = raw.columns[c]
    if column.presence_of:
        return find_missing_cells(cells, set(MISSING_WORDS)).astype(np.float64)
    if column.is_categorical:
        return words_to_category_numbers(raw, c, column, what)
    missing = find_missing_cells(cells, {*MISSING_WORDS, column.missing_word})
    numbers = np.zeros(len(cells))  # 0 is the mean, which stands for a missing number
    if not missing.all():
        known = RawTable(raw.names, [part[~missing] for part in raw.columns], raw.row_numbers)
        known.row_numbers = raw.row_numbers[~missing]
        own = parse_finite_column(known, c, what)
        numbers[~missing] = (own - column.mean) / column.scale
    return numbers


def words_to_category_numbers(raw: RawTable, c: int, column: MixedColumn, what: str) -> np.ndarray:
    """Return the numbers (N,) of the categories that a column of words names.

    Raises:
        UserError: a word is not a category of the table.
    """
    number = {word: k for k, word in enumerate(column.categories)}
    found = np.zeros(len(raw))
    for r, cell in enumerate(raw.columns[c]):
        word = cell if isinstance(cell, str) else format_class_number(float(cell))
        word = word if word in number else from_csv_cell(word)
        if word not in number:
            raise UserError(
                f"{what}, row {raw.row_numbers[r]}, column {column.name}: the table does not have "
                f"the category {make_printable(word)!r}{did_you_mean(word, number)}"
            )
        found[r] = number[word]
    return found
