"""Pictures: plots of each run's evaluation, one row per run, with numbers below."""

from __future__ import annotations

from dataclasses import replace

from genlab.comparison.figures.registry import FigureRun, make_table_lines
from genlab.errors import UserError
from genlab.viz.picture import Picture
from genlab.viz.sheets import read_picture_from_sheet_png
from genlab.viz.slides import Cell, Slide, render_slide

MAX_ASPECT = 1.6  # width to height of plots that are side by side


def draw_pictures(
    runs: list[FigureRun], *, show: tuple[str, ...], numbers: tuple[str, ...] = ()
) -> Picture:
    """Return pictures of the runs' records by name, one column a run.

    Wide plots are below one another, with their numbers as captions.

    Args:
        show: names of pictures: vlb_terms | latent | manifold | chains | ….
        numbers: rows of the table.

    Raises:
        UserError: a run does not have one of the pictures.
    """
    rows: list[list[Cell | None]] = []
    for name in show:
        row: list[Cell | None] = []
        for run in runs:
            png = run.record.pictures.get(name)
            picture = None if png is None else read_picture_from_sheet_png(png)
            if picture is None:
                known = ", ".join(run.record.pictures)
                raise UserError(f"figures: {run.label} has no picture {name}; it has {known}")
            row.append(Cell(picture.grid_without_names, is_plot=picture.is_plot))
        rows.append(row)
    cells = [cell for row in rows for cell in row if cell]
    size = (
        max(cell.pixels.shape[1] for cell in cells),
        max(cell.pixels.shape[0] for cell in cells),
    )
    labels = [run.label for run in runs]
    table = make_table_lines(runs, numbers)
    if size[0] > MAX_ASPECT * size[1] and len(show) == 1:
        captions = ["; ".join(f"{t.name}: {t.texts[k]}" for t in table) for k in range(len(runs))]
        rows = [
            [replace(cell, caption=caption)] for cell, caption in zip(cells, captions, strict=True)
        ]
        return render_slide(Slide(rows, (), labels, cell_size=size))
    return render_slide(Slide(rows, labels, (), table, cell_size=size))
