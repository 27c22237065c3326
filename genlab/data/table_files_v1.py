"""Read text tables as genlab 0.7 did, so that its runs find the same rows and classes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from genlab.data.number_formats import is_python_number
from genlab.data.table_files import (
    MAX_TEXT_BYTES,
    RawTable,
    format_column_count,
    make_column_names_unique,
)
from genlab.errors import UserError
from genlab.untrusted.files import read_bytes


def read_text_table_v1(file: Path) -> RawTable:
    """Return the cells of a text file, without its row of names."""
    text = read_bytes(file, MAX_TEXT_BYTES).decode(errors="replace")
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty")
    split_line = make_line_splitter(lines[0][1])
    try:
        rows = [[cell.strip() for cell in split_line(line)] for _, line in lines]
    except csv.Error as error:
        raise UserError(f"{file} is not a readable table: {error}") from error
    for (i, _), row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{file}, row {i}: {format_column_count(len(row))}, where the first row has "
                f"{len(rows[0])}"
            )
    first = 1 if has_header_row_v1(rows) else 0
    columns = [np.array(cells, object) for cells in zip(*rows[first:], strict=True)]
    names = rows[0] if first else [""] * len(columns)
    numbers = np.array([i for i, _ in lines[first:]])
    table = make_column_names_unique(RawTable(names, columns, numbers, bool(first)))
    table.unnamed = set()  # a column that numbers the rows was used
    return table


def make_line_splitter(line: str) -> Callable[[str], list[str]]:
    """Return the function that splits lines like this one at comma, semicolon, tab or blanks."""
    delimiter = next((mark for mark in ",;\t" if mark in line), None)
    if delimiter is None:
        return str.split

    def split(line: str) -> list[str]:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))

    return split


def has_header_row_v1(rows: list[list[str]]) -> bool:
    """Whether the first row is names: a column is a word there and a number in the second row."""
    return len(rows) > 1 and any(
        is_python_number(second) and not is_python_number(first)
        for first, second in zip(rows[0], rows[1], strict=True)
    )


def sort_classes_v1(cells: np.ndarray) -> list[str]:
    """Return the different labels, sorted as numbers, else alphabetically."""
    known = sorted(set(cells))
    with suppress(ValueError):  # words stay in alphabetical order
        known.sort(key=float)
    return known
