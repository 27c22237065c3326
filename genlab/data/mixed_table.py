"""Tables with columns of numbers or categories, from text, NumPy or Parquet files.

A model receives one value per column: a standardized number, or the number of a category.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genlab.data.dataset import Split
from genlab.data.example_table import make_example_table
from genlab.data.mixed_table_units import MixedColumn
from genlab.data.number_formats import MARKS, is_python_number, number_formats_of_all_cells
from genlab.data.summary import LeftOut
from genlab.data.table_columns import (
    MAX_EXACT_INTEGER,
    ColumnOptions,
    TableReader,
    are_true_or_false_cells,
    cells_to_finite_floats,
    column_means_and_scales,
    format_class_number,
    split_name_and_unit,
)
from genlab.data.table_files import RawTable, read_table
from genlab.data.tabular import ColumnKey, TableFile
from genlab.errors import UserError, make_printable
from genlab.spec import DataSpec, Positive

EXAMPLE_ROWS = 5000  # of the table that is used without a file
MAX_DECIMALS = 15  # more are digits of binary fractions, not of the data
PRESENT, MISSING = "present", "missing"


class MixedTableReader(TableReader):
    """The numbers, categories and classes of a table.

    Attributes:
        used: the columns of numbers.
        categorical: the columns of categories.
        order: both, in the order of the file.
    """

    def __init__(
        self,
        raw: RawTable,
        options: ColumnOptions,
        notes: list[str],
        left_out: LeftOut,
        *,
        categorical: tuple[ColumnKey, ...],
        max_categories: int,
    ) -> None:
        self.categorical_keys, self.max_categories = categorical, max_categories
        super().__init__(raw, options, notes, left_out)

    def choose_value_columns(self) -> list[int]:
        """Return the columns of numbers; find those of categories, and leave out names.

        Raises:
            UserError: an option names a column that does not exist or has too many categories, or
                no column is left.
        """
        chosen = self.used = super().choose_value_columns()
        named = {self.column_index(key, "dataset.categorical") for key in self.categorical_keys}
        asked = {self.column_index(key, "dataset.use_columns") for key in self.options.use or ()}
        found = [c for c in chosen if c in named or self.column_has_text(c)]
        large = [c for c in found if self.num_categories(c) > self.max_categories]
        for c in large:
            if c not in named:
                self.refuse_numbers_with_few_texts(c)
            many = f"{self.num_categories(c):,} different texts, more than dataset.max_categories"
            where = f"{self.options.path}, {self.columns_in_words([c])}"
            if c in named | asked:
                raise UserError(
                    f"{where}: it has {many}={self.max_categories}; raise it, or leave the column "
                    f"out with dataset.skip_columns=[{self.skip_columns_value([c])}]"
                )
            self.left_out.add(
                f"a column of text with more than {self.max_categories} different values",
                f"{self.raw.names[c]} ({self.num_categories(c):,})",
            )
        self.order = [c for c in chosen if c not in large]
        if not self.order:
            raise UserError(
                f"{self.options.path}: each column of text has more than dataset.max_categories="
                f"{self.max_categories} different values, and there is no other column"
            )
        self.categorical = [c for c in self.order if c in found]
        return [c for c in self.order if c not in found]

    def column_has_text(self, c: int) -> bool:
        """Whether the cells of a column are not all numbers; true and false are texts."""
        cells = self.cells_with_value(c)
        if are_true_or_false_cells(cells):
            return True
        if cells.dtype != object:
            return False
        decimal, thousands = self.options.decimal, self.options.thousands
        return not number_formats_of_all_cells(cells, decimal, thousands)

    def refuse_numbers_with_few_texts(self, c: int) -> None:
        """Refuse a column of numbers with some texts, which would be taken for categories.

        Raises:
            UserError: most cells are numbers; names the first other one.
        """
        cells = self.cells_with_value(c)
        if cells.dtype == object and np.mean([is_python_number(cell) for cell in cells]) > 0.5:
            raise UserError(self.explain_text_columns([c]))

    def num_categories(self, c: int) -> int:
        """Return the number of different values of a column, a missing one included."""
        return len(set(self.cells_with_value(c))) + bool(self.missing[c].any())

    def read_items_labels_and_rows(
        self,
    ) -> tuple[Tensor, list[MixedColumn], Tensor | None, Tensor]:
        """Return the items float64 (N, D), their columns, labels (N,) or None, and file rows.

        Missing numbers are nan, followed by a column that says so.
        """
        keep = self.mask_of_labeled_rows()
        values: list[np.ndarray] = []
        columns: list[MixedColumn] = []
        for c in self.order:
            if c in self.categorical:
                number, column = self.read_categories(c, keep)
                values.append(number)
                columns.append(column)
                continue
            numbers = self.parse_column_to_floats(c)[keep]
            column = self.describe_number_column(c, numbers)
            values.append(numbers)
            columns.append(column)
            if (missing := np.isnan(numbers)).any():
                values.append(missing.astype(np.float64))
                columns.append(
                    MixedColumn(
                        f"{column.name} {MISSING}",
                        categories=(PRESENT, MISSING),
                        presence_of=column.name,
                    )
                )
        self.add_notes_about_columns(columns)
        y = None
        if self.label is not None:
            y = self.cells_to_class_numbers(self.raw.columns[self.label][keep])
        elif self.label_name and self.raw.labels is not None:
            y = self.cells_to_class_numbers(self.raw.labels[keep])
        rows = torch.from_numpy(self.raw.row_numbers[keep])
        return torch.from_numpy(np.stack(values, 1)), columns, y, rows

    def mask_of_labeled_rows(self) -> np.ndarray:
        """Return which rows (N,) have a value and a label; count the others.

        Raises:
            UserError: no row has both.
        """
        blank = np.all(self.missing, 0)
        if blank.any():
            self.left_out.add("a row without values", count=int(blank.sum()))
        keep: np.ndarray = ~blank
        if self.label is not None:
            unlabeled = self.missing[self.label] & ~blank
            if unlabeled.any():
                words = self.columns_in_words([self.label])
                self.left_out.add(f"a row without {words}, the label", count=int(unlabeled.sum()))
            keep &= ~unlabeled
        if not keep.any():
            raise UserError(f"{self.options.path}: no row has a value and a label")
        return keep

    def read_categories(self, c: int, keep: np.ndarray) -> tuple[np.ndarray, MixedColumn]:
        """Return the numbers (N,) of a column's categories and its description.

        Words are sorted as numbers if all are, else alphabetically; a missing one comes last.
        """
        missing = self.missing[c][keep]
        cells = self.raw.columns[c][keep]
        known = cells[~missing]
        if known.dtype != object and known.dtype != bool:
            words = np.array([format_class_number(v) for v in known.astype(np.float64)], object)
        else:
            words = known.astype(str).astype(object)
        numbers = cells_to_finite_floats(words)
        order = sorted(
            set(words), key=(lambda word: (float(word), word)) if numbers is not None else str
        )
        place = {word: k for k, word in enumerate(order)}
        found = np.full(len(cells), float(len(order)))
        found[~missing] = [place[word] for word in words]
        if missing.any():
            order.append(self.missing_word(c))
        return found, MixedColumn(self.raw.names[c], categories=tuple(order))

    def missing_word(self, c: int) -> str:
        """Return the most frequent way in which a column writes a missing value."""
        cells = self.raw.columns[c][self.missing[c]]
        if cells.dtype != object or not len(cells):
            return ""
        words, counts = np.unique(cells.astype(str), return_counts=True)
        return str(words[counts.argmax()])

    def describe_number_column(self, c: int, numbers: np.ndarray) -> MixedColumn:
        """Return the description of a column of numbers (N,), without its mean and scale."""
        name, present = self.raw.names[c], numbers[~np.isnan(numbers)]
        if not len(present):
            raise UserError(
                f"{self.options.path}, {self.columns_in_words([c])}: no labeled row has a value"
            )
        is_integer = bool((present == present.round()).all())
        is_integer = is_integer and float(np.abs(present).max()) < MAX_EXACT_INTEGER
        decimals, pads = (0, False) if is_integer else self.count_decimals(c)
        return MixedColumn(
            name,
            unit=split_name_and_unit(name)[1],
            is_integer=is_integer,
            decimals=decimals,
            pads_decimals=pads,
            missing_word=self.missing_word(c),
        )

    def count_decimals(self, c: int) -> tuple[int | None, bool]:
        """Return the most decimals in a column's cells, and whether all cells have as many.

        None are counted for binary numbers, and for those with exponents.
        """
        cells = self.cells_with_value(c)
        if cells.dtype != object:
            return None, False
        mark = re.escape(MARKS[self.format.decimal])
        matches = [re.fullmatch(rf"[^eE{mark}]*(?:{mark}(\d*))?", cell) for cell in cells]
        if not all(matches):
            return None, False
        counts = {len(match[1] or "") for match in matches if match}
        most = max(counts)
        return (most, len(counts) == 1) if most <= MAX_DECIMALS else (None, False)

    def add_notes_about_columns(self, columns: list[MixedColumn]) -> None:
        """Note which columns are numbers and categories, and what missing cells become."""
        if self.used:
            integers = [column.name for column in columns if column.is_integer]
            note = f"numbers are {self.columns_in_words(self.used)}"
            few = f"; of them {len(integers)} have integers only" if integers else ""
            self.notes.append(f"{note}{few}; dataset.categorical=[…] takes some for categories")
        if self.categorical:
            words = [
                f"{column.name} ({len(column.categories)})"
                for column in columns
                if column.is_categorical and not column.presence_of
            ]
            self.notes.append(f"categories are {', '.join(words)}")
        if lacking := [c for c in self.categorical if self.missing[c].any()]:
            self.notes.append(
                f"a missing cell is a separate category in {self.columns_in_words(lacking)}"
            )
        if names := [column.presence_of for column in columns if column.presence_of]:
            self.notes.append(
                f"missing numbers of {', '.join(names)} become the mean, and a further column of "
                "categories says which are missing; samples have empty cells again"
            )


@dataclass(kw_only=True, eq=False)
class MixedTable(TableFile):
    """The rows of a table: standardized numbers, and the numbers of categories.

    Columns of text are categories, and so are true and false. The label is a class of the item,
    not one of its values; with label="none" it is one more column. A missing category is a
    category. A missing number is the mean, and a further column with the categories "present" and
    "missing" follows it.

    Args:
        path: as of `Table`; None makes an example of invented customers.
        categorical: columns of numbers that are categories, by name or number.
        max_categories: a column of text with more different values, as names, is left out.
    """

    categorical: tuple[ColumnKey, ...] = ()
    max_categories: Positive = 100
    name = "mixed_table"

    def __post_init__(self) -> None:
        raw = self.read_raw_table()
        self.notes.extend(raw.notes)
        self.left_out = raw.left_out
        reader = MixedTableReader(
            raw,
            self.make_column_options(),
            self.notes,
            self.left_out,
            categorical=self.categorical,
            max_categories=self.max_categories,
        )
        x, columns, y, numbers = reader.read_items_labels_and_rows()
        rows = self.split_rows(len(x))
        items, described = standardize_numbers(x, columns, rows["train"])
        self.columns: Sequence[MixedColumn] = described
        self.label_name = reader.label_name
        if self.label_name:
            self.facts["label_column"] = self.label_name
            label = len(raw.names) if reader.label is None else reader.label
            self.facts["label_column_place"] = sum(c < label for c in reader.order)
        self.set_row_splits(
            DataSpec(
                shape=(items.shape[1],),
                kind="table",
                num_classes=0 if y is None else int(y.max()) + 1,
                class_names=reader.class_names,
                levels=0,
                categories=tuple(len(column.categories) for column in columns),
            ),
            Split(items, y),
            rows,
            numbers,
        )

    def adopt_columns(self, columns: list[MixedColumn]) -> None:
        """Express the items in the categories and scales of another table's columns.

        A run that is given another file compares its rows with those of its training.

        Raises:
            UserError: the columns differ, or a category is not one of the other table.
        """
        if list(columns) == list(self.columns):
            return
        names, others = ([column.name for column in part] for part in (self.columns, columns))
        kinds = [[column.is_categorical for column in part] for part in (self.columns, columns)]
        if names != others or kinds[0] != kinds[1]:
            raise UserError(
                f"dataset.path={self.path} has the columns {', '.join(names)}, but the run was "
                f"trained on {', '.join(others)}; columns with missing numbers have a further one"
            )
        for part in self.splits.values():
            part.x = torch.stack(
                [
                    self.adopt_values(part.x[:, i], own, other)
                    for i, (own, other) in enumerate(zip(self.columns, columns, strict=True))
                ],
                1,
            )
        self.columns = columns
        categories = tuple(len(column.categories) for column in columns)
        self.spec = replace(self.spec, categories=categories)
        self._on_device.clear()

    def adopt_values(self, values: Tensor, own: MixedColumn, other: MixedColumn) -> Tensor:
        """Return values (N,) of a column as the numbers of another description of it.

        Raises:
            UserError: the other description lacks a category.
        """
        if not own.is_categorical:
            return ((values.double() * own.scale + own.mean - other.mean) / other.scale).float()
        number = {word: float(k) for k, word in enumerate(other.categories)}
        if unknown := [word for word in own.categories if word not in number]:
            raise UserError(
                f"dataset.path={self.path} has the category {make_printable(unknown[0])!r} in "
                f"column {own.name}, which the run was not trained on"
            )
        place = torch.tensor([number[word] for word in own.categories])
        return place[values.long()]

    def read_raw_table(self) -> RawTable:
        """Return the cells of the file, or those of the example."""
        if self.path is None:
            raw = make_example_table(EXAMPLE_ROWS)
            raw.notes.append("an example of invented customers; dataset.path=<file.csv> is a table")
            return raw
        file = self.require_table_file()
        self.source_files = [file]
        return read_table(file, self.make_text_format())

    def make_column_options(self) -> ColumnOptions:
        """Return the options that say which columns are used and how their cells are read."""
        return ColumnOptions(
            path="the example table" if self.path is None else self.path,
            label=self.label,
            use=self.use_columns,
            skip=self.skip_columns,
            decimal=self.decimal,
            thousands=self.thousands,
            missing=self.missing_value_words(),
        )


def standardize_numbers(
    x: Tensor, columns: list[MixedColumn], train: Tensor
) -> tuple[Tensor, list[MixedColumn]]:
    """Return items float32 (N, D) with standardized numbers, and columns with mean and scale.

    Mean and standard deviation are those of the training rows' known values, and a missing number
    becomes the mean.

    Args:
        x: float64 (N, D), nan where a number is missing.
        train: indices of the training rows.
    """
    items = x.clone()
    described = []
    for i, column in enumerate(columns):
        if column.is_categorical:
            described.append(column)
            continue
        known = x[train, i]
        known = known[~known.isnan()]
        if not len(known):  # only held-out rows have a value
            known = x[:, i][~x[:, i].isnan()]
        mean, scale = column_means_and_scales(known[:, None])
        items[:, i] = ((x[:, i] - mean) / scale).nan_to_num(nan=0.0)
        described.append(replace(column, mean=mean.item(), scale=scale.item()))
    return items.float(), described
