"""Output of a command: a table of numbers, and files of numbers, arrays and images."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genlab.console import print_table
from genlab.fileio import atomic_open, atomic_write
from genlab.metrics.base import mean_and_error
from genlab.runs.loaded_run import LoadedRun
from genlab.viz import image_grids


@dataclass
class Results:
    """The results of a command, to be written under the name of its files."""

    name: str
    seed: int
    record: dict[str, Any]
    # Pictures by the suffix of their file name; "" is the main one.
    images: dict[str, np.ndarray]
    arrays: dict[str, Tensor | np.ndarray | None] = field(default_factory=dict)


def write_results(run: LoadedRun, results: Results, output_dir: str | None) -> dict[str, Any]:
    """Write pictures (PNG), numbers (JSON) and arrays (.npz), and print their paths.

    Args:
        output_dir: the folder to write to; None is samples/ in the run's folder.

    Returns:
        The numbers, with the model, the dataset, the step and the seed.
    """
    folder = Path(output_dir) if output_dir else run.folder.samples
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{results.name}_step{run.step}_seed{results.seed}"
    record = {**describe_run(run, results.seed), **results.record}
    print_measurements(record)
    for suffix, image in results.images.items():
        print(image_grids.save_png(image, folder / f"{stem}{suffix and '_' + suffix}.png"))
    write_record(record, folder / f"{stem}.json")
    arrays = {
        key: value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        for key, value in results.arrays.items()
        if value is not None
    }
    write_arrays(folder / f"{stem}.npz", **arrays)
    print(folder / f"{stem}.npz")
    return record


def describe_run(run: LoadedRun, seed: int) -> dict[str, Any]:
    """Return the part of a record that says which model and data it is about."""
    return {"model": run.name, "dataset": run.dataset_name, "step": run.step, "seed": seed}


def common_output_folder(runs: list[LoadedRun], command: str, output_dir: str | None) -> Path:
    """Return (and create) the folder that a command about one or several runs writes to.

    It is `output_dir` if given, else a folder named like the command: inside the run's folder, or
    beside the runs in the folder that contains them all.
    """
    parent = runs[0].folder.path
    if len(runs) > 1:
        parent = Path(os.path.commonpath([run.folder.path.resolve() for run in runs]))
    folder = Path(output_dir) if output_dir else parent / command
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mean_with_error(values: Tensor) -> dict[str, float | None]:
    """Return the mean of values (N,) and its standard error, which is None for a single value."""
    value, error = mean_and_error(values)
    return {"value": value, "error": error}


def print_measurements(record: dict[str, Any]) -> None:
    """Print the entries of a record that `mean_with_error` returned, as a table."""
    rows = [
        [name.replace("_", " "), format_number(value["value"]), format_number(value["error"])]
        for name, value in record.items()
        if isinstance(value, dict) and set(value) == {"value", "error"}
    ]
    if rows:
        print_table(["", "mean", "± s.e."], rows)


def format_number(value: float | None) -> str:
    """Return a number with four significant digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


# --- files ----------------------------------------------------------------------------------------


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON and print its path; a non-finite number becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(replace_non_finite(record), indent=2).encode())
    print(path)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as a compressed .npz file, atomically."""
    with atomic_open(path) as file:
        np.savez_compressed(file, **arrays)


def replace_non_finite(value: Any) -> Any:
    """Return a JSON-like value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
