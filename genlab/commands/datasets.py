"""genlab datasets: list the datasets."""

from __future__ import annotations

import textwrap

from genlab.errors import UserError
from genlab.tables import terminal_width

PIPE_WIDTH = 80  # columns if the output is not a terminal
MAX_WIDTH = 120  # longer lines are hard to read


def datasets(arguments: list[str]) -> None:
    """Print the name and the description of each dataset config, as wide as the terminal."""
    from genlab.config.recipes import read_header_comment, shipped_group_files

    if arguments:
        raise UserError(f"genlab datasets does not take options such as {' '.join(arguments)}")
    files = shipped_group_files("dataset")
    name_width = max(len(path.stem) for path in files) + 2
    width = min(MAX_WIDTH, terminal_width(PIPE_WIDTH)) - 1
    for path in files:
        print(
            textwrap.fill(
                read_header_comment(path),
                width,
                initial_indent=f"{path.stem:<{name_width}}",
                subsequent_indent=" " * name_width,
            )
        )
