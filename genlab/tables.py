"""Tables and rounded numbers for a terminal."""

from __future__ import annotations

import math
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_WIDTH = 80  # a narrower terminal breaks the lines itself
PIPE_WIDTH = 100  # of a table that is not printed to a terminal
INDENT = 1
GAP = 2  # between columns
MIN_REMARKS_WIDTH = 20
READABLE_WIDTH = 32  # of a column of text
BELOW_INDENT = 5  # of the cells that stand below their row, because they do not fit into a row
MAX_DECIMALS = 7  # an error that needs more is smaller than the number's own precision
PLAIN_DIGITS = 4  # significant digits of a number without an error
NUMBER = re.compile(r"[-+−]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?%?|nan|[-+]?inf|not finite|·")

NO_BREAK = "\N{NO-BREAK SPACE}"  # where a text must not be wrapped; printed as a space

# A row of a table; a string is a heading above the rows that follow.
TableRow = Sequence[str] | str


def terminal_width(pipe_width: int = PIPE_WIDTH) -> int:
    """Return the columns that a table may fill: those of the terminal, if there is one."""
    return max(MIN_WIDTH, shutil.get_terminal_size((pipe_width, 24)).columns)


def use_nonbreaking_spaces(text: str) -> str:
    """Return a text, such as a command to be copied, that a table does not wrap."""
    return text.replace(" ", NO_BREAK)


def print_wrapped(text: str) -> None:
    """Print a sentence that is as wide as the terminal at most."""
    print("\n  ".join(wrap_words(text, terminal_width() - 2)))


def print_message_on_stderr(text: str) -> None:
    """Print a line on standard error; on a terminal, wrapped between words."""
    lines = wrap_words(text, terminal_width() - 2) if sys.stderr.isatty() else [text]
    print("\n  ".join(lines), file=sys.stderr)


def print_table(header: Sequence[str], rows: Sequence[TableRow]) -> None:
    """Print a table that is as wide as the terminal at most."""
    print("\n".join(format_table(header, rows, terminal_width())))


def format_table(header: Sequence[str], rows: Sequence[TableRow], width: int) -> list[str]:
    """Return the lines of a table up to `width` columns wide.

    Text that is too long for its column is wrapped between words. Words, which may be paths to be
    copied, are never broken: a column without room for its longest word is left out, and its cells
    are written below their rows. Only a word that is longer than a whole line makes it wider.
    Columns of numbers are aligned right. A last column without a name has remarks: they take the
    room that the other columns leave, or are below their rows.
    """
    layout = choose_table_layout(header, [row for row in rows if not isinstance(row, str)], width)
    lines = ["", *layout.format_row(header)]
    if not rows or not isinstance(rows[0], str):
        lines.append(" " * INDENT + "─" * (layout.width_without_remarks - INDENT))
    for row in rows:
        if isinstance(row, str):
            lines += format_heading_with_rule(row, layout.width_without_remarks, width)
        else:
            lines += layout.format_row(row)
    return [line.replace(NO_BREAK, " ") for line in (*lines, "")]


@dataclass(frozen=True)
class TableLayout:
    """Where the cells of a row are.

    Attributes:
        header: the names of the columns.
        inside: the columns in a line, with their widths, and whether they are aligned right.
        below: the columns that are below the row.
        remarks: the column in the room that is left, or None.
        width: of a line.
    """

    header: Sequence[str]
    inside: list[int]
    widths: list[int]
    right: list[bool]
    below: list[int]
    remarks: int | None
    width: int

    @property
    def width_without_remarks(self) -> int:
        """The width of the columns, without remarks."""
        return total_row_width(self.widths)

    def format_row(self, row: Sequence[str]) -> list[str]:
        """Return the lines of a row."""
        texts = list(map(str, row))
        below = list(self.below)
        cells = []
        for j, width in zip(self.inside, self.widths, strict=True):
            is_too_long = longest_word_width(texts[j]) > width and j > 0
            below += [j] if is_too_long else []
            cells.append([""] if is_too_long else wrap_words(texts[j], width))
        lines = [
            join_cells_to_line(
                [cell[i] if i < len(cell) else "" for cell in cells], self.widths, self.right
            )
            for i in range(max(map(len, cells)))
        ]
        if self.remarks is not None and texts[self.remarks]:
            below += [] if self.add_remarks(lines, texts[self.remarks]) else [self.remarks]
        for j in sorted(below):
            if texts[j] and row is not self.header:
                lines += format_cell_below_row(self.header[j], texts[j], self.width)
        return lines

    def add_remarks(self, lines: list[str], text: str) -> bool:
        """Write a remark beside its row; return whether there was room for it."""
        room = self.width - self.width_without_remarks - GAP
        parts = wrap_words(text, room)
        is_narrow = len(parts) > 1 and room < MIN_REMARKS_WIDTH
        start = self.width_without_remarks + GAP
        if is_narrow or any(terminal_display_width(part) > room for part in parts):
            parts, start = [text], self.width - terminal_display_width(text)  # at the right edge
            if terminal_display_width(lines[0]) + GAP > start:
                return False
        lines += [""] * (len(parts) - len(lines))
        for i, part in enumerate(parts):
            lines[i] += " " * (start - terminal_display_width(lines[i])) + part
        return True


