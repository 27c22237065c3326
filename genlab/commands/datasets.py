"""genlab datasets: list the datasets."""

from __future__ import annotations

import textwrap

from genlab.errors import UserError

WIDTH = 79


def datasets(arguments: list[str]) -> None:
    """Print the name and the description of each dataset config, in 80 columns."""
    from genlab.config.recipes import group_files, read_header

    if arguments:
        raise UserError(f"genlab datasets does not take options such as {' '.join(arguments)}")
    files = group_files("dataset")
    name_width = max(len(path.stem) for path in files) + 2
    for path in files:
        print(
            textwrap.fill(
                read_header(path),
                WIDTH,
                initial_indent=f"{path.stem:<{name_width}}",
                subsequent_indent=" " * name_width,
            )
        )
