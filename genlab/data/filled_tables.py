"""Tables as text with missing cells: read their values, and fill the cells in place.

Everything else of the text stays as it is, byte for byte: cells, quotes, spaces, comments, line
ends and byte-order marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genlab.data.number_formats import PLAIN, NumberFormat, number_formats_of_all_cells
from genlab.data.table_columns import TRUTH_WORDS, are_true_or_false_cells, find_missing_cells
from genlab.data.table_files import (
    MISSING_WORDS,
    RawTable,
    TextFormat,
    read_decompressed_bytes,
    read_table,
)
from genlab.data.table_units import TableUnits
from genlab.data.text_files import BYTE_ORDER_MARKS
from genlab.errors import UserError, did_you_mean, make_printable
from genlab.untrusted.text import from_csv_cell

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
# Options of the dataset that say how a text is cut into cells.
FORMAT_OPTIONS = ("delimiter", "encoding", "header", "comment", "skip_rows")


class Span(NamedTuple):
    """Where a cell is in a text, with its quotes."""

    start: int
    end: int


@dataclass(frozen=True)
class IncompleteTable:
    """A table as text, of which some cells are missing.

    Attributes:
        text: all of it; `encoding` turns it into its bytes again.
        spans: row (N) -> column of the file -> its cell.
        columns: the columns of the file that the model knows, in its order.
        values: float64 (N, D) of these columns, NaN where a cell is missing.
        formats: how the numbers of each of these columns are written; None is true and false.
        row_numbers: the lines (N,) on which the rows begin, from 1.
    """

    text: str
    encoding: str
    delimiter: str
    spans: list[list[Span]]
    columns: list[int]
    values: np.ndarray
    formats: list[NumberFormat | None]
    row_numbers: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Whether each cell (N, D) is missing."""
        return np.isnan(self.values)

    def fill(self, values: np.ndarray, format_cell: Callable[[float, int], str]) -> bytes:
        """Return the bytes of the table with values (N, D) in its missing cells.

        Args:
            format_cell: returns the text of a value of the model's i-th column.
        """
        pieces, position = [], 0
        for row, i in sorted(
            zip(*np.nonzero(self.missing), strict=True),
            key=lambda place: self.spans[place[0]][self.columns[place[1]]],
        ):
            span = self.spans[row][self.columns[i]]
            cell = self.format_number(format_cell(values[row, i], i), self.formats[i])
            pieces += [self.text[position : span.start], cell]
            position = span.end
        return "".join([*pieces, self.text[position:]]).encode(self.encoding)

    def format_number(self, cell: str, number_format: NumberFormat | None) -> str:
        """Return a number as the other cells of its column write it."""
        if number_format is None:
            return "true" if float(cell) > 0.5 else "false"
        if number_format.decimal == "comma":
            cell = cell.replace(".", ",")
        return f'"{cell}"' if self.delimiter in cell else cell


def read_incomplete_table(
    file: Path, units: TableUnits, options: dict[str, Any], what: str
) -> IncompleteTable:
    """Return a table with missing cells, whose columns are found by their names.

    Args:
        options: of the dataset that the model was trained on, such as delimiter and missing_values.
        what: the option that names the file, for messages.

    Raises:
        UserError: it is not a text, a column is absent, or a cell is not a number.
    """
    words = options.get("missing_values")
    missing_words = MISSING_WORDS if words is None else tuple(str(word).strip() for word in words)
    given = {name: options[name] for name in FORMAT_OPTIONS if name in options}
    raw = read_table(file, TextFormat(**given, missing=missing_words))
    if not raw.delimiter:
        raise UserError(
            f"{what} is not a text, and only cells of text can be filled in; export it as CSV"
        )
    columns = find_columns(raw, units, what)
    parsed = [parse_column(raw, c, options, set(missing_words), what) for c in columns]
    text, encoding = read_exact_text(file, given.get("encoding"), what)
    return IncompleteTable(
        text,
        encoding,
        raw.delimiter,
        find_cells(text, raw, what),
        columns,
        np.stack([values for values, _ in parsed], 1),
        [number_format for _, number_format in parsed],
        raw.row_numbers,
    )


def find_columns(raw: RawTable, units: TableUnits, what: str) -> list[int]:
    """Return the columns of a file that a table has, in the table's order.

    Raises:
        UserError: a column is absent.
    """
    place = {from_csv_cell(name): c for c, name in enumerate(raw.names)}
    absent = [name for name in units.column_names if name not in place]
    if absent and not raw.has_names and len(raw.names) == len(units.column_names):
        return list(range(len(raw.names)))
    if absent:
        raise UserError(
            f"{what} has no column {make_printable(absent[0])}"
            f"{did_you_mean(absent[0], raw.names)}; the model was trained on the columns "
            f"{', '.join(units.column_names)}"
        )
    return [place[name] for name in units.column_names]