def choose_table_layout(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> TableLayout:
    """Return the layout of a table."""
    has_remarks = len(header) > 1 and not header[-1]
    columns = header[:-1] if has_remarks else header
    cells = [list(map(str, row)) for row in rows]
    if total_row_width(max_measure_per_column(columns, cells, terminal_display_width)) > width:
        cells = without_outliers(cells, width)
    natural = max_measure_per_column(columns, cells, terminal_display_width)
    smallest = max_measure_per_column(columns, cells, longest_word_width)
    inside, below = columns_inside_and_below(smallest, width)
    return TableLayout(
        header,
        inside,
        shrink_column_widths_to_fit(
            [natural[j] for j in inside], [smallest[j] for j in inside], width
        ),
        [j > 0 and is_numeric_column([row[j] for row in cells]) for j in inside],
        below,
        len(columns) if has_remarks else None,
        width,
    )


def without_outliers(cells: list[list[str]], width: int) -> list[list[str]]:
    """Return the cells without a few that have a long word, such as a path, for the widths.

    Those cells are written below their rows, so that they do not take the other cells' room.
    """
    columns = list(zip(*cells, strict=True))
    for j, column in enumerate(columns[1:], 1):
        long = {text for text in column if longest_word_width(text) > width // 3}
        if 2 * sum(text in long for text in column) <= sum(map(bool, column)):
            columns[j] = tuple("" if text in long else text for text in column)
    return [list(row) for row in zip(*columns, strict=True)]


def format_heading_with_rule(text: str, used: int, width: int) -> list[str]:
    """Return the lines of a heading, with a rule to the end of the row."""
    *lines, last = (" " * INDENT + line for line in wrap_words(text, width - INDENT))
    rule = "─" * max(0, used - terminal_display_width(last) - 1)
    return [*lines, f"{last} {rule}".rstrip()]


def format_cell_below_row(name: str, text: str, width: int) -> list[str]:
    """Return the lines of a cell that is below its row."""
    label = f"{name}:{NO_BREAK}" if name else ""  # stays beside the first word
    return [" " * BELOW_INDENT + line for line in wrap_words(label + text, width - BELOW_INDENT)]


def max_measure_per_column(
    header: Sequence[str], cells: list[list[str]], measure: Callable[[str], int]
) -> list[int]:
    """Return the largest measure of a text in each column."""
    return [
        max(measure(text) for text in (name, *(row[j] for row in cells)))
        for j, name in enumerate(header)
    ]


def columns_inside_and_below(smallest: list[int], width: int) -> tuple[list[int], list[int]]:
    """Return the columns that fit into a row, and those that must be below it."""
    inside = list(range(len(smallest)))
    below: list[int] = []
    while len(inside) > 1 and total_row_width([smallest[j] for j in inside]) > width:
        # the first column names the row: it stays, unless it is what needs the room
        others = inside[1:] if smallest[inside[0]] <= width // 2 else inside
        widest = max(others, key=lambda j: smallest[j])
        inside.remove(widest)
        below.append(widest)
    return inside, sorted(below)


def shrink_column_widths_to_fit(natural: list[int], smallest: list[int], width: int) -> list[int]:
    """Return column widths that fit: columns that can be wrapped become narrower.

    First the last of them, which has the longest text in most tables, then the widest.
    """
    widths = list(natural)
    while total_row_width(widths) > width:
        wrappable = [j for j in range(len(widths)) if widths[j] > smallest[j]]
        if not wrappable:
            break
        last = wrappable[-1]
        is_wide = widths[last] > READABLE_WIDTH
        widths[last if is_wide else max(wrappable, key=lambda j: widths[j])] -= 1
    return widths


def total_row_width(widths: list[int]) -> int:
    """Return the width of a row."""
    return INDENT + sum(widths) + GAP * max(0, len(widths) - 1)


def join_cells_to_line(texts: list[str], widths: list[int], right: list[bool]) -> str:
    """Return one line of a row."""
    parts = []
    for text, width, is_right in zip(texts, widths, right, strict=True):
        padding = " " * (width - terminal_display_width(text))
        parts.append(padding + text if is_right else text + padding)
    return (" " * INDENT + (" " * GAP).join(parts)).rstrip()


def is_numeric_column(texts: list[str]) -> bool:
    """Whether a column consists of numbers and empty cells."""
    filled = [text for text in texts if text]
    return bool(filled) and all(NUMBER.fullmatch(text) for text in filled)


def wrap_words(text: str, width: int) -> list[str]:
    """Return the lines of a text that is wrapped between words."""
    if terminal_display_width(text) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and terminal_display_width(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def longest_word_width(text: str) -> int:
    """Return the width of the longest word of a text."""
    return max(map(terminal_display_width, text.split(" ")))


def terminal_display_width(text: str) -> int:
    """Return the terminal columns that a text takes; a wide (East Asian) character takes two."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


# --- numbers --------------------------------------------------------------------------------------


def format_to_error_digits(value: float | None, error: float | None = None) -> str:
    """Return a number to the digit of its standard error, which has two significant digits.

    Without an error it has four significant digits. None is the empty text.
    """
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    if value == 0 and not error:
        return "0"
    if not error or not math.isfinite(error):
        short = f"{value:.{PLAIN_DIGITS}g}"
        return f"{value:,.0f}" if abs(float(short)) >= 1000 else short
    decimals = decimals_of_error(error)
    if decimals <= MAX_DECIMALS:
        return f"{round(value, decimals):,.{max(decimals, 0)}f}"
    return f"{value:.2g}" if abs(value) < 10**-PLAIN_DIGITS else f"{value:,.{MAX_DECIMALS}f}"


def decimals_of_error(error: float) -> int:
    """Return the decimals of an error with two significant digits; −1 stands for tens."""
    return 1 - math.floor(math.log10(abs(float(f"{error:.1e}"))))


def format_standard_error(error: float | None) -> str:
    """Return a standard error with two significant digits; the empty text for None."""
    return format_to_error_digits(error, error)


def format_with_error(value: float | None, error: float | None) -> str:
    """Return a number and its standard error: 97.94 ± 0.28."""
    number = format_to_error_digits(value, error)
    return number if error is None else f"{number} ± {format_standard_error(error)}"
