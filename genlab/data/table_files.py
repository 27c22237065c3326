"""Read tables from text such as CSV, NumPy arrays and Parquet as columns of cells.

The rows of text are cut by Python's csv reader. A reader that guesses types per column, as that of
pandas, is not used: it fills short rows, drops the ends of long ones, takes 1,5 for 15 when the
comma separates thousands, and reads a class named NA as missing, all without a word.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from genlab.console import track
from genlab.data.npy_files import read_numpy_arrays
from genlab.data.number_formats import number_formats_of_all_cells
from genlab.data.summary import LeftOut
from genlab.data.text_files import (
    BYTE_ORDER_MARKS,
    SAMPLE_BYTES,
    TextReader,
    UnreadableTextError,
    describe_binary_data,
)
from genlab.errors import UserError, make_printable
from genlab.untrusted.files import half_memory_bytes, open_regular_file

MAX_TEXT_BYTES = 2**31  # of a table in text
MEMORY_PER_BYTE = 10  # bytes of memory that a byte of text takes as cells
MAX_ROW_CHARACTERS = 2**20
MAX_NAMES_SHOWN = 8  # of columns, in a note
SAMPLE_ROWS = 200  # rows from which the delimiter and the header are recognized
# Cells without a value, as pandas and R know them; an empty cell always is one.
MISSING_WORDS = (
    *("?", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null"),
    *("None", "1.#QNAN", "1.#IND", "-1.#QNAN", "-1.#IND", "."),
)
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
COMPRESSED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
COMPRESSION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile)
# The line of Excel that says the delimiter, also after it was saved with empty cells.
EXCEL_MARKER = re.compile(r'\s*"?sep=(.)"?\1*\s*', re.IGNORECASE)
EXPORT = "export it as CSV (from a spreadsheet: Save as, CSV UTF-8)"


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a table is written as text; None and "auto" recognize it from the file.

    Args:
        delimiter: between cells, by name or as one character.
        encoding: a name of Python's codecs; None is UTF-8, or what a byte-order mark says.
        header: whether the first row has the names of the columns.
        comment: lines that begin with it are left out; None reads every line.
        skip_rows: lines above the table, such as a title.
        missing: words of cells without a value.
        allow_short_rows: whether a row may lack its last cells.
    """

    delimiter: str = "auto"
    encoding: str | None = None
    header: bool | None = None
    comment: str | None = "#"
    skip_rows: int = 0
    missing: tuple[str, ...] = MISSING_WORDS
    allow_short_rows: bool = False


@dataclass
class RawTable:
    """The cells of a table as they are in its file.

    Attributes:
        columns: of each column the cells (N,): numbers, or texts; an absent cell is "".
        row_numbers: where each row is in the file, for messages: the line from 1 of text, the index
            from 0 of an array.
        has_names: whether the file names its columns; otherwise all are column_0, column_1, ….
        unnamed: columns that the row of names leaves without one; they are column_0, column_1, ….
        has_row_labels: whether the row of names leaves out the first column, as R writes it.
        labels: the classes (N,) that a .npz file contains beside the table.
        notes: decisions made while reading, each one sentence.
    """

    names: list[str]
    columns: list[np.ndarray]
    row_numbers: np.ndarray
    has_names: bool = True
    unnamed: set[int] = field(default_factory=set)
    has_row_labels: bool = False
    labels: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    delimiter: str = ""  # between the cells of text; "" for other files

    def __len__(self) -> int:
        return len(self.row_numbers)


