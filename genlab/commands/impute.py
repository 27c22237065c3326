"""genlab impute: fill the missing cells of a table by a model's conditional distribution."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.console import track
from genlab.data.filled_tables import IncompleteTable, read_incomplete_table
from genlab.data.table_units import TableUnits
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.requirements import require_command_support
from genlab.inference.results import (
    make_picture_caption,
    output_folder_of_run,
    run_record_fields,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.tables import print_table
from genlab.untrusted.text import to_csv_cell
from genlab.viz.figures import plot_column_histograms
from genlab.viz.picture import Picture
from genlab.viz.sheets import save_picture_as_sheet

LEVELS = (0.05, 0.5, 0.95)  # quantiles of each filled cell: the median and an interval of 90%
SIGNIFICANT_DIGITS = 7  # of a number in the table of the filled cells


@dataclass(frozen=True)
class FilledCells:
    """The draws of the missing cells of a table, in own units.

    Attributes:
        draws: (draws, N, D), with the known values of the table.
        mean: (N, D) over the draws; `deviation`, and `quantiles` (3, N, D) at `LEVELS`.
    """

    draws: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    quantiles: np.ndarray


def impute(
    run: LoadedRun,
    *,
    input_file: str | None = None,
    draws: Positive = 5,
    interval_draws: Annotated[int, Ge(20)] = 200,
    steps: Positive | None = None,
    seed: Count = 0,
    batch_size: Positive = 250,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Fill in the missing cells of a table with draws from p(missing cells | known cells).

    One table has the conditional means, and one further table each draw. All other cells stay as
    they are, byte for byte. A CSV file lists each filled cell with its mean, deviation and
    quantiles, and a picture compares the filled cells of each column with the known ones.

    Args:
        input_file: a table as text with the columns that the model was trained on, in any order,
            and others; None takes the file of the run's dataset.
        draws: filled tables.
        interval_draws: draws of which the mean, the deviation and the quantiles are computed.
        steps: of a chain or a sampler; None is the model's default.
        batch_size: rows that are filled in at a time.

    Raises:
        UserError: the model does not impute, the run's data is not a table, a column is absent, or
            no cell is missing.
    """
    request = CommandRequest.from_command_call(impute, [run], locals())
    require_command_support(run, "impute")
    units, options = table_units_and_options(run)
    file = Path(input_file or options["path"]).expanduser()
    what = f"input_file={file}"
    if not file.exists():
        raise UserError(f"{what}: no such file; give the table to fill in with input_file=")
    table = read_incomplete_table(file, units, options, what)
    if not table.missing.any():
        raise UserError(
            f"{what} has {len(table.values):,} rows, and all cells of the columns "
            f"{', '.join(units.column_names)} have a value"
        )
    torch.manual_seed(seed)
    cells = draw_missing_cells(
        run, units, table, num_draws=max(draws, interval_draws), steps=steps, batch_size=batch_size
    )
    record = run_record_fields(run, seed) | describe_missing_cells(table, units, draws, cells)
    print_filled_cells(file, record)
    files: dict[str, Writer] = {
        ".csv": partial(write_filled_table, table, units, cells.mean),
        **{
            f"_draw{k + 1}.csv": partial(write_filled_table, table, units, cells.draws[k])
            for k in range(draws)
        },
        "_cells.csv": partial(write_cell_list, table, units, cells),
        ".png": partial(
            save_picture_as_sheet,
            plot_known_and_filled(table, units, cells.draws[:draws]),
            caption=make_picture_caption("impute", run, seed),
        ),
    }
    folder = output_folder_of_run(run, output_dir)
    write_and_print_output_files(request, folder, f"{file.stem}_filled", record, files)
    return record


def table_units_and_options(run: LoadedRun) -> tuple[TableUnits, dict[str, Any]]:
    """Return the units of the run's table, and the options with which it was read.

    Raises:
        UserError: the run's data is not a table of numbers.
    """
    units = TableUnits.from_json(run.folder.data_summary())
    options = run.config.get("dataset") or {}
    if units is None or not options.get("path"):
        raise UserError(
            f"genlab impute fills in tables, but {run.dataset_name} does not have columns; train "
            "with dataset=table dataset.path=<file.csv> dataset.keep_missing=true"
        )
    return units, options


# --- draws ----------------------------------------------------------------------------------------


def draw_missing_cells(
    run: LoadedRun,
    units: TableUnits,
    table: IncompleteTable,
    *,
    num_draws: int,
    steps: int | None,
    batch_size: int,
) -> FilledCells:
    """Draw the missing cells of a table given the known ones of the same row."""
    incomplete = table.missing.any(1)
    x = units.standardize(table.values[incomplete])  # (n, D)
    parts = [
        impute_rows(run, rows, num_draws, steps)
        for rows in track(x.split(batch_size), "filling in", unit="batches")
    ]
    mean = np.array([column.mean for column in units.columns])
    scale = np.array([column.scale for column in units.columns])
    drawn = torch.cat(parts, 1).double().numpy() * scale + mean  # (draws, n, D)
    draws = np.repeat(table.values[None], num_draws, 0)
    draws[:, incomplete] = np.where(table.missing[incomplete], drawn, table.values[incomplete])
    return FilledCells(draws, draws.mean(0), draws.std(0), np.quantile(draws, LEVELS, 0))


