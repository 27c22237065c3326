"""Series over time as windows: the past of a forecast, and the future that it predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Dataset, Split
from genlab.data.number_formats import Decimal, Thousands
from genlab.data.series_dates import (
    Season,
    TimeGrid,
    are_dates,
    find_time_grid,
    first_unreadable_date,
    parse_date,
    parse_dates,
    seasonal_features,
    seasons_of,
)
from genlab.data.summary import Column
from genlab.data.table_columns import ColumnOptions, TableReader, column_means_and_scales
from genlab.data.table_files import (
    RawTable,
    read_table,
)
from genlab.data.table_text_reader import TextTableReader
from genlab.errors import UserError, did_you_mean, make_printable
from genlab.seeding import derive_seed
from genlab.spec import Batch, Count, DataSpec, Positive

MIN_YEAR = 1000  # a whole number from here on is a year, not a fraction
MAX_EXAMPLES = 3  # dates that a note names
YEAR_NAME = "year"  # in a column of this name, integers of four digits are years
MAX_COLUMNS_NAMED = 8  # in a message
MIN_DATED_ROWS = 2  # rows that have a step between them


@dataclass(kw_only=True, eq=False)
class SeriesDataset(Dataset):
    """Windows of a series: x (B, H, C) are values of H steps, to be predicted from the past.

    cond (B, P + H, C + F) has one row for each step of the window. Its first C columns are the
    values of the P steps before, and 0 in the H rows to predict; the other F columns are features
    that are known in advance, such as the season. A subclass sets `values`, `steps` and `grid`, and
    calls `set_windows`.

    Attributes:
        values: float64 (T, C) in own units, in the order of time.
        steps: int64 (T,), where each row is on `grid`; a jump is a gap.
        grid: the dates of steps.
        seasons_found: names of the seasons whose sines and cosines are features.
        is_log: whether the logarithm of the values is standardized.

    Args:
        context_steps: P, the steps that a forecast is conditioned on.
        target_steps: H, the steps that a window predicts.
        heldout_stride: steps between the forecasts of the validation and of the test split.
    """

    context_steps: Positive = 36
    target_steps: Positive = 12
    heldout_stride: Positive = 1
    values: np.ndarray = field(init=False)
    steps: np.ndarray = field(init=False)
    grid: TimeGrid = field(init=False)

    seasons_found: Sequence[str] = field(default=(), init=False)
    num_harmonics: int = field(default=0, init=False)
    is_log: bool = field(default=False, init=False)

    @property
    def window_steps(self) -> int:
        """Steps of a window, past and future."""
        return self.context_steps + self.target_steps

    @property
    def num_columns(self) -> int:
        """C, the number of values at each step."""
        return int(self.values.shape[1])

    def set_windows(
        self, split_of_row: np.ndarray, names: Sequence[str], units: Sequence[str]
    ) -> None:
        """Standardize the values by the training rows, and set the windows of each split.

        Windows are inside a run of steps without a gap. All steps that a window predicts are in
        its split; the past of a held-out window may be in an earlier one.

        Args:
            split_of_row: 0, 1 or 2 (T,) for training, validation and test.
            names, units: of the columns.
        """
        used = torch.from_numpy(np.log(self.values) if self.is_log else self.values)
        mean, scale = self.mean_and_scale(used[torch.from_numpy(split_of_row == 0)])
        self.columns = [
            Column(name, m, s, unit)
            for name, m, s, unit in zip(names, mean.tolist(), scale.tolist(), units, strict=True)
        ]
        features = self.features_of_steps(self.steps)
        self.store = torch.cat([((used - mean) / scale).float(), features], 1)  # (T, C + F)
        self._stores: dict[torch.device, Tensor] = {}
        starts = {
            name: self.window_starts(split_of_row, number) for number, name in enumerate(SPLITS)
        }
        self.refuse_no_training_windows(starts["train"], split_of_row)
        spec = DataSpec(
            shape=(self.target_steps, self.num_columns),
            kind="series",
            levels=0,
            task="forecast",
            source=DataSpec(
                shape=(self.window_steps, self.store.shape[1]), kind="series", levels=0
            ),
        )
        hint = (
            f"it has less than {self.target_steps} steps without a gap; set dataset.validation and "
            "dataset.test, the fractions to hold out or the dates at which they begin"
        )
        self.set_splits(
            spec,
            {name: Split(torch.from_numpy(index)) for name, index in starts.items()},
            hints=dict.fromkeys(SPLITS, hint),
        )

    def standardize_as(self, columns: Sequence[Column]) -> None:
        """Standardize the values as another dataset of the same columns does.

        A file that has grown since a training has another training part. The model knows that of
        its training.
        """
        used = torch.from_numpy(np.log(self.values) if self.is_log else self.values)
        mean, scale = (
            torch.tensor([getattr(column, name) for column in columns], dtype=torch.float64)
            for name in ("mean", "scale")
        )
        self.columns = list(columns)
        self.store[:, : self.num_columns] = ((used - mean) / scale).float()
        self._stores.clear()
        self._on_device.clear()

    def mean_and_scale(self, train: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale (C,) by which values are standardized."""
        return column_means_and_scales(train)

    def window_starts(self, split_of_row: np.ndarray, split: int) -> np.ndarray:
        """Return the rows (N,) at which the future of each window of a split begins."""
        first = np.arange(self.context_steps, len(self.steps) - self.target_steps + 1)
        last = first + self.target_steps - 1
        is_inside = (split_of_row[first] == split) & (split_of_row[last] == split)
        first, last = first[is_inside], last[is_inside]
        if split and len(first):
            begin = int(np.argmax(split_of_row == split))
            is_due = (first - max(begin, self.context_steps)) % self.heldout_stride == 0
            first, last = first[is_due], last[is_due]
        whole = self.steps[last] - self.steps[first - self.context_steps] == self.window_steps - 1
        if crossing := int((~whole).sum()):
            self.left_out.add(f"{SPLITS[split]} windows across a gap", count=crossing)
        return first[whole]

    def refuse_no_training_windows(self, starts: np.ndarray, split_of_row: np.ndarray) -> None:
        """Refuse a series that is too short to train on.

        Raises:
            UserError: names the options that make a window shorter.
        """
        if len(starts):
            return
        of_train = self.steps[split_of_row == 0]
        runs = np.split(of_train, np.flatnonzero(np.diff(of_train) != 1) + 1)
        raise UserError(
            f"a window has {self.context_steps} + {self.target_steps} steps, but the training part "
            f"of {self.name} has only {max(map(len, runs)):,} without a gap; set smaller "
            "dataset.context_steps and dataset.target_steps, or hold out less with "
            "dataset.validation and dataset.test"
        )

    # --- steps ---

    def features_of_steps(self, steps: np.ndarray) -> Tensor:
        """Return the features float32 (N, F) of steps (N,), which are known in advance."""
        if not self.seasons_found:
            return torch.zeros(len(steps), 0)
        dates = self.grid.dates_at(steps)
        features = seasonal_features(dates, self.seasons_found, self.num_harmonics)
        return torch.from_numpy(features).float()

    def to_own_units(self, x: Tensor) -> Tensor:
        """Return standardized values (…, C) in own units, float64 (…, C) on the CPU."""
        scale = torch.tensor([column.scale for column in self.columns], dtype=torch.float64)
        mean = torch.tensor([column.mean for column in self.columns], dtype=torch.float64)
        own = x.detach().cpu().double() * scale + mean
        return own.exp() if self.is_log else own

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if x.device not in self._stores:
            self._stores[x.device] = self.store.to(x.device)
        offset = torch.arange(-self.context_steps, self.target_steps, device=x.device)
        window = self._stores[x.device][x[:, None] + offset]  # (B, P + H, C + F)
        future = window[:, self.context_steps :, : self.num_columns].clone()
        window[:, self.context_steps :, : self.num_columns] = 0
        return Batch(future, None, window)

    # --- truth ---

    def true_forecast(self, cond: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and deviation (B, H, C) of the exact forecast in own units, if known."""
        return None

    def true_forecast_log_prob(self, x: Tensor, cond: Tensor) -> Tensor | None:
        """Return the exact log p(x | cond) (B,) of standardized x (B, H, C), if known."""
        return None


# --- made on the fly ------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class AR2(SeriesDataset):
    """An AR(2) process, x_t = φ₁ x_{t−1} + φ₂ x_{t−2} + ε_t with ε ~ N(0, 1).

    Its distribution of the future is known: h steps ahead it is Gaussian with the variance
    Σ_{j<h} ψ_j², where ψ_j are the coefficients of the moving average (Box & Jenkins 1970,
    section 5.1). Each split is a separate realization, which begins in the stationary
    distribution. Values are divided by the stationary deviation.

    Args:
        phi: φ₁ and φ₂, of a stationary process.
        n: steps of the training split.
        num_heldout: steps of the validation split, and of the test split.
        split_seed: seeds the noise.
    """

    phi: tuple[float, float] = (1.5, -0.75)
    n: Positive = 20_000
    num_heldout: Positive = 4_000
    split_seed: Count = 0
    context_steps: Positive = 10
    target_steps: Positive = 20
    heldout_stride: Positive = 10
    name = "ar2"

    def __post_init__(self) -> None:
        first, second = self.phi
        if not (abs(second) < 1 and second + abs(first) < 1):
            raise UserError(
                f"dataset.phi=[{first:g},{second:g}] is not stationary: |φ₂| and φ₂ + |φ₁| must be "
                "below 1"
            )
        if self.context_steps < 2:
            raise UserError(
                f"dataset.context_steps={self.context_steps}: the exact forecast needs the last 2 "
                "values"
            )
        sizes = [self.n, self.num_heldout, self.num_heldout]
        parts = [
            self.simulate(size, derive_seed(self.split_seed, i)) for i, size in enumerate(sizes)
        ]
        self.values = np.concatenate(parts)[:, None]
        # a step is missing between two realizations, so that no window has both
        self.steps = np.concatenate([np.arange(len(p)) for p in parts]) + np.repeat(
            np.cumsum([0, *[size + 1 for size in sizes[:-1]]]), sizes
        )
        self.grid = TimeGrid(np.datetime64(0, "s"), "row", 1)
        self.set_windows(np.repeat([0, 1, 2], sizes), ["x"], [""])
        self.left_out.counts.clear()  # the realizations have nothing to do with each other
        self.left_out.names.clear()

    @property
    def stationary_variance(self) -> float:
        """γ₀ = (1 − φ₂) / ((1 + φ₂) ((1 − φ₂)² − φ₁²))."""
        first, second = self.phi
        return (1 - second) / ((1 + second) * ((1 - second) ** 2 - first**2))

    def mean_and_scale(self, train: Tensor) -> tuple[Tensor, Tensor]:
        scale = train.new_tensor([math.sqrt(self.stationary_variance)])
        return torch.zeros_like(scale), scale

    def simulate(self, n: int, seed: int) -> np.ndarray:
        """Return n steps (n,) of the process from its stationary distribution."""
        first, second = self.phi
        noise = np.random.default_rng(seed).standard_normal(n + 2)
        # x₀ ~ N(0, γ₀), x₁ | x₀ ~ N(ρ₁ x₀, γ₀ (1 − ρ₁²)) with ρ₁ = φ₁ / (1 − φ₂)
        rho = first / (1 - second)
        x = np.zeros(n + 2)
        x[0] = math.sqrt(self.stationary_variance) * noise[0]
        x[1] = rho * x[0] + math.sqrt(self.stationary_variance * (1 - rho**2)) * noise[1]
        for t in range(2, n + 2):
            x[t] = first * x[t - 1] + second * x[t - 2] + noise[t]
        return x[2:]

    # ψ_0 = 1, ψ_j = φ₁ ψ_{j−1} + φ₂ ψ_{j−2};  σ_h² = Σ_{j<h} ψ_j²
    def forecast_deviations(self, num_steps: int) -> Tensor:
        """Return the deviation σ_h (H,) of the exact forecast h = 1 … H steps ahead."""
        psi = [1.0, self.phi[0]]
        while len(psi) < num_steps:
            psi.append(self.phi[0] * psi[-1] + self.phi[1] * psi[-2])
        return torch.tensor(psi[:num_steps], dtype=torch.float64).square().cumsum(0).sqrt()

    def true_forecast(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        past = self.to_own_units(cond[:, self.context_steps - 2 : self.context_steps, :1])
        means = [past[:, 0], past[:, 1]]
        for _ in range(self.target_steps):
            means.append(self.phi[0] * means[-1] + self.phi[1] * means[-2])
        mean = torch.stack(means[2:], 1)  # (B, H, 1)
        deviation = self.forecast_deviations(self.target_steps)[:, None]
        return mean, deviation.expand_as(mean)

    def true_forecast_log_prob(self, x: Tensor, cond: Tensor) -> Tensor:
        past = cond[:, self.context_steps - 2 : self.context_steps, :1]
        series = self.to_own_units(torch.cat([past, x], 1))[..., 0]  # (B, 2 + H)
        noise = series[:, 2:] - self.phi[0] * series[:, 1:-1] - self.phi[1] * series[:, :-2]
        log_p = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi)
        return (log_p + math.log(self.columns[0].scale)).sum(1)


# --- from a file ----------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Series(TextTableReader, SeriesDataset):
    """The rows of a table with dates as a series of one or several values.

    The splits are parts of time: training, then validation, then test. The dates must be multiples
    of one step apart: seconds to weeks, business days, months, quarters or years. Dates between
    them that are missing are gaps.

    Args:
        path: a table, as of `dataset=table`. Required.
        date_column: by name or number from 0; "auto" takes the first column of dates; "none" takes
            the rows as equal steps.
        date_format: as of Python's strptime, such as %d/%m/%Y; None reads years, months and days
            in this order.
        use_columns: the only columns of values; None uses all but the dates.
        skip_columns: columns to leave out.
        gaps: split: a window never crosses a gap; interpolate: missing steps are filled in
            linearly.
        log: model the logarithm of the values, which must be positive.
        seasons: year, week and day as features; "auto" takes those that the series has twice.
        harmonics: sines and cosines of each season.
        validation, test: fractions of the rows at the end, or the dates at which they begin.
        header, delimiter, decimal, thousands, encoding, comment, skip_rows, missing_values: how
            the table is written; see `genlab.data.tabular.Table`.
        drop_missing: take a row without a value as missing instead of refusing it.
    """

    path: str | None = None
    date_column: int | str = "auto"
    date_format: str | None = None
    use_columns: tuple[Count | str, ...] | None = None
    skip_columns: tuple[Count | str, ...] | None = None
    gaps: Literal["split", "interpolate"] = "split"
    log: bool = False
    seasons: tuple[Season, ...] | Literal["auto"] = "auto"
    harmonics: Positive = 3
    validation: float | str = 0.1
    test: float | str = 0.1
    header: bool | None = None
    delimiter: str = "auto"
    decimal: Decimal = "auto"
    thousands: Thousands = "auto"
    encoding: str | None = None
    comment: str | None = "#"
    skip_rows: Count = 0
    missing_values: tuple[str | float, ...] | None = None
    drop_missing: bool = False
    name = "series"

    def __post_init__(self) -> None:
        file = self.require_file(
            "dataset.path=<file.csv>, with a column of dates; dataset=ar2 needs none"
        )
        self.source_files = [file]
        raw = read_table(file, self.make_text_format(allow_short_rows=self.drop_missing))
        self.notes.extend(raw.notes)
        self.left_out = raw.left_out
        dates = self.find_date_column(raw)
        reader = TableReader(raw, self.make_column_options(raw, dates), self.notes, self.left_out)
        values, _, rows = reader.read_values_labels_and_rows()
        self.values = values.numpy()
        self.is_log = self.log
        place = np.searchsorted(raw.row_numbers, rows.numpy())
        self.set_steps(raw, dates, place)
        self.refuse_values_without_logarithm(reader)
        split_of_row = self.split_rows()
        self.choose_seasons(int((split_of_row == 0).sum()))
        names = [raw.names[c] for c in reader.used]
        described = reader.make_columns_with_scales(
            values, values.float(), torch.zeros(len(names)), torch.ones(len(names))
        )
        self.set_windows(split_of_row, names, [column.unit for column in described])

    # --- file ---

    def make_column_options(self, raw: RawTable, dates: int | None) -> ColumnOptions:
        """Return the options that say which columns are values; the dates are not."""
        skip = self.skip_columns
        if dates is not None:
            skip = (*(skip or ()), dates)
        return ColumnOptions(
            path=str(self.path),
            label="none",
            use=self.use_columns,
            skip=skip,
            decimal=self.decimal,
            thousands=self.thousands,
            missing=self.missing_value_words(),
            drop_missing=self.drop_missing,
        )

    # --- dates ---

    def find_date_column(self, raw: RawTable) -> int | None:
        """Return the column of the dates; None if the rows are equal steps.

        Raises:
            UserError: there is none, or the named one has other cells.
        """
        if self.date_column == "none":
            return None
        if self.date_column != "auto":
            column = self.column_number(raw, self.date_column)
            self.refuse_unreadable_dates(raw, column)
            return column
        for c, name in enumerate(raw.names):
            if are_dates(raw.columns[c], name, self.date_format):
                return c
        names = make_printable(", ".join(raw.names[:MAX_COLUMNS_NAMED]))
        raise UserError(
            f"{self.path}: no column has dates as 1990-01-31 in every row; the columns are "
            f"{names}: name one with dataset.date_column= and how it is written with "
            "dataset.date_format=%d/%m/%Y, or take the rows as equal steps with "
            "dataset.date_column=none"
        )

    def column_number(self, raw: RawTable, key: int | str) -> int:
        """Return the number of the column of dates, which is given by its number or name.

        Raises:
            UserError: a column is missing; names the columns.
        """
        if isinstance(key, int) and 0 <= key < len(raw.names):
            return key
        if str(key) in raw.names:
            return raw.names.index(str(key))
        raise UserError(
            f"{self.path}: no column {make_printable(str(key))} (dataset.date_column)"
            f"{did_you_mean(str(key), raw.names)}; its {len(raw.names)} columns are "
            f"{make_printable(', '.join(raw.names[:MAX_COLUMNS_NAMED]))}"
        )

    def refuse_unreadable_dates(self, raw: RawTable, column: int) -> None:
        """Refuse a column with cells that are not dates.

        Raises:
            UserError: names the first such row.
        """
        cells = raw.columns[column]
        if are_dates(cells, YEAR_NAME, self.date_format):
            return
        if self.date_format is not None:
            bad = first_unreadable_date(cells, self.date_format)
        else:
            bad = next(
                (
                    i
                    for i, c in enumerate(cells)
                    if not are_dates(cells[i : i + 1], YEAR_NAME, None)
                ),
                None,
            )
        where = 0 if bad is None else bad
        form = self.date_format or "1990-01-31"
        raise UserError(
            f"{self.path}, row {raw.row_numbers[where]}, column "
            f"{make_printable(raw.names[column])}: "
            f"{make_printable(str(cells[where]))!r} is not a date as {form}; fix it, or set "
            "dataset.date_format, such as %d/%m/%Y"
        )

    def set_steps(self, raw: RawTable, column: int | None, place: np.ndarray) -> None:
        """Set the grid of dates and the step of each row, in the order of time.

        Args:
            place: the rows of the file (T,) that have all values.

        Raises:
            UserError: dates are repeated, irregular or too few.
        """
        if len(place) < MIN_DATED_ROWS:
            raise UserError(
                f"{self.path} has {len(place)} row with all values; a series needs more"
            )
        if column is None:
            self.grid, self.steps = TimeGrid(np.datetime64(0, "s"), "row", 1), place
            self.notes.append(f"the {len(place):,} rows are equal steps without dates")
        else:
            cells = raw.columns[column][place]
            dates = self.parse_column_of_dates(cells, raw, place)
            order = np.argsort(dates, kind="stable")
            if (order != np.arange(len(order))).any():
                if (order == np.arange(len(order))[::-1]).all():
                    self.notes.append(
                        "the rows are in reversed order of time, and are turned round"
                    )
                else:
                    self.notes.append("the rows are not in the order of time, and are sorted")
            order = self.drop_repeated_dates(dates, order, raw.row_numbers[place])
            self.values, dates = self.values[order], dates[order]
            self.grid = find_time_grid(dates, str(cells[order[0]]), self.date_format)
            self.steps = self.grid.steps_of(dates)
            first, last = self.grid.format_dates(dates[[0, -1]])
            self.notes.append(
                f"{len(dates):,} dates in column {make_printable(raw.names[column])}, "
                f"{self.grid.describe()} apart, from {first} to {last}"
            )
        self.note_or_fill_gaps()

    def parse_column_of_dates(
        self, cells: np.ndarray, raw: RawTable, place: np.ndarray
    ) -> np.ndarray:
        """Return the dates datetime64[s] (T,) of cells (T,).

        Raises:
            UserError: a cell is written as a date and is none, such as 1990-02-30.
        """
        try:
            return parse_dates(cells, self.date_format)
        except ValueError:
            for i, cell in enumerate(cells):
                try:
                    parse_date(str(cell), self.date_format)
                except ValueError as error:
                    raise UserError(
                        f"{self.path}, row {raw.row_numbers[place[i]]}: {error} is not a date of "
                        "the calendar; fix it"
                    ) from None
            raise

    def drop_repeated_dates(
        self, dates: np.ndarray, order: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """Return the rows in the order of time, without repetitions of the same values.

        Raises:
            UserError: a date has several values.
        """
        repeats = np.flatnonzero(np.diff(dates[order]) == np.timedelta64(0, "s")) + 1
        for i in repeats:
            before, row = order[i - 1], order[i]
            if not np.array_equal(self.values[before], self.values[row]):
                raise UserError(
                    f"{self.path}, rows {rows[before]} and {rows[row]} have the same date "
                    f"{str(dates[row]).replace('T00:00:00', '')} and different values "
                    f"({len(repeats):,} dates are repeated); keep one row for each date, or one "
                    "series in a file"
                )
        if len(repeats):
            self.left_out.add("a repeated date with the same values", count=len(repeats))
        return np.delete(order, repeats)

    def note_or_fill_gaps(self) -> None:
        """Count the gaps; fill in the missing steps if that is wanted."""
        jumps = np.flatnonzero(np.diff(self.steps) > 1)
        if not len(jumps):
            return
        missing = np.setdiff1d(
            np.arange(self.steps[0], self.steps[-1] + 1), self.steps, assume_unique=True
        )
        shown = ", ".join(self.grid.format_dates(self.grid.dates_at(missing[:MAX_EXAMPLES])))
        shown += ", …" if len(missing) > MAX_EXAMPLES else ""
        steps = f"{len(missing):,} {'step is' if len(missing) == 1 else 'steps are'} missing"
        gaps = f"{len(jumps):,} gap{'' if len(jumps) == 1 else 's'}"
        if self.gaps == "split":
            self.notes.append(
                f"{steps} in {gaps} ({shown}), which windows do not cross; "
                "dataset.gaps=interpolate fills them in"
            )
            return
        every = np.arange(self.steps[0], self.steps[-1] + 1)
        self.values = np.stack(
            [np.interp(every, self.steps, column) for column in self.values.T], 1
        )
        self.steps = every
        self.notes.append(f"{steps} in {gaps} ({shown}) and filled in linearly")

    def refuse_values_without_logarithm(self, reader: TableReader) -> None:
        """Refuse dataset.log for values that are not positive."""
        if self.log and (self.values <= 0).any():
            row, column = np.argwhere(self.values <= 0)[0]
            name = make_printable(reader.raw.names[reader.used[column]])
            raise UserError(
                f"dataset.log=true needs positive values, but {name} "
                f"is {self.values[row, column]:g} at "
                f"{self.grid.format_dates(self.grid.dates_at(self.steps[[row]]))[0]}"
            )

    # --- splits and seasons ---

    def split_rows(self) -> np.ndarray:
        """Return 0, 1 or 2 (T,): the split of each row.

        Raises:
            UserError: the parts overlap.
        """
        end = len(self.steps)
        test = self.first_row_of_split("test", self.test, end)
        validation = self.first_row_of_split("validation", self.validation, test)
        split = np.zeros(end, np.int64)
        split[validation:test], split[test:] = 1, 2
        parts = []
        for name, first, last in (
            ("training", 0, validation),
            ("validation", validation, test),
            ("test", test, end),
        ):
            if last > first:
                dates = self.grid.dates_at(self.steps[[first, last - 1]])
                parts.append(f"{name} {' to '.join(self.grid.format_dates(dates))}")
        self.notes.append("; ".join(parts))
        return split

    def first_row_of_split(self, name: str, given: float | str, end: int) -> int:
        """Return the first row of a held-out part that ends before row `end`.

        Raises:
            UserError: it is neither a fraction nor a date.
        """
        if isinstance(given, float | int) and 0 <= given <= 1:
            return end - round(given * len(self.steps))
        is_year = isinstance(given, float | int) and given >= MIN_YEAR and given == int(given)
        text = str(int(given)) if is_year else str(given)
        is_row = self.grid.unit == "row"
        try:
            if is_row:
                raise ValueError
            date = parse_date(text, None)
        except ValueError:
            kinds = "a fraction 0 … 1" + ("" if is_row else ", or a date as 1990-01-31")
            raise UserError(f"dataset.{name}={given}: it must be {kinds}") from None
        dates = self.grid.dates_at(self.steps)
        first = int(np.searchsorted(dates, date))
        if first > end:
            raise UserError(
                f"dataset.{name}={given} begins after the part that follows it; the validation "
                "part ends where the test part begins"
            )
        return first

    def choose_seasons(self, num_train: int) -> None:
        """Set the seasons whose sines and cosines are features."""
        possible = seasons_of(self.grid, num_train)
        if self.seasons == "auto":
            self.seasons_found = possible
        else:
            self.seasons_found = list(self.seasons)
            if self.grid.unit == "row" and self.seasons_found:
                raise UserError(
                    f"dataset.seasons=[{','.join(self.seasons)}] needs dates, but the rows are "
                    "equal steps; set dataset.seasons=[]"
                )
        if not self.seasons_found:
            return
        shortest = min(self.grid.season_steps(season) for season in self.seasons_found)
        self.num_harmonics = max(1, min(self.harmonics, shortest // 2))
        plural = "season" if len(self.seasons_found) == 1 else "seasons"
        self.notes.append(
            f"features: {self.num_harmonics} harmonics of the {plural} "
            f"{', '.join(self.seasons_found)}"
        )
