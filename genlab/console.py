"""Aligned tables for a terminal."""

from __future__ import annotations

import sys


def show(head: list[str], rows: list[list[str]]) -> None:
    """Print a table; where there is no terminal it is as wide as its text, so that no cell is cut."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    with (
        console.capture() as text
    ):  # rich would end the process where the reader has gone; `cli` does that
        console.print(table)
    print(text.get(), end="")
