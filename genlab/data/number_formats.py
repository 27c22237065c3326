"""Numbers as people and programs write them: 1234.5, 1,234.5, 1.234,5 and 1 234,5."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Decimal = Literal["auto", "dot", "comma"]
Thousands = Literal["auto", "none", "comma", "dot", "space", "apostrophe"]

MARKS = {"dot": ".", "comma": ",", "space": " \u00a0\u2009\u202f", "apostrophe": "'’"}


@dataclass(frozen=True)
class NumberFormat:
    """A decimal mark, and the mark that separates thousands ("none" is allowed), by name."""

    decimal: str = "dot"
    thousands: str = "none"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The regular expression of a number; its group `groups` is an integer in thousands."""
        integer = r"\d+"
        if self.thousands != "none":
            marks = re.escape(MARKS[self.thousands])
            integer = (
                rf"(?P<groups>[1-9]\d{{0,2}}(?P<mark>[{marks}])\d{{3}}(?:(?P=mark)\d{{3}})*)|\d+"
            )
        decimal = re.escape(MARKS[self.decimal])
        return re.compile(
            rf"[+-]?(?:(?:{integer})(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][+-]?\d+)?|[+-]?inf(?:inity)?",
            re.IGNORECASE | re.ASCII,
        )

    def parse(self, cell: str) -> float | None:
        """Return the number in a cell, None if it is not a number in this format."""
        if not self.pattern.fullmatch(cell):
            return None
        if self.thousands != "none":
            cell = re.sub(f"[{re.escape(MARKS[self.thousands])}]", "", cell)
        return float(cell.replace(MARKS[self.decimal], "."))

    def describe(self) -> str:
        """Return this format in words."""
        parts = []
        if self.decimal == "comma":
            parts.append("the comma is the decimal mark")
        if self.thousands != "none":
            parts.append(f"the {self.thousands} separates thousands")
        return " and ".join(parts) or "the dot is the decimal mark"


PLAIN = NumberFormat()
FORMATS = tuple(
    NumberFormat(decimal, thousands)
    for decimal in ("dot", "comma")
    for thousands in ("none", "comma", "dot", "space", "apostrophe")
    if decimal != thousands
)


def is_python_number(cell: str) -> bool:
    """Whether a cell is a number as Python writes it."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parse_python_numbers(cells: np.ndarray) -> np.ndarray | None:
    """Return texts (N,) as float64 (N,), "" as nan; None if one is not a number.

    Numbers are as Python writes them, but without underscores: 2020_1 is a name.
    """
    try:
        numbers = np.where(cells == "", "nan", cells).astype(np.float64)
    except ValueError:
        return None
    return None if any("_" in cell for cell in cells) else numbers


def number_formats_of_all_cells(
    cells: Iterable[str], decimal: Decimal = "auto", thousands: Thousands = "auto"
) -> list[NumberFormat]:
    """Return the formats in which all cells are numbers, the plain one first."""
    formats = [
        known
        for known in FORMATS
        if decimal in ("auto", known.decimal) and thousands in ("auto", known.thousands)
    ]
    for cell in set(cells):
        formats = [known for known in formats if known.pattern.fullmatch(cell)]
        if not formats:
            break
    return formats


def first_ambiguous_cell(cells: Iterable[str], formats: Sequence[NumberFormat]) -> str | None:
    """Return the first cell that is another number in another format, None if there is none."""
    for cell in cells:
        if len({known.parse(cell) for known in formats}) > 1:
            return cell
    return None
