"""Any table of numbers: text (CSV and similar), a NumPy array, or a Parquet file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genlab.data.class_subset import ClassSubset
from genlab.data.dataset import SPLITS, Split
from genlab.data.number_formats import Decimal, Thousands
from genlab.data.shuffling import seeded_split_indices
from genlab.data.table_columns import ColumnOptions, TableReader, column_means_and_scales
from genlab.data.table_files import read_table
from genlab.data.table_files_v1 import read_text_table_v1
from genlab.data.table_text_reader import TextTableReader
from genlab.errors import UserError
from genlab.spec import Count, DataSpec, Fraction

ColumnKey = Count | str  # the number of a column from 0, or its name


@dataclass(kw_only=True, eq=False)
class TableFile(TextTableReader, ClassSubset):
    """A dataset that is read from the file of a table; a subclass reads its rows.

    Args:
        path: a text with one row per line (also compressed by gzip, bzip2, xz or zip), a .npy array
            (N, columns), a .npz file with x and its labels y, or a Parquet file. Required.
        label: the column of the classes, by name or number from 0; "last"; "none"; "auto" takes the
            column that is named label, class or target, else the last, if it has words or few
            different integers.
        use_columns: the only columns to use beside the label, by name or number; None uses all.
        skip_columns: columns to leave out, by name or number. None leaves out a first column
            without a name that numbers the rows.
        header: whether the first row has the names of the columns; None recognizes it.
        delimiter: comma, semicolon, tab, pipe, space or one character; "auto" recognizes it.
        decimal, thousands: the marks in numbers; "auto" recognizes them where they are unambiguous.
        encoding: of text; None is UTF-8, or what a byte-order mark says.
        comment: lines that begin with it are left out; None reads them.
        skip_rows: number of lines above the table.
        missing_values: words of cells without a value; None is the usual ones (?, NA, nan, …). An
            empty cell always is one.
        validation, test: fractions held out by the seed `split_seed`.
    """

    path: str | None = None
    label: int | str = "auto"
    use_columns: tuple[ColumnKey, ...] | None = None
    skip_columns: tuple[ColumnKey, ...] | None = None
    header: bool | None = None
    delimiter: str = "auto"
    decimal: Decimal = "auto"
    thousands: Thousands = "auto"
    encoding: str | None = None
    comment: str | None = "#"
    skip_rows: Count = 0
    missing_values: tuple[str | float, ...] | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.1
    split_seed: Count = 0

    def require_table_file(self) -> Path:
        """Return the table's file.

        Raises:
            UserError: it is not given, or does not exist.
        """
        return self.require_file("dataset.path=<file.csv or file.npy>")

    def split_rows(self, n: int) -> dict[str, Tensor]:
        """Return the numbers of the rows of each split, of a table of n rows.

        Raises:
            UserError: no row is left for training.
        """
        sizes = [round(fraction * n) for fraction in (self.test, self.validation)]
        test, validation, train = seeded_split_indices(n, sizes, self.split_seed)
        if not len(train):
            raise UserError(
                f"dataset.validation={self.validation:g} and dataset.test={self.test:g} leave none "
                f"of the {n:,} rows to train on"
            )
        return {"test": test, "validation": validation, "train": train}

    def set_row_splits(
        self, spec: DataSpec, table: Split, rows: dict[str, Tensor], numbers: Tensor
    ) -> None:
        """Set the splits, and the numbers (N,) in the file of the rows that each split kept."""
        self.set_splits(
            spec,
            {split: table.subset(index) for split, index in rows.items()},
            hints=dict.fromkeys(
                SPLITS, "set dataset.validation or dataset.test, the fractions to hold out"
            ),
        )
        self.row_numbers = {
            split: numbers[index][self.kept.get(split, slice(None))]
            for split, index in rows.items()
        }


@dataclass(kw_only=True, eq=False)
class Table(TableFile):
    """The rows of a file as points, standardized by the training rows' mean and deviation.

    `mean` and `scale` (D,) are what was subtracted and divided by; likelihoods are of the
    standardized values. `columns` has them by name. `row_numbers` has for each split the rows in
    the file (N,): lines from 1 of text, indices from 0 of an array.

    Args:
        drop_missing: leave out rows with cells without a value instead of refusing them.
        keep_missing: keep cells without a value, as NaN, for models that are trained with them.
            `mean` and `scale` are those of the other cells.
        table_rules: how names and labels are understood; 1 is that of genlab up to 0.7, whose runs
            keep it.
    """

    drop_missing: bool = False
    keep_missing: bool = False
    standardize: bool = True
    table_rules: Literal[1, 2] = 2
    name = "table"

    def __post_init__(self) -> None:
        file = self.require_table_file()
        self.source_files = [file]
        if self.keep_missing and self.drop_missing:
            raise UserError(
                "dataset.keep_missing=true keeps the rows that dataset.drop_missing=true leaves "
                "out; set one of them"
            )
        text_format = self.make_text_format(allow_short_rows=self.drop_missing)
        is_old = self.table_rules == 1 and file.suffix != ".npy"
        raw = read_text_table_v1(file) if is_old else read_table(file, text_format)
        self.notes.extend(raw.notes)
        self.left_out = raw.left_out
        reader = TableReader(raw, self.make_column_options(), self.notes, self.left_out)
        x, y, numbers = reader.read_values_labels_and_rows()
        rows = self.split_rows(len(x))
        train = rows["train"]
        self.mean, self.scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if self.standardize:
            self.mean, self.scale = means_and_scales_of_known_cells(x[train], reader, file)
        standardized = ((x - self.mean) / self.scale).float()
        self.columns = reader.make_columns_with_scales(x, standardized, self.mean, self.scale)
        self.label_name = reader.label_name
        if self.label_name:
            self.facts["label_column"] = self.label_name
        self.set_row_splits(
            DataSpec(
                shape=(x.shape[1],),
                kind="points",
                num_classes=0 if y is None else int(y.max()) + 1,
                class_names=reader.class_names,
                levels=0,
                has_missing=bool(x.isnan().any()),
            ),
            Split(standardized, y),
            rows,
            numbers,
        )

    def make_column_options(self) -> ColumnOptions:
        """Return the options that say which columns are used and how their cells are read."""
        return ColumnOptions(
            path=str(self.path),
            label=self.label,
            use=self.use_columns,
            skip=self.skip_columns,
            decimal=self.decimal,
            thousands=self.thousands,
            missing=self.missing_value_words(),
            drop_missing=self.drop_missing,
            keep_missing=self.keep_missing,
            standardize=self.standardize,
            rules=self.table_rules,
        )


def means_and_scales_of_known_cells(
    x: Tensor, reader: TableReader, file: Path
) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation (D,) of the cells of x (N, D) that are not NaN.

    Raises:
        UserError: a column does not have a value in the training rows.
    """
    if not x.isnan().any():
        return column_means_and_scales(x)
    parts = []
    for i, column in enumerate(x.T):
        known = column[~column.isnan()]
        if not len(known):
            c = reader.used[i]
            raise UserError(
                f"{file}: {reader.columns_in_words([c])} has no value in the training rows; leave "
                f"it out with dataset.skip_columns=[{reader.skip_columns_value([c])}]"
            )
        parts.append(column_means_and_scales(known[:, None]))
    means, scales = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(scales)