def parse_column(
    raw: RawTable, c: int, options: dict[str, Any], missing_words: set[str], what: str
) -> tuple[np.ndarray, NumberFormat | None]:
    """Return a column's numbers float64 (N,), NaN where missing, and how they are written.

    Raises:
        UserError: a cell is not a finite number.
    """
    cells = raw.columns[c]
    is_missing = find_missing_cells(cells, missing_words)
    known = cells[~is_missing]
    values = np.full(len(cells), np.nan)
    if len(known) and are_true_or_false_cells(known):
        values[~is_missing] = [TRUTH_WORDS[cell.lower()] for cell in known]
        return values, None
    marks = (options.get("decimal", "auto"), options.get("thousands", "auto"))
    number_format = next(iter(number_formats_of_all_cells(known, *marks)), PLAIN)
    numbers = [number_format.parse(cell) for cell in known]
    values[~is_missing] = [np.nan if number is None else number for number in numbers]
    sentinels = [n for word in missing_words if (n := PLAIN.parse(word)) is not None]
    is_missing |= np.isin(values, sentinels)  # the word -999 is -999.0, too
    values[is_missing] = np.nan
    bad = ~np.isfinite(values) & ~is_missing
    if bad.any():
        raise UserError(
            f"{what}, row {raw.row_numbers[bad][0]}, column {raw.names[c]}: "
            f"{make_printable(str(cells[bad][0]))!r} is not a finite number"
        )
    return values, number_format


# --- the cells in their text ----------------------------------------------------------------------


def read_exact_text(file: Path, encoding: str | None, what: str) -> tuple[str, str]:
    """Return the text of a file with its line ends, and the encoding that restores its bytes.

    Raises:
        UserError: the encoding does not.
    """
    data = read_decompressed_bytes(file)
    marked = next((code for mark, code in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    encoding = encoding or marked or "utf-8"
    text = data.decode(encoding)
    if text.encode(encoding) != data:
        raise UserError(
            f"{what} cannot be written again byte for byte in {encoding}; save it in UTF-8"
        )
    return text, encoding


def find_cells(text: str, raw: RawTable, what: str) -> list[list[Span]]:
    """Return where the cells of each row are in a text.

    Raises:
        UserError: they are not where the reader of tables found them.
    """
    starts = [match.start() for match in LINE.finditer(text)]
    rows = []
    for i, number in enumerate(raw.row_numbers.tolist()):
        start = starts[number - 1]
        if number == 1 and text.startswith("\ufeff"):
            start += 1
        spans = list(iterate_cells(text, start, raw.delimiter))
        spans = spans[: len(raw.columns)]
        cells = [unquote(text[span.start : span.end]) for span in spans]
        if cells != [column[i] for column in raw.columns]:
            raise UserError(
                f"{what}, row {number}: its cells cannot be located in the text, for example "
                "because a comment or a blank line is inside a quoted cell; remove it"
            )
        rows.append(spans)
    return rows


def iterate_cells(text: str, position: int, delimiter: str) -> Iterator[Span]:
    """Yield where the cells of the row that begins at a position are, without spaces around."""
    if delimiter == " ":
        end = re.compile(r"[\r\n]|\Z").search(text, position)
        assert end is not None
        for found in re.compile(r'"[^"]*"|\S+').finditer(text, position, end.start()):
            yield Span(*found.span())
        return
    mark = re.escape(delimiter)
    blank = "[ ]" if delimiter == "\t" else r"[ \t]"
    cell = re.compile(
        rf'{blank}*(?P<cell>"(?:[^"]|"")*"[^{mark}\r\n]*?|[^{mark}\r\n]*?){blank}*'
        rf"(?P<end>{mark}|\r\n|\r|\n|\Z)"
    )
    while (match := cell.match(text, position)) is not None:
        yield Span(*match.span("cell"))
        position = match.end()
        if match["end"] != delimiter:
            return


def unquote(cell: str) -> str:
    """Return a cell's content: without quotes and outer spaces, and with line ends as LF."""
    if cell.startswith('"'):
        cell = re.sub(r'"((?:[^"]|"")*)"', lambda match: match[1].replace('""', '"'), cell, count=1)
    return cell.replace("\r\n", "\n").replace("\r", "\n").strip()