def impute_rows(run: LoadedRun, x: Tensor, num_draws: int, steps: int | None) -> Tensor:
    """Return the rows x (n, D) with draws in place of NaN (draws, n, D), on the CPU.

    Raises:
        UserError: the model draws values that are not finite.
    """
    x = x.to(run.device.torch)
    known = ~x.isnan()
    drawn: Tensor = run.model.impute(x.nan_to_num(), known, draws=num_draws, steps=steps)
    if not drawn.isfinite().all():
        raise UserError(
            f"{run.name} draws values that are not finite; train it for longer, or with a smaller "
            "learning rate"
        )
    return drawn.cpu()


# --- output ---------------------------------------------------------------------------------------


def describe_missing_cells(
    table: IncompleteTable, units: TableUnits, draws: int, cells: FilledCells
) -> dict[str, Any]:
    """Return the counts of a table and its missing cells, in all and by column."""
    missing = table.missing
    columns = {}
    for i, column in enumerate(units.columns):
        known, filled = table.values[~missing[:, i], i], cells.draws[:, missing[:, i], i]
        columns[column.name] = {
            "filled": int(missing[:, i].sum()),
            "mean_of_known": float(known.mean()) if len(known) else None,
            "mean_of_filled": float(filled.mean()) if filled.size else None,
        }
    return {
        "rows": len(missing),
        "rows_filled": int(missing.any(1).sum()),
        "rows_without_known_cells": int(missing.all(1).sum()),
        "cells": int(missing.size),
        "cells_filled": int(missing.sum()),
        "draws": draws,
        "interval_draws": len(cells.draws),
        "columns": columns,
    }


def print_filled_cells(file: Path, record: dict[str, Any]) -> None:
    """Print how many cells are filled in, and the means of the known and the filled ones."""
    print(
        f"{file.name}: {record['cells_filled']:,} of {record['cells']:,} cells filled in "
        f"{record['draws']} draws, in {record['rows_filled']:,} of {record['rows']:,} rows"
    )
    if record["rows_without_known_cells"]:
        print(
            f"{record['rows_without_known_cells']:,} rows have none of these columns: their cells "
            "are draws from p(x)"
        )

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    print_table(
        ["column", "filled", "mean of known", "mean of filled"],
        [
            [
                name,
                f"{entry['filled']:,}",
                shown(entry["mean_of_known"]),
                shown(entry["mean_of_filled"]),
            ]
            for name, entry in record["columns"].items()
        ],
    )


def plot_known_and_filled(table: IncompleteTable, units: TableUnits, draws: np.ndarray) -> Picture:
    """Plot histograms of the known and the filled cells of each column with missing ones.

    Args:
        draws: (draws, N, D).
    """
    shown = [i for i in range(len(units.columns)) if table.missing[:, i].any()]
    columns = [units.columns[i] for i in shown]
    mean, scale = (np.array([getattr(c, name) for c in columns]) for name in ("mean", "scale"))
    filled = np.where(table.missing, draws, np.nan)[..., shown].reshape(-1, len(shown))
    points = {"data": table.values[:, shown], "filled in": filled}
    return plot_column_histograms({k: (x - mean) / scale for k, x in points.items()}, columns)


def write_filled_table(
    table: IncompleteTable, units: TableUnits, values: np.ndarray, path: Path
) -> None:
    """Write a table with values (N, D) in its missing cells; integers are rounded."""

    def format_cell(value: float, i: int) -> str:
        if units.columns[i].is_integer:
            return str(round(value))
        return f"{value:.{SIGNIFICANT_DIGITS}g}"

    atomic_write(path, table.fill(values, format_cell))


def write_cell_list(
    table: IncompleteTable, units: TableUnits, cells: FilledCells, path: Path
) -> None:
    """Write a row for each filled cell: its place, mean, deviation and quantiles."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "mean", "std", *(f"q{level:g}" for level in LEVELS)])
    for n, i in zip(*np.nonzero(table.missing), strict=True):
        numbers = [cells.mean[n, i], cells.deviation[n, i], *cells.quantiles[:, n, i]]
        place = [int(table.row_numbers[n]), to_csv_cell(units.column_names[i])]
        writer.writerow([*place, *(f"{value:.{SIGNIFICANT_DIGITS}g}" for value in numbers)])
    atomic_write(path, text.getvalue().encode("utf-8", "replace"))
