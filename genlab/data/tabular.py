"""Any table of numbers, in text (CSV and its like) or as a NumPy array."""

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genlab.data.class_subset import Labelled
from genlab.data.dataset import SPLITS, Split
from genlab.data.npy_files import read_arrays
from genlab.data.shuffling import cut
from genlab.errors import UserError
from genlab.spec import Count, Fraction, Spec

MAX_CLASSES = 100  # a label column with more values is taken for a number
MOST = 2**31  # bytes of a table in text, which takes some ten times as much in memory
LONGEST = 2**20  # characters of a row


@dataclass(kw_only=True, eq=False)
class Table(Labelled):
    """The rows of a file as points; the columns are standardised by the training rows' mean and deviation.

    `mean` and `scale` (D,) hold what was subtracted and divided by; likelihoods are of the standardised values.

    Args:
        path: a .npy array (N, columns), or text with a row a line, its cells split by comma, semicolon, tab or blanks;
            a first line of names is passed over. Required.
        label: the column of the classes: the last, none, or its number from 0.
        skip: columns to leave out, numbered from 0.
        validation, test: shares held out by the seed `split_seed`.
    """

    path: str | None = None
    label: Literal["last", "none"] | int = "last"
    skip: tuple[Count, ...] = ()
    standardise: bool = True
    validation: Fraction = 0.1
    test: Fraction = 0.1
    split_seed: Count = 0
    name = "table"

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("table needs its file: dataset.path=<file.csv or file.npy>")
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(
                f"dataset.path={self.path}: there is no such file (looked for {file.resolve()})"
            )
        self.sources = [file]
        rows, numbers = read_array(file) if file.suffix == ".npy" else read_text(file)
        x, y = self.columns(rows, numbers)
        sizes = [round(share * len(x)) for share in (self.test, self.validation)]
        parts = dict(
            zip(("test", "validation", "train"), cut(len(x), sizes, self.split_seed), strict=True)
        )
        if not len(parts["train"]):
            given = f"dataset.validation={self.validation:g} and dataset.test={self.test:g}"
            raise UserError(f"{given} leave none of the {len(x):,} rows to train on")
        train = x[parts["train"]]
        self.mean, self.scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if self.standardise:
            deviation = train.std(0, correction=0)
            self.mean, self.scale = train.mean(0), torch.where(deviation > 0, deviation, 1.0)
        x = ((x - self.mean) / self.scale).float()
        splits = {
            name: Split(x[index], None if y is None else y[index]) for name, index in parts.items()
        }
        classes = 0 if y is None else int(y.max()) + 1
        missing = dict.fromkeys(
            SPLITS, "dataset.validation and dataset.test are the shares held out"
        )
        self.hold(
            Spec(shape=(x.shape[1],), kind="points", classes=classes, levels=0),
            splits,
            missing=missing,
        )

    def columns(
        self, rows: list[list[str]] | np.ndarray, numbers: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the numbers float64 (N, D) and the labels (N,); `numbers` says where each row is in the file."""
        width = len(rows[0])
        label = {"last": width - 1, "none": None}.get(self.label, self.label)  # type: ignore[call-overload]
        for column in (label, *self.skip):
            if column is not None and not 0 <= column < width:
                raise UserError(
                    f"{self.path} has no column {column}: its {width} columns are 0 to {width - 1}"
                )
        used = [c for c in range(width) if c != label and c not in self.skip]
        if not used:
            raise UserError(
                f"{self.path} has no column of numbers beside its labels; dataset.label=none uses all"
            )
        values = np.empty((len(rows), len(used)))
        for r, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            values[r] = [self.number(row[c], number, c) for c in used]
        y = None if label is None else self.labels([row[label] for row in rows])
        return torch.from_numpy(values), y

    def number(self, cell: str | float, row: int, column: int) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{self.path}, row {row}, column {column}: {str(cell)!r} is not a finite number;"
                f" mend it, or leave the column out with dataset.skip=[{column}]"
            )
        return value

    def labels(self, cells: list) -> Tensor:
        """Return the classes 0, 1, … of the values, in the order of numbers, else of the alphabet."""
        known = sorted(set(cells))
        if len(known) > MAX_CLASSES:
            raise UserError(
                f"the label column of {self.path} has {len(known):,} values, too many for classes;"
                " name the right column with dataset.label=<number>, or take none with dataset.label=none"
            )
        with suppress(ValueError):  # words stay in the order of the alphabet
            known.sort(key=float)
        number = {value: i for i, value in enumerate(known)}
        return torch.tensor([number[cell] for cell in cells])


def read_array(file: Path) -> tuple[np.ndarray, Sequence[int]]:
    """Return a .npy file's array (N, columns), and the numbers of its rows from 0."""
    rows = read_arrays(file, str(file)).get("x", np.empty(0))
    if rows.ndim != 2 or not rows.size:
        raise UserError(
            f"{file} holds {rows.dtype} of shape {rows.shape}; a table is numbers of shape (rows, columns)"
        )
    return rows, range(len(rows))


def read_text(file: Path) -> tuple[list[list[str]], Sequence[int]]:
    """Return the cells of a text file without its line of names, and the line number (from 1) of each row."""
    if file.stat().st_size > MOST:
        raise UserError(
            f"{file} has more than {MOST / 2**30:g} GB; a table of that size is read as .npy"
        )
    lines = [
        (i, line)
        for i, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
        if line.strip()
    ]
    if not lines:
        raise UserError(f"{file} is empty")
    mark = next((mark for mark in ",;\t" if mark in lines[0][1]), None)
    for i, line in lines:
        if len(line) > LONGEST:
            raise UserError(
                f"{file}, row {i} has {len(line):,} characters; a row has {LONGEST:,} at most"
            )
    split = (
        (lambda line: next(csv.reader([line], delimiter=mark, skipinitialspace=True)))
        if mark
        else str.split
    )
    try:
        rows = [[cell.strip() for cell in split(line)] for _, line in lines]
    except csv.Error as error:
        raise UserError(f"{file} is no table that can be read: {error}") from error
    for (i, _), row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{file}, row {i}: {len(row)} columns, where the first row has {len(rows[0])}"
            )
    names = len(rows) > 1 and any(
        is_number(b) and not is_number(a) for a, b in zip(*rows[:2], strict=True)
    )
    return rows[names:], [i for i, _ in lines[names:]]


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