def read_table(file: Path, text_format: TextFormat) -> RawTable:
    """Return the cells of a table's file, by its content and suffix.

    Raises:
        UserError: it is not a table, or its rows differ in length; names the row.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; a table is one file: give its path")
    with open_regular_file(file) as f:
        start = f.read(8)
    suffix = file.suffix.lower()
    if start.startswith(b"\x93NUMPY") or suffix in (".npy", ".npz"):
        return read_numpy_table(file)
    if start.startswith(b"PAR1") or suffix in (".parquet", ".pq"):
        return read_parquet_table(file)
    return read_text_table(file, text_format)


# --- arrays and Parquet ---------------------------------------------------------------------------


def read_numpy_table(file: Path) -> RawTable:
    """Return a .npy array (N, columns); of a .npz file x (N, columns) and its labels y (N,)."""
    arrays = read_numpy_arrays(file, str(file))
    labels = arrays.pop("y", None)
    name = next((key for key in ("x", "arr_0", *arrays) if key in arrays), None)
    rows = arrays.get(name, np.empty(0)) if name else np.empty(0)
    if rows.ndim != 2 or not rows.size:
        raise UserError(
            f"{file} has {rows.dtype} of shape {rows.shape}; a table is numbers of shape "
            "(rows, columns)"
        )
    if labels is not None and labels.shape != (len(rows),):
        raise UserError(f"{file}: y is {labels.shape}, and the table has {len(rows):,} rows")
    columns = [""] * rows.shape[1]
    table = RawTable(columns, list(rows.T), np.arange(len(rows)), False, labels=labels)
    if len(arrays) > 1:
        others = ", ".join(key for key in arrays if key != name)
        table.notes.append(f"the array {name} is read, not {others}")
    return make_column_names_unique(table)


def read_parquet_table(file: Path) -> RawTable:
    """Return the columns of a Parquet file, by pyarrow."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(
            f"{file} is a Parquet file, which needs pyarrow: pip install 'genlab[parquet]', or "
            "export the table as CSV"
        ) from None
    from pyarrow import ArrowException, types

    try:
        metadata = parquet.read_metadata(file)
        if 8 * metadata.num_rows * metadata.num_columns > half_memory_bytes():
            raise UserError(f"{file} takes more than half of this machine's memory")
        content = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise UserError(
            f"{file} is not a readable Parquet file: {make_printable(str(error))}"
        ) from error
    names, columns = [], []
    for name, column in zip(content.column_names, content.columns, strict=True):
        kind = column.type
        names.append(name)
        is_exact = (types.is_boolean(kind) or types.is_integer(kind)) and not column.null_count
        if is_exact or types.is_floating(kind):
            columns.append(column.to_numpy())
        else:
            columns.append(np.array(["" if v is None else str(v) for v in column.to_pylist()], "O"))
    table = RawTable(names, columns, np.arange(content.num_rows))
    return make_column_names_unique(table)


# --- text -----------------------------------------------------------------------------------------


def read_text_table(file: Path, text_format: TextFormat) -> RawTable:
    """Return the cells of a table in text, without blank lines, comments and the row of names."""
    notes: list[str] = []
    left_out = LeftOut()
    lines = select_table_lines(
        read_table_text(file, text_format.encoding, notes), text_format, file, left_out
    )
    if not lines.texts:
        raise UserError(f"{file} is empty" + (" below its comments" if lines.comments else ""))
    sep = DELIMITERS.get(text_format.delimiter, text_format.delimiter)
    if (marker := EXCEL_MARKER.fullmatch(lines.texts[0])) and len(lines.texts) > 1:
        lines.drop_first_line()  # an instruction to Excel
        sep = marker[1] if sep == "auto" else sep
    if sep == "auto":
        sep = find_delimiter(lines.texts[:SAMPLE_ROWS])
    rows, numbers = split_lines_into_rows_and_numbers(lines, sep, file)
    if len(rows) < len(lines.texts):
        notes.append(f"{len(lines.texts) - len(rows):,} line ends are inside quoted cells")
    names, header = take_column_names(rows, numbers, lines, sep, text_format)
    if lines.comments:
        left_out.add("a comment", count=lines.comments)
    if not rows and lines.comments:
        raise UserError(
            f"{file} has no rows besides its row of names, because {lines.comments:,} lines begin "
            f"with {text_format.comment}; dataset.comment=null reads them"
        )
    rows, numbers = rows_of_common_width(names, rows, numbers, file, text_format, left_out)
    if (k := lines.count_comments_like_rows(len(rows[0]), sep)) and len(rows[0]) > 1:
        notes.append(
            f"{k:,} of the comments are rows of the table behind a {text_format.comment}; "
            "dataset.comment=null reads them"
        )
    table = rows_to_raw_table(names, rows, numbers)
    table.notes = [f"{describe_delimiter(file, sep)}, {header}", *notes]
    table.left_out = left_out
    table.delimiter = sep
    return make_column_names_unique(table)


