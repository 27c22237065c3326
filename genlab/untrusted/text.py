"""Texts from untrusted files, made safe for the places where they are shown.

A terminal acts on escape sequences, a spreadsheet on cells that begin with = + - @, Markdown and
HTML on their own signs. `genlab.errors.make_printable` does the same for messages.
"""

from __future__ import annotations

import html
import re
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
FORMULA_START = re.compile(r"\s*[=+\-@\t\r]")  # what a spreadsheet takes for a formula
MARKDOWN_SIGN = re.compile(r"([\\`*\[\]|])")


def replace_unprintable(text: str) -> str:
    """Return a text with visible signs for the characters that a terminal would act on.

    These are the control characters (C0, C1, line separators), the marks that change the direction
    of writing, characters without width, and halves of characters.
    """
    if text.isprintable():
        return text
    text = text.encode("utf-8", "replace").decode()  # a file name may hold any bytes
    return "".join(c if c.isprintable() else REPLACEMENT for c in text)


def to_printable_text(value: Any) -> str:
    """Return a value as it would be typed, on one line and without control characters."""
    if value is None:
        return "null"
    return replace_unprintable(str(value).lower() if isinstance(value, bool) else str(value))


def to_csv_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file that a spreadsheet does not take for a formula.

    Numbers stay as they are; such a text gets an apostrophe, which spreadsheets hide.
    """
    if not isinstance(value, str):
        return value
    text = replace_unprintable(value)
    return f"'{text}" if FORMULA_START.match(text) and not is_number(text) else text


def from_csv_cell(text: str) -> str:
    """Return the text of a cell that `to_csv_cell` wrote."""
    quoted = text.removeprefix("'")
    return quoted if quoted != text and FORMULA_START.match(quoted) else text


def is_number(text: str) -> bool:
    """Whether a text is a plain number, such as -1.5e-3."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def escape_markdown(text: str) -> str:
    """Return text that Markdown renders unchanged, without HTML."""
    return MARKDOWN_SIGN.sub(r"\\\1", html.escape(replace_unprintable(text), quote=False))
