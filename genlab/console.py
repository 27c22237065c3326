"""Aligned tables for a terminal."""

from __future__ import annotations

import sys

PIPE_WIDTH = 400  # columns of a table that is not printed to a terminal, so that no cell is cut


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table, fitted to the terminal if there is one."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    # On a closed pipe, rich would end the process itself; `print` raises, which the command line
    # handles.
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")
