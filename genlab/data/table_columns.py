"""Turn a table's cells into numbers and classes: choose columns, parse, leave out rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genlab.data.number_formats import (
    PLAIN,
    Decimal,
    NumberFormat,
    Thousands,
    first_ambiguous_cell,
    number_formats_of_all_cells,
    parse_python_numbers,
)
from genlab.data.summary import Column, LeftOut
from genlab.data.table_files import MISSING_WORDS, RawTable
from genlab.data.table_files_v1 import sort_classes_v1
from genlab.errors import UserError, did_you_mean, make_printable

MAX_CLASSES = 100  # a label column with more values is not taken for classes
MAX_INTEGER_CLASSES = 20  # integers with more values are numbers, unless dataset.label names them
MAX_NAMED = 8  # columns that a message names
FEW_CELLS = 10  # so many cells can be corrected by hand
LABEL_NAMES = ("label", "labels", "class", "target")
MAX_EXACT_INTEGER = 2**53  # in float64
ROWS_COMPARED = 10_000  # rows in which distinct values must stay distinct in float32
UNIT = re.compile(r"(?P<name>.*\S)\s*(?:\[(?P<square>[^\[\]]+)\]|\((?P<round>[^()]+)\))")
EASY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # a command line takes it without quotes
# Names that mean something else there.
RESERVED_NAMES = ("true", "false", "null", "none", "auto", "last", "yes", "no", "on", "off", "nan")
ID_NAMES = ("id", "index", "idx", "row", "no", "nr", "#")  # of columns that may count the rows
LEADING_ZERO = re.compile(r"[+-]?0[0-9]+")
DOT_GROUPS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})?")  # 1.234 may be 1,234
MIN_DOT_GROUPS = 3  # cells such as 1.234 beside such as 567 that make a column ambiguous
TOTAL = re.compile(r"(?:grand |sub)?total\b|(?:sum|average|mean|summe|gesamt)$", re.IGNORECASE)
TRUTH_WORDS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """The columns of a table that are used, and how their cells are read; see `Table`."""

    path: str
    label: int | str = "auto"
    use: tuple[int | str, ...] | None = None
    skip: tuple[int | str, ...] | None = None
    decimal: Decimal = "auto"
    thousands: Thousands = "auto"
    missing: tuple[str, ...] = MISSING_WORDS
    drop_missing: bool = False
    keep_missing: bool | None = None  # None: the dataset cannot
    standardize: bool = True
    rules: int = 2


class TableReader:
    """The numbers and the classes of a table.

    Attributes:
        used: the columns of the values.
        label: the column of the classes; None without one.
        label_name: its name, also of labels beside the table; "" without labels.
        class_names: the name of each class; () if they are 0, 1, 2, ….
        notes: decisions, each one sentence.
    """

    def __init__(
        self, raw: RawTable, options: ColumnOptions, notes: list[str], left_out: LeftOut
    ) -> None:
        self.raw, self.options, self.notes, self.left_out = raw, options, notes, left_out
        words = set(options.missing)
        self.missing = [find_missing_cells(cells, words) for cells in raw.columns]  # (N,) each
        self.empty = [c for c, missing in enumerate(self.missing) if missing.all()]
        self.class_names: tuple[str, ...] = ()
        self.label = self.find_label_column()
        if options.rules == 1 and self.label is not None:  # an empty cell was another class
            self.missing[self.label][:] = False
            self.empty = [c for c in self.empty if c != self.label]
        for c in self.empty:
            left_out.add("a column without values", raw.names[c])
        self.label_name = "" if self.label is None else raw.names[self.label]
        if raw.labels is not None and options.label == "auto":
            self.label_name = "y"
        self.used = self.choose_value_columns()
        self.format = self.find_number_format()

    def read_values_labels_and_rows(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the values float64 (N, D), the labels (N,) or None, and the rows in the file."""
        values = np.stack([self.parse_column_to_floats(c) for c in self.used], 1)  # (N, D)
        truths = [c for c in self.used if are_true_or_false_cells(self.cells_with_value(c))]
        if truths:
            self.notes.append(f"true is 1 and false is 0 in {self.columns_in_words(truths)}")
        if self.options.rules > 1:
            self.add_notes_about_cells()
        keep = self.mask_of_rows_to_keep(values)
        y = None
        if self.label is not None:
            y = self.cells_to_class_numbers(self.raw.columns[self.label][keep])
        elif self.label_name and self.raw.labels is not None:
            y = self.cells_to_class_numbers(self.raw.labels[keep])
        numbers = torch.from_numpy(self.raw.row_numbers[keep])
        return torch.from_numpy(values[keep]), y, numbers

    def cells_with_value(self, c: int) -> np.ndarray:
        """Return the cells of a column that have a value."""
        cells: np.ndarray = self.raw.columns[c][~self.missing[c]]
        return cells

    # --- columns ---

    def column_index(self, key: int | str, option: str) -> int:
        """Return the number of a column that is given by its number or its name.

        A name may lack its unit: `mass` finds "mass [kg]".

        Raises:
            UserError: the column is missing or not unique; names the columns.
        """
        names = self.raw.names
        if isinstance(key, int) and 0 <= key < len(names):
            return key
        text, found = str(key), list[int]()
        for form in (str, name_without_unit, str.lower):
            found = found or [c for c, name in enumerate(names) if form(name) == form(text)]
        if len(found) == 1:
            return found[0]
        known = f"its {len(names)} columns are 0 to {len(names) - 1}"
        if self.raw.has_names:
            known += f": {join_first_names(names)}"
        near = did_you_mean(text, names) if self.raw.has_names else ""
        problem = f"no column {make_printable(text)}" if not found else f"several columns {text}"
        raise UserError(f"{self.options.path}: {problem} ({option}){near}; {known}")

    def find_label_column(self) -> int | None:
        """Return the column of the classes; None without one."""
        raw, option = self.raw, self.options.label
        columns = [c for c in range(len(raw.names)) if c not in self.empty]
        if not columns:
            raise UserError(f"{self.options.path} does not have values")
        if option == "none" or (option == "auto" and raw.labels is not None):
            return None
        if option == "last":
            return columns[-1] if self.options.rules > 1 else len(raw.names) - 1
        if option != "auto":
            return self.column_index(option, "dataset.label")
        wanted = [self.column_index(key, "dataset.use_columns") for key in self.options.use or ()]
        named = [c for c in columns if raw.names[c].lower() in LABEL_NAMES]
        label = (named or columns)[-1]
        if label in wanted or len(columns) == 1 or not self.column_has_classes(label):
            return None
        return label

    def column_has_classes(self, c: int) -> bool:
        """Whether a column has few different words or integers; notes a number that might."""
        cells = self.cells_with_value(c)
        numbers, n = cells_to_finite_floats(cells), len(cells)
        if numbers is None:
            return len(set(cells)) <= min(MAX_CLASSES, max(10, n / 2))
        distinct = len(np.unique(numbers))
        if (numbers != np.round(numbers)).any():
            return False
        if 1 < distinct <= min(MAX_INTEGER_CLASSES, max(2, n / 2)):
            return True
        if 1 < distinct <= MAX_CLASSES:
            self.notes.append(
                f"{self.columns_in_words([c])} has {distinct} different integers and is used as a "
                f"number; dataset.label={self.column_as_option(c)} takes them for classes"
            )
        return False

    def choose_value_columns(self) -> list[int]:
        """Return the columns whose values are used.

        Raises:
            UserError: an option names a column that does not exist, or no column is left.
        """
        raw, options = self.raw, self.options
        out = {self.column_index(key, "dataset.skip_columns") for key in options.skip or ()}
        out |= {*self.empty, *([] if self.label is None else [self.label])}
        if raw.has_row_labels:
            out.add(0)
            self.notes.append("the first column has no name: it labels the rows and is left out")
        elif self.first_column_numbers_rows() and 0 not in out:
            note = "the first column has no name and numbers the rows"
            if options.skip is None and options.use is None:
                out.add(0)
                self.notes.append(f"{note}: it is left out (dataset.skip_columns=[] uses it)")
            elif options.use is None:
                self.notes.append(f"{note}; add 0 to dataset.skip_columns to leave it out")
        used = [c for c in range(len(raw.names)) if c not in out]
        if options.use is not None:
            wanted = [self.column_index(key, "dataset.use_columns") for key in options.use]
            used = [c for c in used if c in wanted]
        if not used and self.label is not None and len(raw.names) - len(self.empty) == 1:
            raise UserError(
                f"{options.path} has only its label column; dataset.label=none uses all columns"
            )
        if not used:
            raise UserError(
                f"{options.path}: the options label, use_columns and skip_columns leave no column; "
                f"the columns are {join_first_names(raw.names)}"
            )
        return used

    def first_column_numbers_rows(self) -> bool:
        """Whether only the first column lacks a name and has different integers.

        They do not follow each other if pandas wrote shuffled rows.
        """
        if self.raw.unnamed != {0} or self.missing[0].any():
            return 0 in self.raw.unnamed and self.has_consecutive_integers(0)
        numbers = cells_to_finite_floats(self.raw.columns[0])
        if numbers is None or len(numbers) < 2 or (numbers < 0).any():
            return False
        is_integer = bool((numbers == np.round(numbers)).all())
        return is_integer and len(np.unique(numbers)) == len(numbers)

    def has_consecutive_integers(self, c: int) -> bool:
        """Whether the cells of a column count the rows."""
        numbers = None if self.missing[c].any() else cells_to_finite_floats(self.raw.columns[c])
        return numbers is not None and len(numbers) > 1 and bool((np.diff(numbers) == 1).all())

    def add_notes_about_cells(self) -> None:
        """Note identifiers that are used as values, and numbers that lose their leading zeros."""
        counting = [
            c
            for c in self.used
            if self.raw.names[c].lower() in ID_NAMES and self.has_consecutive_integers(c)
        ]
        if counting:
            self.notes.append(
                f"{self.columns_in_words(counting)} counts the rows and is used as a value; leave "
                f"it out with dataset.skip_columns=[{self.skip_columns_value(counting)}]"
            )
        texts = [column for column in self.raw.columns if column.dtype == object]
        for cells in texts:
            if len(cells) and TOTAL.match(cells[-1]) and cells[-1] not in cells[:-1]:
                self.notes.append(
                    f"the last row ({make_printable(cells[-1])!r}) is a row as the others: delete "
                    "it if it sums them up"
                )
        for c in [*self.used, *([] if self.label is None else [self.label])]:
            cells = self.raw.columns[c]
            if cells.dtype != object or cells_to_finite_floats(self.cells_with_value(c)) is None:
                continue
            zeros = [cell for cell in cells if LEADING_ZERO.fullmatch(cell)]
            if zeros:
                self.notes.append(
                    f"leading zeros are not kept in {self.columns_in_words([c])}: {zeros[0]} is "
                    f"the number {format_class_number(float(zeros[0]))}"
                )

    # --- numbers ---

    def find_number_format(self) -> NumberFormat:
        """Return the one format of all numbers in the used columns.

        Raises:
            UserError: a column has text, or the format is unclear; says what to set.
        """
        decimal, thousands = self.options.decimal, self.options.thousands
        may_be_plain = decimal != "comma" and thousands in ("auto", "none")
        formats: dict[int, list[NumberFormat]] = {}
        is_plain = True
        for c in self.used:
            cells = self.cells_with_value(c)
            if cells.dtype != object or are_true_or_false_cells(cells):
                continue
            if may_be_plain and parse_python_numbers(cells) is not None:
                formats[c] = [PLAIN]
                continue
            formats[c] = number_formats_of_all_cells(cells, decimal, thousands)
            is_plain = is_plain and PLAIN in formats[c]
        if has_text := [c for c, found in formats.items() if not found]:
            instead = self.suggest_mixed_table(has_text)
            raise UserError(f"{self.explain_text_columns(has_text)}{instead}")
        if is_plain:
            if decimal == thousands == "auto" and self.options.rules > 1:
                self.refuse_dots_between_thousands(list(formats))
            return PLAIN
        common: list[NumberFormat] = []
        for c in formats:
            if formats[c] == [PLAIN]:
                formats[c] = number_formats_of_all_cells(
                    self.cells_with_value(c), decimal, thousands
                ) or [PLAIN]
            joint = [known for known in common or formats[c] if known in formats[c]]
            if not joint:
                raise UserError(
                    f"{self.options.path}: {self.columns_in_words([c])} "
                    f"({self.quote_example_cell(c)}) writes numbers in another way than the "
                    "columns before it; leave it out with "
                    f"dataset.skip_columns=[{self.skip_columns_value([c])}]"
                )
            common = joint
        self.refuse_ambiguous_numbers(list(formats), common)
        example = next(c for c in formats if PLAIN not in formats[c])
        self.notes.append(f"{common[0].describe()}, as in {self.quote_example_cell(example)}")
        return common[0]

    def refuse_ambiguous_numbers(
        self, columns: Sequence[int], formats: Sequence[NumberFormat]
    ) -> None:
        """Refuse numbers that the possible formats read differently.

        Raises:
            UserError: names a cell, and the options that decide.
        """
        for c in columns:
            if (cell := first_ambiguous_cell(self.cells_with_value(c), formats)) is not None:
                raise UserError(
                    f"{self.options.path}, row "
                    f"{self.first_marked_row(self.raw.columns[c] == cell)}, "
                    f"{self.columns_in_words([c])}: the comma in {cell!r} marks decimals or "
                    "thousands; set dataset.decimal=comma or dataset.thousands=comma"
                )

    def refuse_dots_between_thousands(self, columns: Sequence[int]) -> None:
        """Refuse integers as 1.234 beside 567, whose dot may separate thousands.

        Without such as 567 the dot is taken for the decimal mark, and noted.

        Raises:
            UserError: names a cell, and the options that decide.
        """
        for c in columns:
            cells = self.cells_with_value(c)
            if not all(DOT_GROUPS.fullmatch(cell) for cell in cells):
                continue
            dotted = [cell for cell in cells if "." in cell]
            if MIN_DOT_GROUPS <= len(dotted) < len(cells):
                raise UserError(
                    f"{self.options.path}, row "
                    f"{self.first_marked_row(self.raw.columns[c] == dotted[0])}, "
                    f"{self.columns_in_words([c])}: the dot in {dotted[0]!r} marks decimals or "
                    "thousands; set dataset.decimal=dot or dataset.thousands=dot"
                )
            if len(dotted) >= MIN_DOT_GROUPS:
                self.notes.append(
                    f"the dot in {dotted[0]!r} and all numbers of {self.columns_in_words([c])} is "
                    "the decimal mark; dataset.thousands=dot if it separates thousands"
                )

    def parse_column_to_floats(self, c: int) -> np.ndarray:
        """Return the numbers float64 (N,) of a column; nan where a value is missing.

        Raises:
            UserError: a number is infinite, or an integer has too many digits.
        """
        cells, missing = self.raw.columns[c], self.missing[c]
        numbers = np.full(len(cells), np.nan)
        if cells.dtype != object:
            numbers = cells.astype(np.float64)
        elif are_true_or_false_cells(cells[~missing]):
            numbers[~missing] = [TRUTH_WORDS[cell.lower()] for cell in cells[~missing]]
        elif self.format == PLAIN:
            numbers[~missing] = cells[~missing].astype(np.float64)
        else:
            numbers[~missing] = [self.format.parse(cell) for cell in cells[~missing]]
        sentinels = [number for word in self.options.missing if (number := PLAIN.parse(word))]
        if sentinels:  # the word -999 is -999.0, too
            numbers[np.isin(numbers, sentinels)] = np.nan
        if (infinite := np.isinf(numbers)).any():
            raise UserError(self.explain_bad_cell_and_remedy(c, infinite, "is not a finite number"))
        large = np.abs(numbers) >= MAX_EXACT_INTEGER
        is_exact = self.options.rules == 1 or not all(map(is_integer_with_all_digits, cells[large]))
        if large.any() and not is_exact:
            raise UserError(
                self.explain_bad_cell_and_remedy(
                    c, large, "has more digits than a number can keep (2^53)"
                )
            )
        return numbers

    # --- rows ---

    def mask_of_rows_to_keep(self, values: np.ndarray) -> np.ndarray:
        """Return which rows (N,) have all values (N, D) and a label; count the others.

        Raises:
            UserError: a row lacks a value, and `drop_missing` is not set.
        """
        columns = dict(zip(self.used, np.isnan(values).T, strict=True))
        if self.label is not None:
            columns[self.label] = self.missing[self.label]
        blank = np.all(self.missing, 0)
        if blank.any():
            self.left_out.add("a row without values", count=int(blank.sum()))
        lacks = np.any(list(columns.values()), 0) & ~blank
        if self.options.keep_missing:
            return self.mask_of_rows_with_values(columns, blank)
        if lacks.any() and not self.options.drop_missing:
            raise UserError(self.explain_missing_values(columns, lacks))
        keep = ~blank & ~lacks
        if not keep.any():
            most = [c for c, missing in columns.items() if missing.mean() > 0.5] or list(columns)
            raise UserError(
                f"{self.options.path}: every row lacks a value; leave out the columns that lack "
                f"most: dataset.skip_columns=[{self.skip_columns_value(most)}]"
            )
        for c, missing in columns.items():
            if count := int((missing & lacks).sum()):
                self.left_out.add(f"a row without {self.columns_in_words([c])}", count=count)
                lacks &= ~missing
        return keep

    def mask_of_rows_with_values(
        self, columns: dict[int, np.ndarray], blank: np.ndarray
    ) -> np.ndarray:
        """Return which rows (N,) have a label and a value; count the others and the cells kept.

        Args:
            columns: which cells (N,) of each column are missing.
            blank: which rows (N,) lack all values.
        """
        missing = np.stack([columns[c] for c in self.used], 1)  # (N, D)
        empty = missing.all(1) & ~blank
        if empty.any():
            self.left_out.add("a row without a value in the used columns", count=int(empty.sum()))
        keep: np.ndarray = ~blank & ~empty
        if self.label is not None:
            unlabeled = columns[self.label] & keep
            if unlabeled.any():
                text = f"a row without {self.columns_in_words([self.label])}, its label"
                self.left_out.add(text, count=int(unlabeled.sum()))
            keep &= ~unlabeled
        if not keep.any():
            raise UserError(f"{self.options.path}: none of the rows has a value and a label")
        cells = missing[keep]
        self.notes.append(
            f"missing cells are kept: {int(cells.sum()):,} of {cells.size:,} "
            f"({cells.mean():.1%}), in {int(cells.any(1).sum()):,} of {len(cells):,} rows"
        )
        return keep

    # --- classes ---

    def cells_to_class_numbers(self, cells: np.ndarray) -> Tensor:
        """Return the classes 0, 1, … (N,) of values, sorted as numbers, else alphabetically."""
        numbers = cells_to_finite_floats(cells)
        if self.options.rules == 1 and cells.dtype == object:
            texts = sort_classes_v1(cells)
            known, index = np.array(texts), np.array([texts.index(cell) for cell in cells])
            names = [make_printable(word) for word in texts]
        elif numbers is None:
            known, index = np.unique(cells.astype(str), return_inverse=True)
            names = [make_printable(word) for word in known]
        else:
            known, index = np.unique(numbers, return_inverse=True)
            names = [format_class_number(value) for value in known.tolist()]
        if len(known) > MAX_CLASSES:
            raise UserError(
                f"the label column of {self.options.path} ({self.label_name}) has {len(known):,} "
                "values, too many for classes; choose another column with dataset.label=<name or "
                "number>, or dataset.label=none"
            )
        if names != [str(k) for k in range(len(names))]:
            self.class_names = tuple(names)
        where = "the array y" if self.label is None else self.columns_in_words([self.label])
        text = f"the labels are {where}: {len(known)} class{'' if len(known) == 1 else 'es'}"
        if self.options.label == "auto":
            text += "; dataset.label=none trains without labels"
            if numbers is not None and self.label is not None:
                text += ", and with the column as a number"
        self.notes.append(text)
        if numbers is not None and cells.dtype == object and self.options.rules > 1:
            self.add_equal_labels_note(cells)
        return torch.from_numpy(index.reshape(-1))

    def add_equal_labels_note(self, cells: np.ndarray) -> None:
        """Note labels that are written in several ways."""
        groups: dict[float, list[str]] = {}
        for text in sorted(set(cells)):
            groups.setdefault(float(text), []).append(text)
        if several := [texts for texts in groups.values() if len(texts) > 1]:
            shown = "; ".join(" = ".join(texts[:3]) for texts in several[:3])
            self.notes.append(f"labels that are the same number are the same class: {shown}")

    # --- what was understood ---

    def make_columns_with_scales(
        self, x: Tensor, standardized: Tensor, mean: Tensor, scale: Tensor
    ) -> list[Column]:
        """Return the columns of the values x (N, D), and note which are integers or constant.

        Args:
            standardized: the same values as float32 (N, D), for which `mean` and `scale` (D,) were
                used.

        Raises:
            UserError: values of a column cannot be represented in float32.
        """
        columns, constant = [], []
        for i, c in enumerate(self.used):
            known = ~x[:, i].isnan()
            name, values = self.raw.names[c], x[known, i]
            if self.options.rules > 1:
                self.refuse_float32_precision_loss(c, values, standardized[known, i])
            is_integer = bool((values == values.round()).all())
            is_integer = is_integer and values.abs().max().item() < MAX_EXACT_INTEGER
            unit = split_name_and_unit(name)[1]
            columns.append(Column(name, mean[i].item(), scale[i].item(), unit, is_integer))
            if values.min() == values.max():
                constant.append(c)
        integers = [c for c, column in zip(self.used, columns, strict=True) if column.is_integer]
        text = f"the values are {self.columns_in_words(self.used)}"
        self.notes.append(
            f"{text}; integers are {self.columns_in_words(integers)}" if integers else text
        )
        if constant:
            self.notes.append(
                f"all rows have the same value in {self.columns_in_words(constant)}, where a "
                f"density has no bound; leave out with "
                f"dataset.skip_columns=[{self.skip_columns_value(constant)}]"
            )
        return columns

    def refuse_float32_precision_loss(self, c: int, values: Tensor, standardized: Tensor) -> None:
        """Refuse a column whose values float32 cannot represent or cannot tell apart."""
        where = f"{self.options.path}, {self.columns_in_words([c])}"
        extreme = values[values.abs().argmax()].item()
        remedy = f"leave the column out with dataset.skip_columns=[{self.skip_columns_value([c])}]"
        if not standardized.isfinite().all():
            raise UserError(f"{where}: {extreme:g} is too large for float32; {remedy}")
        before = len(values[:ROWS_COMPARED].unique())
        after = len(standardized[:ROWS_COMPARED].unique())
        if before > 2 and after <= before / 2:
            fix = "correct them, take their logarithm, or"
            if not self.options.standardize:
                fix = "set dataset.standardize=true, or"
            raise UserError(
                f"{where}: float32 keeps {after:,} of {before:,} different values apart, because "
                f"values reach {extreme:g}; {fix} {remedy}"
            )

    # --- messages ---

    def explain_text_columns(self, has_text: Sequence[int]) -> str:
        """Return the message for columns with text."""
        bad = [self.find_text_cells(c) for c in has_text]
        few = max(int(cells.sum()) for cells in bad) <= FEW_CELLS
        c, several = has_text[0], len(has_text) > 1
        message = self.explain_bad_cell(c, bad[0], "is not a finite number")
        rows = {int(row) for cells in bad for row in self.raw.row_numbers[cells]}
        ends = {int(self.raw.row_numbers[0]), int(self.raw.row_numbers[-1])}
        if len(rows) == 1 and (several or rows <= ends):  # a row of units, or a last row of totals
            message += "; it is the only row with text: fix it or delete it"
            if len(has_text) == len(self.used):
                return message
            message += ", or leave "
        else:
            message += "; fix it, or leave " if few else "; leave "
        message += "the columns of text" if several else self.columns_in_words([c])
        message += f" out with dataset.skip_columns=[{self.skip_columns_value(has_text)}]"
        if several:
            named = self.columns_in_words(has_text)
            message += f" ({len(has_text)} of {len(self.used)} have text: {named})"
        return message

    def suggest_mixed_table(self, has_text: Sequence[int]) -> str:
        """Return what takes columns of words for categories; "" for a few texts among numbers."""
        most = max(int(self.find_text_cells(c).sum()) for c in has_text)
        return "; dataset=mixed_table takes text for categories" if most > FEW_CELLS else ""

    def find_text_cells(self, c: int) -> np.ndarray:
        """Return which cells (N,) of a column are not numbers."""
        decimal, thousands = self.options.decimal, self.options.thousands
        cells = self.raw.columns[c]
        is_text = np.array(
            [not number_formats_of_all_cells([cell], decimal, thousands) for cell in cells]
        )
        is_text &= ~self.missing[c]
        # each cell may be a number, but in a different format
        return is_text if is_text.any() else ~self.missing[c]

    def explain_bad_cell(self, c: int, bad: np.ndarray, problem: str) -> str:
        """Return what is wrong with the first bad cell of a column, given which are bad (N,)."""
        cell = make_printable(str(self.raw.columns[c][bad][0]))
        row = self.first_marked_row(bad)
        return f"{self.options.path}, row {row}, column {c}: {cell!r} {problem}"

    def explain_bad_cell_and_remedy(self, c: int, bad: np.ndarray, problem: str) -> str:
        """Return the message for a bad cell, and how to leave out its column."""
        fix = "fix it, or leave" if bad.sum() <= FEW_CELLS else "leave"
        return (
            f"{self.explain_bad_cell(c, bad, problem)}; {fix} {self.columns_in_words([c])} out "
            f"with dataset.skip_columns=[{self.skip_columns_value([c])}]"
        )

    def explain_missing_values(self, columns: dict[int, np.ndarray], lacks: np.ndarray) -> str:
        """Return the message for rows that lack values, by which columns lack them (N,)."""
        counts = {c: int((missing & lacks).sum()) for c, missing in columns.items()}
        worst = sorted((c for c in counts if counts[c]), key=lambda c: -counts[c])
        c = next(c for c in columns if counts[c])
        rows = columns[c] & lacks
        message = self.explain_bad_cell(c, rows, "is a missing value")
        shown = join_first_names([f"{self.column_as_option(k)} ({counts[k]:,})" for k in worst])
        message += f"; {lacks.sum():,} of {len(lacks):,} rows lack one, in {shown}"
        message += "; dataset.drop_missing=true leaves out these rows"
        if features := [k for k in worst if k != self.label]:
            message += f", dataset.skip_columns=[{self.skip_columns_value(features)}] the columns"
            if self.options.keep_missing is not None:
                message += (
                    "; dataset.keep_missing=true keeps them, for models that are trained with "
                    "missing cells, such as gmm"
                )
        cell = self.raw.columns[c][rows][0]
        if c == self.label and cell:
            message += f"; if {make_printable(str(cell))} is a class, set dataset.missing_values=[]"
        return message

    def first_marked_row(self, rows: np.ndarray) -> int:
        """Return where the first of the marked rows (N,) is in the file."""
        return int(self.raw.row_numbers[rows][0])

    def quote_example_cell(self, c: int) -> str:
        """Return a cell of a column in quotes, one with a mark if there is any."""
        cells = self.cells_with_value(c)
        return repr(next((cell for cell in cells if PLAIN.parse(cell) is None), cells[0]))

    def columns_in_words(self, columns: Sequence[int]) -> str:
        """Return columns in words: by their names if the file has names."""
        word = "column" if len(columns) == 1 else "columns"
        if self.raw.has_names:
            return f"{word} {join_first_names([self.raw.names[c] for c in columns])}"
        if len(columns) > 2 and list(columns) == [*range(columns[0], columns[-1] + 1)]:
            return f"{word} {columns[0]} to {columns[-1]}"
        return f"{word} {join_first_names([str(c) for c in columns])}"

    def column_as_option(self, c: int) -> str:
        """Return a column as it is typed in an option: its name if it needs no quotes."""
        name = self.raw.names[c]
        is_easy = EASY_NAME.fullmatch(name) and name.lower() not in RESERVED_NAMES
        is_named = self.raw.has_names and c not in self.raw.unnamed
        return name if is_named and is_easy else str(c)

    def skip_columns_value(self, columns: Sequence[int]) -> str:
        """Return columns as they are typed in a list, with those that are left out already."""
        out = {self.column_index(key, "dataset.skip_columns") for key in self.options.skip or ()}
        if self.options.skip is None and self.first_column_numbers_rows():
            out.add(0)
        return ",".join(self.column_as_option(c) for c in sorted(out | set(columns)))


