"""Samples of a table that another program drew: CSV in own units, or arrays."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genlab.data.npy_files import read_label_array, read_numpy_arrays
from genlab.data.number_formats import PLAIN, number_formats_of_all_cells
from genlab.data.table_columns import find_missing_cells
from genlab.data.table_files import MISSING_WORDS, RawTable, TextFormat, read_table
from genlab.data.table_units import TableUnits
from genlab.errors import UserError, did_you_mean, make_printable
from genlab.spec import Batch, DataSpec
from genlab.untrusted.text import from_csv_cell

ARRAY_SUFFIXES = (".npy", ".npz")
MIN_DIFFERENCE = 0.5  # between the two readings of an array, in standard deviations
MAX_DISTANCE = 5.0  # of the nearer reading


def read_table_samples(path: Path, spec: DataSpec, units: TableUnits) -> Batch:
    """Return samples of a table as items float32 (N, D), with their labels or None.

    A CSV file is in the table's own units; its columns are found by their names, in any order. The
    array x of a .npz file is standardized if the array `standardized` says so, as genlab writes it.
    Without that array the reading is taken that is nearer to the table, and printed.

    Raises:
        UserError: a column is missing, a cell is not a number, or an array's units are unclear.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return read_array_samples(path, spec, units)
    raw = read_table(path, TextFormat())
    what = f"samples={path}"
    order, label = find_value_and_label_columns(raw, units, what)
    values = np.stack([parse_finite_column(raw, c, what) for c in order], 1)
    y = None if label is None else parse_class_column(raw, label, spec, what)
    used = {*order, *([] if label is None else [label])}
    if others := [name for c, name in enumerate(raw.names) if c not in used]:
        print(f"{what}: columns that the table does not have: {', '.join(others)}", file=sys.stderr)
    x = units.standardize(values)
    if not x.isfinite().all():
        raise UserError(f"{what} has numbers that float32 cannot represent in units of the table")
    return Batch(x, y)


def find_value_and_label_columns(
    raw: RawTable, units: TableUnits, what: str
) -> tuple[list[int], int | None]:
    """Return a file's columns in the table's order, and the label column or None.

    Raises:
        UserError: a column is missing.
    """
    width = len(raw.names)
    if not raw.has_names:
        own_width = len(units.column_names)
        if width not in (own_width, own_width + bool(units.label)):
            raise UserError(
                f"{what} has {width} columns without names, and the table {own_width}; "
                f"add a first row of names: {','.join(units.column_names)}"
            )
        order = list(range(own_width))
        return order, width - 1 if width > len(order) else None
    place = {from_csv_cell(name): c for c, name in enumerate(raw.names)}
    for name in units.column_names:
        if name not in place:
            raise UserError(
                f"{what} has no column {make_printable(name)}{did_you_mean(name, raw.names)}; the "
                f"columns of the table are {', '.join(units.column_names)}"
            )
    return [place[name] for name in units.column_names], place.get(
        units.label
    ) if units.label else None


def parse_finite_column(raw: RawTable, c: int, what: str) -> np.ndarray:
    """Return the numbers float64 (N,) of a column.

    Raises:
        UserError: a cell is missing or not a finite number.
    """
    cells = raw.columns[c]
    if cells.dtype != object:
        numbers = cells.astype(np.float64)
    else:
        is_absent = find_missing_cells(cells, set(MISSING_WORDS))
        parse = (number_formats_of_all_cells(cells[~is_absent]) or [PLAIN])[0].parse
        parsed = [None if m else parse(cell) for cell, m in zip(cells, is_absent, strict=True)]
        numbers = np.array([math.nan if value is None else value for value in parsed])
    bad = ~np.isfinite(numbers)
    if bad.any():
        raise UserError(
            f"{what}, row {raw.row_numbers[bad][0]}, column {raw.names[c]}: "
            f"{make_printable(str(cells[bad][0]))!r} is not a finite number"
        )
    return numbers


def parse_class_column(raw: RawTable, c: int, spec: DataSpec, what: str) -> Tensor:
    """Return the classes (N,) that a column of class names gives.

    Raises:
        UserError: the table does not have such a class.
    """
    known: dict[str, int] = {}
    for cell in set(map(str, raw.columns[c])):
        name = cell
        if cell not in spec.class_names and cell.removesuffix(".0").isdecimal():
            name = cell.removesuffix(".0")  # 1.0 is the class 1
        known[cell] = spec.class_number(name, f"{what}, column {raw.names[c]}")
    return torch.tensor([known[str(cell)] for cell in raw.columns[c]])


# --- arrays ---------------------------------------------------------------------------------------


def read_array_samples(path: Path, spec: DataSpec, units: TableUnits) -> Batch:
    """Return the samples in a .npy or .npz file; see `read_table_samples`."""
    what = f"samples={path}"
    arrays = read_numpy_arrays(path, what)
    x = arrays.get("x", arrays.get("arr_0"))
    if x is None and len(arrays) == 1:
        (x,) = arrays.values()
    if x is None or x.ndim != 2 or not x.size or x.shape[1] != spec.dim:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise UserError(f"{what} has {shapes}; it must have x (N, {spec.dim})")
    y = None
    if "y" in arrays:
        y = torch.from_numpy(read_label_array(arrays["y"], len(x), spec.num_classes, what))
    if "standardized" in arrays:
        is_standardized = bool(arrays["standardized"].any())
    else:
        is_standardized = guess_is_standardized(x, units, what)
    items = torch.from_numpy(x).float() if is_standardized else units.standardize(x)
    if not items.isfinite().all():
        raise UserError(f"{what} has numbers that are not finite")
    return Batch(items, y)


def guess_is_standardized(x: np.ndarray, units: TableUnits, what: str) -> bool:
    """Return whether values (N, D) are nearer to the standardized table than to the table.

    Raises:
        UserError: both are near, or none is.
    """
    readings = {True: x.astype(np.float64), False: units.standardize(x).double().numpy()}
    if np.allclose(readings[True], readings[False], rtol=1e-3, atol=1e-3):
        return True
    distance = {key: deviation_from_mean0_std1(values) for key, values in readings.items()}
    is_clear = abs(distance[True] - distance[False]) >= MIN_DIFFERENCE
    if not is_clear or min(distance.values()) > MAX_DISTANCE:
        raise UserError(
            f"{what} may be standardized or in the table's own units; give a CSV file with the "
            "names of the columns, whose values are in own units, or add an array `standardized` "
            "(true or false) to the .npz"
        )
    is_standardized = distance[True] < distance[False]
    kind = "standardized values" if is_standardized else "values in the table's own units"
    print(f"{what} is read as {kind}, which is nearer to the table", file=sys.stderr)
    return is_standardized


def deviation_from_mean0_std1(z: np.ndarray) -> float:
    """Return the largest distance of a column of z (N, D) from mean 0 and deviation 1."""
    deviation = np.clip(z.std(0), 1e-3, 1e3)
    return float((np.abs(z.mean(0)) + np.abs(np.log(deviation))).max())