def read_table_text(file: Path, encoding: str | None, notes: list[str]) -> str:
    """Return the text of a file, which may be compressed, with its line ends as LF."""
    data = read_decompressed_bytes(file)
    marked = next((code for mark, code in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    encoding = encoding or marked or "utf-8"
    if re.match(rb"\s*(%[^\n]*\n\s*)*@relation\b", data[:4096], re.I):
        raise UserError(f"{file} is an ARFF file of Weka, which is not read; {EXPORT}")
    reader = TextReader(encoding, normalize_newlines=True)
    try:
        text = reader.decode(data)
    except UnreadableTextError as error:
        if error.position is None:
            raise UserError(f"{file} is {error.kind}, not a table as text; {EXPORT}") from error
        raise UserError(f"{file} {error.explain(data)}") from error
    if encoding != "utf-8":
        notes.append(f"its encoding is {encoding}" + (", by its byte-order mark" * bool(marked)))
    elif marked:
        notes.append("a byte-order mark at its start is not a part of the first column")
    if text.lstrip()[:1] in ("{", "[") and re.match(r"\s*[\[{]\s*[\[{\"\]}]", text):
        raise UserError(f"{file} is JSON, which is not read as a table; {EXPORT}")
    return text


def read_decompressed_bytes(file: Path) -> bytes:
    """Return the bytes of a file, unpacked if it is compressed.

    Raises:
        UserError: it is damaged, not a text, or too large.
    """
    limit = min(MAX_TEXT_BYTES, half_memory_bytes() // MEMORY_PER_BYTE)
    try:
        with open_regular_file(file) as raw:
            start = raw.read(8)
            raw.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return read_only_file_in_zip(raw, file, limit)
            for mark, unpack in COMPRESSED.items():
                if start.startswith(mark):
                    with unpack(raw, "rb") as stream:
                        return read_bounded(stream, file, limit)
            return read_bounded(raw, file, limit)
    except COMPRESSION_ERRORS as error:
        raise UserError(f"{file} is damaged: {make_printable(str(error))}") from error
    except OSError as error:
        if error.filename:
            raise
        raise UserError(f"{file} is damaged: {make_printable(str(error))}") from error


def read_only_file_in_zip(raw: IO[bytes], file: Path, limit: int) -> bytes:
    """Return the bytes of the only file in an open ZIP archive."""
    with zipfile.ZipFile(raw) as archive:
        members = [
            part
            for part in archive.infolist()
            if not part.is_dir() and not part.filename.startswith("__MACOSX/")
        ]
        if any(part.filename == "[Content_Types].xml" for part in members):
            raise UserError(f"{file} is a spreadsheet of Excel, which is not read; {EXPORT}")
        if len(members) != 1:
            raise UserError(
                f"{file} is a ZIP archive of {len(members)} files; unpack it and give one of them"
            )
        with archive.open(members[0]) as stream:
            return read_bounded(stream, file, limit)


def read_bounded(stream: IO[bytes], file: Path, limit: int) -> bytes:
    """Return the rest of a stream, after checking that its start is text.

    Raises:
        UserError: it is another kind of file, or has more than `limit` bytes.
    """
    start = stream.read(SAMPLE_BYTES)
    if kind := describe_binary_data(start):
        raise UserError(f"{file} is {kind}, not a table as text; {EXPORT}")
    data = start + stream.read(limit + 1 - len(start))
    if len(data) > limit:
        raise UserError(
            f"{file} has more than {limit / 2**30:.2g} GB of text; convert a table of that size to "
            ".npy"
        )
    return data


@dataclass
class TableLines:
    """The lines of a text that belong to its table, and their numbers from 1.

    `heading` is the comment above the first of them, and `comments` the number of all comments.
    """

    texts: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    heading: str = ""
    comments: int = 0
    comments_below: list[str] = field(default_factory=list)  # the first of them

    def count_comments_like_rows(self, width: int, sep: str) -> int:
        """Return how many of the first comments have as many cells as the rows of the table."""
        return sum(len(cells) == width for cells in self.split_comments(sep))

    def split_comments(self, sep: str) -> Iterator[list[str]]:
        """Yield the cells of each of the first comments below the first line."""
        for comment in self.comments_below:
            try:
                yield from split_lines_into_cells([comment], sep)
            except csv.Error:
                continue

    def drop_first_line(self) -> None:
        """Leave out the first line."""
        del self.texts[0], self.numbers[0]


def select_table_lines(
    text: str, text_format: TextFormat, file: Path, left_out: LeftOut
) -> TableLines:
    """Return the lines of a text that are neither blank nor comments, below the skipped ones."""
    lines, comment = TableLines(), text_format.comment
    for number, line in enumerate(text.split("\n"), 1):
        if number <= text_format.skip_rows:
            left_out.add("a line above the table", f"line {number}")
        elif comment and line.lstrip().startswith(comment):
            lines.comments += 1
            if not lines.texts:
                lines.heading = line.lstrip().removeprefix(comment)
            elif len(lines.comments_below) < SAMPLE_ROWS:
                lines.comments_below.append(line)
        elif line.strip():
            if len(line) > MAX_ROW_CHARACTERS:
                raise UserError(
                    f"{file}, row {number} has {len(line):,} characters; the limit is "
                    f"{MAX_ROW_CHARACTERS:,}"
                )
            lines.texts.append(line)
            lines.numbers.append(number)
    return lines


def describe_delimiter(file: Path, sep: str) -> str:
    """Return the file and what separates its cells in words."""
    word = next((name for name, mark in DELIMITERS.items() if mark == sep), f"{sep!r}")
    return f"{make_printable(file.name)}: cells are separated by {word}"


# --- cells ----------------------------------------------------------------------------------------


def split_lines_into_cells(lines: Iterable[str], sep: str) -> Iterator[list[str]]:
    """Yield the cells of each row, stripped; quotes protect delimiters and line ends."""
    if sep == " ":
        for line in lines:
            yield [cell.strip('"') for cell in re.findall(r'"[^"]*"|\S+', line)]
        return
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=sep, skipinitialspace=True)
    for row in reader:
        yield [cell.strip() for cell in row]


def split_lines_into_rows_and_numbers(
    lines: TableLines, sep: str, file: Path
) -> tuple[list[list[str]], list[int]]:
    """Return the cells of each row, and the line on which the row begins.

    Raises:
        UserError: a quote is never closed, or a cell is too long.
    """
    if sep == " ":
        return list(split_lines_into_cells(lines.texts, sep)), lines.numbers
    reader = csv.reader((f"{line}\n" for line in lines.texts), delimiter=sep, skipinitialspace=True)
    rows, numbers, begin = [], [], 0
    try:
        for row in track(
            reader, f"reading {make_printable(file.name)}", len(lines.texts), unit="rows"
        ):
            rows.append([cell.strip() for cell in row])
            numbers.append(lines.numbers[begin])
            begin = reader.line_num
    except csv.Error as error:
        where = lines.numbers[min(begin, len(lines.numbers) - 1)]
        raise UserError(f"{file} is not a readable table: row {where}: {error}") from error
    return rows, numbers


def find_delimiter(sample: Sequence[str]) -> str:
    """Return the delimiter that cuts the first lines into as many cells each, mostly numbers."""
    best, best_score = ",", 0.0
    for sep in DELIMITERS.values():
        try:
            rows = list(split_lines_into_cells(sample, sep))
        except csv.Error:
            continue
        widths = Counter(map(len, rows))
        width, count = widths.most_common(1)[0]
        if width < 2:
            continue
        others = [mark for mark in DELIMITERS.values() if mark not in (sep, " ")]
        cells = [cell for row in rows[1:] or rows for cell in row]
        quality = sum(score_cell_plausibility(cell, others) for cell in cells) / max(1, len(cells))
        score = quality * count / len(rows)
        if score > best_score:
            best, best_score = sep, score
    return best


def score_cell_plausibility(cell: str, others: Sequence[str]) -> float:
    """Return how much a cell looks like one: 1 for a number, 0.1 if it holds other delimiters."""
    if not cell or cell in MISSING_WORDS or number_formats_of_all_cells([cell]):
        return 1.0
    return 0.1 if any(mark in cell for mark in others) else 0.5


# --- names ----------------------------------------------------------------------------------------


def take_column_names(
    rows: list[list[str]], numbers: list[int], lines: TableLines, sep: str, text_format: TextFormat
) -> tuple[list[str] | None, str]:
    """Take the row of names from the rows; return the names, or None, and where they are.

    Without such a row, the comment above the table names the columns if it has as many words, as
    NumPy writes it.
    """
    wanted = text_format.header
    if wanted or (wanted is None and has_header_row(rows, text_format.missing)):
        del numbers[0]
        names, text = rows.pop(0), "the first row has the names of the columns"
        if wanted is None and any(is_number_text(name) and not name.isdecimal() for name in names):
            listed = make_printable(", ".join(names[:MAX_NAMES_SHOWN]))
            text += f", though some are numbers ({listed}): dataset.header=false reads it as values"
        return names, text
    if wanted is None and lines.heading:
        for cut in (sep, " "):
            names = next(split_lines_into_cells([lines.heading], cut), [])
            if len(names) == len(rows[0]) > 1 and not any(map(is_number_text, names)):
                lines.comments -= 1
                return names, "the comment above it has the names of the columns"
    return None, "no row has the names of the columns"


def has_header_row(rows: list[list[str]], missing: Sequence[str] = MISSING_WORDS) -> bool:
    """Whether the first row is names.

    It is if a column has a word there and numbers below it, or a word that occurs only there while
    the words below it repeat; or if it is 0, 1, 2, …, as pandas names the columns of an array.
    """
    first, sample = rows[0], rows[1:SAMPLE_ROWS]
    if not sample:
        return not any(cell in missing or is_number_text(cell) for cell in first)
    shift = (
        1 if most_common_cell_count(sample) == len(first) + 1 else 0
    )  # R does not name row labels
    for c, name in enumerate(first, shift):
        below = [row[c] for row in sample if c < len(row) and row[c] and row[c] not in missing]
        if not name or name in missing or is_number_text(name) or not below:
            continue
        found = [is_number_text(cell) for cell in below]
        if found[0] or sum(found) > len(found) / 2:
            return True
        if not any(found) and name not in below and min(Counter(below).values()) > 1:
            return True
    counted = [str(i) for i in range(len(first))]
    return len(first) > 1 and (first == counted or first == ["", *counted[:-1]])


def is_number_text(cell: str) -> bool:
    """Whether a cell is a number, however its decimals and thousands are marked."""
    return bool(number_formats_of_all_cells([cell]))


def rows_of_common_width(
    names: list[str] | None,
    rows: list[list[str]],
    numbers: list[int],
    file: Path,
    text_format: TextFormat,
    left_out: LeftOut,
) -> tuple[list[list[str]], list[int]]:
    """Return the rows that have as many cells as most, and where they are in the file.

    Raises:
        UserError: a row has too many cells, or too few and `allow_short_rows` is not set.
    """
    if not rows:
        raise UserError(f"{file} has a row of names, and no rows below it")
    first = rows[0] if names is None else names
    width = len(first)
    if names is not None and most_common_cell_count(rows) == width + 1:
        width += 1  # R does not name the row labels, or each row ends with a delimiter
    short = {i for i, row in enumerate(rows) if len(row) < width}
    bad = [i for i, row in enumerate(rows) if len(row) > width]
    if not text_format.allow_short_rows:
        bad = sorted({*bad, *short})
    if bad:
        row, line = rows[bad[0]], numbers[bad[0]]
        hint = explain_wrong_row_width(first, rows, numbers, bad[0], is_short=bad[0] in short)
        raise UserError(
            f"{file}, row {line}: {format_column_count(len(row))}, where the first row has "
            f"{len(first)}{hint}"
        )
    if not short:
        return rows, numbers
    for i in short:
        left_out.add("a row with fewer cells than columns", f"row {numbers[i]}")
    kept = [i for i in range(len(rows)) if i not in short]
    return [rows[i] for i in kept], [numbers[i] for i in kept]


def explain_wrong_row_width(
    first: list[str], rows: list[list[str]], numbers: list[int], bad: int, *, is_short: bool
) -> str:
    """Return what to do about row `bad`, whose number of cells differs from the first row's."""
    width = most_common_cell_count(rows)
    if width > len(first):
        begin = next(number for row, number in zip(rows, numbers, strict=True) if len(row) == width)
        return f"; if the table begins below a title, set dataset.skip_rows={begin - 1}"
    if any("\n" in cell for cell in rows[bad]):
        return '; a quote (") in it is not closed'
    return "; fix it, or leave out short rows with dataset.drop_missing=true" if is_short else ""


def most_common_cell_count(rows: list[list[str]]) -> int:
    """Return the number of cells that most of the first rows have."""
    return Counter(map(len, rows[:SAMPLE_ROWS])).most_common(1)[0][0]


def rows_to_raw_table(
    names: list[str] | None, rows: list[list[str]], numbers: list[int]
) -> RawTable:
    """Return rows of equally many cells as columns."""
    columns = [np.array(cells, object) for cells in zip(*rows, strict=True)]
    table = RawTable(names or [""] * len(columns), columns, np.array(numbers), names is not None)
    if names is not None and len(names) < len(columns):
        table.has_row_labels = bool((columns[-1] != "").any())
        table.names = ["", *names] if table.has_row_labels else [*names, ""]
    return table


def format_column_count(n: int) -> str:
    """Return a number of columns in words."""
    return f"{n} column{'' if n == 1 else 's'}"


def make_column_names_unique(table: RawTable) -> RawTable:
    """Name the columns without a name, and number those whose names occur twice."""
    names: list[str] = []
    renamed: list[str] = []
    taken: set[str] = set()
    given = set(table.names)
    numbers: dict[str, int] = {}  # the last number of each name that occurs again
    for i, name in enumerate(map(make_printable, table.names)):
        if not name or re.fullmatch(r"Unnamed: \d+", name):  # pandas writes the latter
            table.unnamed.add(i)
            name = f"column_{i}"
        unique, k = name, 0
        if name in taken:
            k = numbers.get(name, 0)
        while unique in taken or (k and unique in given):
            k += 1
            unique = f"{name}.{k}"
        if k:
            numbers[name] = k
            renamed.append(f"a further column {name} is read as {unique}")
        names.append(unique)
        taken.add(unique)
    table.notes += renamed[:MAX_NAMES_SHOWN]
    if len(renamed) > MAX_NAMES_SHOWN:
        table.notes.append(f"{len(renamed) - MAX_NAMES_SHOWN:,} further columns are renamed so")
    table.names = names
    if not table.has_names:
        table.unnamed = set()
    return table
