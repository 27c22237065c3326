"""Output of a command: a table of numbers, and files of numbers, arrays and images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genlab.fileio import atomic_open, atomic_write
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.metrics.base import mean_and_error
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch
from genlab.tables import format_standard_error, format_to_error_digits, print_table
from genlab.viz.picture import Picture
from genlab.viz.sheets import save_picture_as_sheet


@dataclass
class Results:
    """The results of a command about one run.

    Attributes:
        name: the first words of the files' name.
        images: pictures by the suffix of their file name; "" is the main one.
        items: the arrays that contain items of the data, the main one first, and the names of their
            axes before those of an item. Items of a table are also written as CSV.
        files: further files, such as ".gif" -> the function that writes it to a path.
    """

    name: str
    seed: int
    record: dict[str, Any]
    images: dict[str, Picture]
    arrays: dict[str, Tensor | np.ndarray | None] = field(default_factory=dict)
    items: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: dict[str, Writer] = field(default_factory=dict)


def write_results(
    run: LoadedRun, request: CommandRequest, results: Results, output_dir: str | None
) -> dict[str, Any]:
    """Write pictures (PNG), numbers (JSON) and arrays (.npz), and print their paths.

    Args:
        output_dir: the folder to write to; None is samples/ in the run's folder.

    Returns:
        The numbers, with the model, the dataset, the step and the seed.
    """
    record = {**run_record_fields(run, results.seed), **results.record}
    print_mean_and_error_table(record)
    caption = make_picture_caption(request.command, run, results.seed)
    files: dict[str, Writer] = {
        f"{suffix and '_' + suffix}.png": partial(save_picture_as_sheet, picture, caption=caption)
        for suffix, picture in results.images.items()
    }
    files |= make_npz_and_csv_writers(run, results.arrays, results.items)
    folder = output_folder_of_run(run, output_dir)
    write_and_print_output_files(request, folder, results.name, record, files | results.files)
    return record


def output_folder_of_run(run: LoadedRun, output_dir: str | None) -> Path:
    """Return the folder that a command about one run writes to: None is its samples/."""
    return Path(output_dir).expanduser() if output_dir else run.folder.samples


def run_record_fields(run: LoadedRun, seed: int) -> dict[str, Any]:
    """Return the part of a record that says which model and data it is about."""
    return {"model": run.name, "dataset": run.dataset_name, "step": run.step, "seed": seed}


def make_picture_caption(title: str, run: LoadedRun, seed: int) -> str:
    """Return the caption of a picture: what it shows, and the run, step and seed."""
    return (
        f"{title}: {run.name} on {run.dataset_name}, step {run.step:,}, seed {seed}, "
        f"run {run.folder.path.resolve().name}"
    )


def common_output_folder(runs: list[LoadedRun], command: str, output_dir: str | None) -> Path:
    """Return the folder that a command about one or several runs writes to.

    It is `output_dir` if given, else a folder named like the command: inside the run's folder, or
    beside the runs in the folder that contains them all.
    """
    parent = runs[0].folder.path
    if len(runs) > 1:
        parent = Path(os.path.commonpath([run.folder.path.resolve() for run in runs]))
    return Path(output_dir).expanduser() if output_dir else parent / command


def mean_and_error_dict(values: Tensor) -> dict[str, float | None]:
    """Return the mean of values (N,) and its standard error, which is None for a single value."""
    value, error = mean_and_error(values)
    return {"value": value, "error": error}


def print_mean_and_error_table(record: dict[str, Any]) -> None:
    """Print the entries of a record that `mean_and_error_dict` returned, as a table."""
    rows = [
        [
            name.replace("_", " "),
            format_to_error_digits(value["value"], value["error"]),
            format_standard_error(value["error"]),
        ]
        for name, value in record.items()
        if isinstance(value, dict) and set(value) == {"value", "error"}
    ]
    if rows:
        print_table(["", "mean", "± s.e."], rows)


# --- files ----------------------------------------------------------------------------------------


def make_npz_and_csv_writers(
    run: LoadedRun,
    arrays: Mapping[str, Tensor | np.ndarray | None],
    items: Mapping[str, tuple[str, ...]],
) -> dict[str, Writer]:
    """Return writers of arrays as .npz, and of a table's items as CSV in its own units.

    The main items are in .csv, those of another array NAME in _NAME.csv. The array `standardized`
    says that the items in the .npz file are not in own units.

    Args:
        arrays: `y` has the labels of the items.
        items: the arrays of items, the main one first, with the names of their leading axes.
    """
    units, y = run.table_units, arrays.get("y")
    if units is None:
        return {".npz": partial(write_npz, arrays=arrays)}
    writers: dict[str, Writer] = {
        ".npz": partial(write_npz, arrays={**arrays, "standardized": np.array(True)})
    }
    for name, axes in items.items():
        if (x := arrays.get(name)) is not None:
            suffix = f"_{name}.csv" if ".csv" in writers else ".csv"
            content = units.to_csv(x, run.spec, y=y, index_names=axes)
            writers[suffix] = partial(atomic_write, data=content)
    return writers


def make_table_rows_csv_writers(
    run: LoadedRun,
    batch: Batch,
    row_numbers: Sequence[int],
    answers: Mapping[str, Sequence[Any]],
) -> dict[str, Writer]:
    """Return the writer of a CSV file about rows of a table; {} for other data.

    Args:
        batch: the rows (N, D), with their labels.
        row_numbers: where the rows are in the table's file.
        answers: the name of each answer -> its N values, such as scores or predicted classes.
    """
    if run.table_units is None:
        return {}
    content = run.table_units.to_csv(
        batch.x, run.spec, y=batch.y, leading={"row": row_numbers, **answers}
    )
    return {".csv": partial(atomic_write, data=content)}


def write_npz(path: Path, arrays: Mapping[str, Tensor | np.ndarray | None]) -> None:
    """Write arrays as a compressed .npz file, atomically; those that are None are left out."""
    plain = {
        key: value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        for key, value in arrays.items()
        if value is not None
    }
    with atomic_open(path) as file:
        # mypy takes the arrays for the option allow_pickle
        np.savez_compressed(file, **plain)  # type: ignore[arg-type]