# --- cells and names ------------------------------------------------------------------------------


def find_missing_cells(cells: np.ndarray, words: set[str]) -> np.ndarray:
    """Return which cells (N,) do not have a value."""
    if cells.dtype == object:
        return np.fromiter((not cell or cell in words for cell in cells), bool, len(cells))
    return np.isnan(cells) if cells.dtype.kind == "f" else np.zeros(len(cells), bool)


def cells_to_finite_floats(cells: np.ndarray) -> np.ndarray | None:
    """Return cells (N,) as finite float64 (N,), None if one is not such a number."""
    numbers = parse_python_numbers(cells) if cells.dtype == object else cells.astype(np.float64)
    return numbers if numbers is not None and np.isfinite(numbers).all() else None


def are_true_or_false_cells(cells: np.ndarray) -> bool:
    """Whether cells are true and false."""
    if cells.dtype == object:
        return all(cell.lower() in TRUTH_WORDS for cell in cells) and len(cells) > 0
    return cells.dtype == bool


def is_integer_with_all_digits(cell: object) -> bool:
    """Whether a cell is an integer with all its digits, not as 1e30."""
    return str(cell).lstrip("+-").isdecimal()


def column_means_and_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (D,) of x (N, D); 1 for a constant column."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    is_constant = x.amin(0) == x.amax(0)
    # the squares of very large or very small values leave the range of float64
    extreme = ~deviation.isfinite() | ~mean.isfinite() | ((deviation == 0) & ~is_constant)
    for c in extreme.nonzero()[:, 0].tolist():
        size = x[:, c].abs().max()
        mean[c] = size * (x[:, c] / size).mean()
        deviation[c] = size * (x[:, c] / size).std(correction=0)
    return mean, torch.where(deviation > 0, deviation, 1.0)


def split_name_and_unit(name: str) -> tuple[str, str]:
    """Return a column's name and its unit: "mass [kg]" gives mass and kg."""
    match = UNIT.fullmatch(name)
    unit = (match["square"] or match["round"]).strip() if match else ""
    return (match["name"], unit) if match and not unit.isdecimal() else (name, "")  # not a year


def name_without_unit(name: str) -> str:
    """Return a column's name without its unit."""
    return split_name_and_unit(name)[0]


def format_class_number(value: float) -> str:
    """Return the name of a class that is a number: 1, 1.5."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)


def join_first_names(names: Sequence[str]) -> str:
    """Return the first names in words."""
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
