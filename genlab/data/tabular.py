"""Any table of numbers, as text (CSV and similar) or as a NumPy array."""

import csv
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.data.class_subset import ClassSubset
from genlab.data.dataset import SPLITS, Split
from genlab.data.npy_files import read_arrays
from genlab.data.shuffling import split_indices
from genlab.errors import UserError
from genlab.spec import Count, DataSpec, Fraction

MAX_CLASSES = 100  # a label column with more values is not taken for classes
MAX_TEXT_BYTES = 2**31  # of a table in text, which takes some ten times as much memory
MAX_ROW_CHARACTERS = 2**20


@dataclass(kw_only=True, eq=False)
class Table(ClassSubset):
    """The rows of a file as points, standardized by the training rows' mean and deviation.

    `mean` and `scale` (D,) are what was subtracted and divided by; likelihoods are of the
    standardized values.

    Args:
        path: a .npy array (N, columns), or text with one row per line, its cells separated by
            comma, semicolon, tab or blanks; a first line of names is skipped. Required.
        label: the column of the classes: the last, none, or its number from 0.
        skip_columns: columns to leave out, numbered from 0.
        validation, test: fractions held out by the seed `split_seed`.
    """

    path: str | None = None
    label: Literal["last", "none"] | int = "last"
    skip_columns: tuple[Count, ...] = ()
    standardize: bool = True
    validation: Fraction = 0.1
    test: Fraction = 0.1
    split_seed: Count = 0
    name = "table"

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("table needs its file: dataset.path=<file.csv or file.npy>")
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(f"dataset.path={self.path}: no such file (looked for {file.resolve()})")
        self.source_files = [file]
        rows: Any
        rows, row_numbers = read_npy_table(file) if file.suffix == ".npy" else read_text_table(file)
        x, y = self.to_numbers(rows, row_numbers)
        sizes = [round(fraction * len(x)) for fraction in (self.test, self.validation)]
        test, validation, train = split_indices(len(x), sizes, self.split_seed)
        if not len(train):
            raise UserError(
                f"dataset.validation={self.validation:g} and dataset.test={self.test:g} leave none "
                f"of the {len(x):,} rows to train on"
            )
        self.mean, self.scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if self.standardize:
            deviation = x[train].std(0, correction=0)
            self.mean, self.scale = x[train].mean(0), torch.where(deviation > 0, deviation, 1.0)
        table = Split(((x - self.mean) / self.scale).float(), y)
        num_classes = 0 if y is None else int(y.max()) + 1
        self.set_splits(
            DataSpec(shape=(x.shape[1],), kind="points", num_classes=num_classes, levels=0),
            {
                "test": table.subset(test),
                "validation": table.subset(validation),
                "train": table.subset(train),
            },
            hints=dict.fromkeys(
                SPLITS, "set dataset.validation or dataset.test, the fractions to hold out"
            ),
        )

    def to_numbers(
        self, rows: Sequence[Sequence[Any]], row_numbers: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the numbers float64 (N, D) and the labels (N,) of a table's cells.

        Args:
            row_numbers: where each row is in the file, for error messages.
        """
        width = len(rows[0])
        label: int | None
        if self.label == "last":
            label = width - 1
        elif self.label == "none":
            label = None
        else:
            label = self.label
        for column in (label, *self.skip_columns):
            if column is not None and not 0 <= column < width:
                raise UserError(
                    f"{self.path}: no column {column}; its {width} columns are 0 to {width - 1}"
                )
        used = [c for c in range(width) if c != label and c not in self.skip_columns]
        if not used:
            raise UserError(
                f"{self.path} has only its label column; dataset.label=none uses all columns"
            )
        values = np.empty((len(rows), len(used)))
        for r, (row, number) in enumerate(zip(rows, row_numbers, strict=True)):
            values[r] = [self.parse_number(row[c], number, c) for c in used]
        y = None if label is None else self.to_classes([row[label] for row in rows])
        return torch.from_numpy(values), y

    def parse_number(self, cell: str | float, row: int, column: int) -> float:
        """Return the number in a cell.

        Raises:
            UserError: it is not a finite number.
        """
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{self.path}, row {row}, column {column}: {str(cell)!r} is not a finite number;"
                f" fix it, or leave the column out with dataset.skip_columns=[{column}]"
            )
        return value

    def to_classes(self, cells: list) -> Tensor:
        """Return the classes 0, 1, … (N,) of values, sorted as numbers, else alphabetically."""
        known = sorted(set(cells))
        if len(known) > MAX_CLASSES:
            raise UserError(
                f"the label column of {self.path} has {len(known):,} values, too many for classes;"
                " choose another column with dataset.label=<number>, or dataset.label=none"
            )
        with suppress(ValueError):  # words stay in alphabetical order
            known.sort(key=float)
        number = {value: i for i, value in enumerate(known)}
        return torch.tensor([number[cell] for cell in cells])


def read_npy_table(file: Path) -> tuple[np.ndarray, Sequence[int]]:
    """Return a .npy file's array (N, columns), and the numbers of its rows from 0."""
    rows = read_arrays(file, str(file)).get("x", np.empty(0))
    if rows.ndim != 2 or not rows.size:
        raise UserError(
            f"{file} has {rows.dtype} of shape {rows.shape}; a table is numbers of shape "
            "(rows, columns)"
        )
    return rows, range(len(rows))


def read_text_table(file: Path) -> tuple[list[list[str]], Sequence[int]]:
    """Return the cells of a text file without its line of names, and each row's line from 1."""
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(
            f"{file} has more than {MAX_TEXT_BYTES / 2**30:g} GB; convert a table of that size to "
            ".npy"
        )
    lines = [
        (i, line)
        for i, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
        if line.strip()
    ]
    if not lines:
        raise UserError(f"{file} is empty")
    for i, line in lines:
        if len(line) > MAX_ROW_CHARACTERS:
            raise UserError(
                f"{file}, row {i} has {len(line):,} characters; the limit is {MAX_ROW_CHARACTERS:,}"
            )
    split_line = line_splitter(lines[0][1])
    try:
        rows = [[cell.strip() for cell in split_line(line)] for _, line in lines]
    except csv.Error as error:
        raise UserError(f"{file} is not a readable table: {error}") from error
    for (i, _), row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{file}, row {i}: {len(row)} columns, where the first row has {len(rows[0])}"
            )
    first = 1 if has_header_row(rows) else 0
    return rows[first:], [i for i, _ in lines[first:]]


def line_splitter(line: str) -> Callable[[str], list[str]]:
    """Return the function that splits lines like this one at comma, semicolon, tab or blanks."""
    delimiter = next((mark for mark in ",;\t" if mark in line), None)
    if delimiter is None:
        return str.split

    def split(line: str) -> list[str]:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))

    return split


def has_header_row(rows: list[list[str]]) -> bool:
    """Whether the first row is names: a column is a word there and a number in the second row."""
    return len(rows) > 1 and any(
        is_number(second) and not is_number(first)
        for first, second in zip(rows[0], rows[1], strict=True)
    )


def is_number(cell: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
