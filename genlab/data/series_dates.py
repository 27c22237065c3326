"""Dates of a series: read them, find the regular step between them, and continue them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from genlab.errors import UserError, make_printable

Season = Literal["year", "week", "day"]
StepUnit = Literal["month", "business day", "second", "row"]

# Dates that can be read in one way only: years, months and days in this order.
ISO_DATE = re.compile(
    r"\d{4}(?:-?[Qq][1-4]|-\d\d(?:-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?)?)?)?"
)
ZONE = re.compile(r"(?<=:\d\d)(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)$")
YEAR_NAMES = ("year", "date", "time", "period")  # of columns whose integers are years
DAY_S, HOUR_S, MINUTE_S = 86_400, 3_600, 60
DAYS_PER_YEAR = 365.2425
SEASON_DAYS: dict[str, float] = {"year": DAYS_PER_YEAR, "week": 7.0, "day": 1.0}
MIN_MONTH_DAYS, MAX_MONTH_DAYS = 28, 31
# A step of more days than this counts months: calendar months differ in their days.
MAX_DAY_STEP = 27
MIN_BUSINESS_DAYS = 10  # dates without a weekend that make a calendar of business days
SECOND_WORDS = {DAY_S: "day", HOUR_S: "hour", MINUTE_S: "minute", 1: "second"}


# --- cells ----------------------------------------------------------------------------------------


def are_dates(cells: np.ndarray, name: str, date_format: str | None) -> bool:
    """Whether all cells (N,) of a column are dates.

    Integers are years if the name of the column says so.
    """
    if not len(cells):
        return False
    if date_format is not None:
        return first_unreadable_date(cells, date_format) is None
    texts = [str(cell) for cell in cells]
    if all(text.isdecimal() for text in texts) and name.lower() not in YEAR_NAMES:
        return False
    return all(ISO_DATE.fullmatch(ZONE.sub("", text)) for text in texts)


def first_unreadable_date(cells: Sequence[str] | np.ndarray, date_format: str) -> int | None:
    """Return the position of the first cell that a strptime format does not read, or None."""
    for i, cell in enumerate(cells):
        try:
            datetime.strptime(str(cell), date_format)
        except ValueError:
            return i
    return None


def parse_dates(cells: Sequence[str] | np.ndarray, date_format: str | None = None) -> np.ndarray:
    """Return dates as datetime64[s] (N,); a time with a zone becomes UTC.

    Args:
        date_format: as of `datetime.strptime`; None reads years, months and days in this order,
            as 1990, 1990-Q1, 1990-01, 1990-01-31 and 1990-01-31 12:00.

    Raises:
        ValueError: a cell is not such a date; the message names the cell.
    """
    return np.array([parse_date(str(cell), date_format) for cell in cells], "datetime64[s]")


def parse_date(text: str, date_format: str | None = None) -> np.datetime64:
    """Return one date; see `parse_dates`."""
    try:
        if date_format is not None:
            return np.datetime64(datetime.strptime(text, date_format).replace(tzinfo=None), "s")
        if ZONE.search(text):
            moment = datetime.fromisoformat(text)
            offset = moment.utcoffset()
            assert offset is not None
            return np.datetime64((moment - offset).replace(tzinfo=None), "s")
        if not ISO_DATE.fullmatch(text):
            raise ValueError("not a date")
        if "Q" in text.upper():
            return np.datetime64(f"{text[:4]}-{3 * int(text[-1]) - 2:02d}", "s")
        return np.datetime64(text.replace(" ", "T"), "s")
    except (ValueError, OverflowError) as error:
        raise ValueError(make_printable(text)) from error


# --- steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeGrid:
    """Dates at equal steps: date k is `start` plus k times `size` units.

    Attributes:
        start: the date of step 0.
        unit: what the steps count; "row" is a series whose rows have numbers instead of dates.
        pattern: how dates are written, as of `strftime`.
        at_month_end: whether steps of months are at the end of a month.
    """

    start: np.datetime64
    unit: StepUnit
    size: int
    pattern: str = "%Y-%m-%d"
    at_month_end: bool = False

    def describe(self) -> str:
        """Return the step in words."""
        size, word = self.size, str(self.unit)
        if self.unit == "row":
            return "1 row"
        if self.unit == "month" and size % 12 == 0:
            size, word = size // 12, "year"
        if self.unit == "second":
            scale = next(s for s in SECOND_WORDS if size % s == 0)
            size, word = size // scale, SECOND_WORDS[scale]
        return f"{size} {word}{'' if size == 1 else 's'}"

    @property
    def step_days(self) -> float:
        """The mean length of a step in days; infinite for rows without dates."""
        lengths = {
            "month": DAYS_PER_YEAR / 12,
            "business day": 7 / 5,
            "second": 1 / DAY_S,
            "row": math.inf,
        }
        return self.size * lengths[self.unit]

    def steps_of(self, dates: np.ndarray) -> np.ndarray:
        """Return the step k (N,) of dates (N,), as int64; −1 … of those before the start.

        Raises:
            ValueError: a date is between two steps.
        """
        dates = dates.astype("datetime64[s]")
        if self.unit == "row":
            return (dates - self.start).astype(np.int64)
        if self.unit == "month":
            months = (dates.astype("datetime64[M]") - self.start.astype("datetime64[M]")).astype(
                np.int64
            )
            steps, rest = np.divmod(months, self.size)
        elif self.unit == "business day":
            days = dates.astype("datetime64[D]")
            if not np.is_busday(days).all():
                raise ValueError("a date is on a weekend")
            return np.busday_count(self.start.astype("datetime64[D]"), days).astype(np.int64)
        else:
            steps, rest = np.divmod((dates - self.start).astype(np.int64), self.size)
        if rest.any():
            raise ValueError("a date is between two steps")
        return steps

    def dates_at(self, steps: np.ndarray) -> np.ndarray:
        """Return the dates (N,) of steps (N,), as datetime64[s]."""
        steps = np.asarray(steps, np.int64)
        if self.unit == "month":
            month = self.start.astype("datetime64[M]") + steps * self.size
            if self.at_month_end:
                return ((month + 1).astype("datetime64[D]") - 1).astype("datetime64[s]")
            offset = self.start - self.start.astype("datetime64[M]").astype("datetime64[s]")
            return month.astype("datetime64[s]") + offset
        if self.unit == "business day":
            days = np.busday_offset(self.start.astype("datetime64[D]"), steps)
            return np.asarray(days, "datetime64[s]")
        return self.start + steps * np.timedelta64(self.size, "s")

    def format_dates(self, dates: np.ndarray) -> list[str]:
        """Return dates (N,) as the file writes them; rows by their number."""
        if self.unit == "row":
            return [str(int(step)) for step in self.steps_of(dates)]
        if self.pattern == "%Y-Q":
            months = dates.astype("datetime64[M]").astype(np.int64)
            return [f"{1970 + m // 12}-Q{m % 12 // 3 + 1}" for m in months.tolist()]
        return [date.strftime(self.pattern) for date in dates.astype("datetime64[s]").tolist()]

    def season_steps(self, season: str) -> int:
        """Return how many steps a season has, rounded."""
        return max(1, round(SEASON_DAYS[season] / self.step_days))


def find_time_grid(dates: np.ndarray, cell: str, date_format: str | None) -> TimeGrid:
    """Return the regular steps that all dates are on.

    Args:
        dates: increasing datetime64[s] (N,), at least two.
        cell: the first date as the file writes it.

    Raises:
        UserError: the dates are not multiples of one step apart; says how they differ.
    """
    pattern = date_format or pattern_of_iso_date(cell)
    start = dates[0]
    gaps = np.diff(dates).astype(np.int64)
    common = Counter(gaps.tolist()).most_common(1)[0][0]
    candidates: list[TimeGrid] = []
    if common > MAX_DAY_STEP * DAY_S:
        month = np.diff(dates.astype("datetime64[M]")).astype(np.int64)
        size = Counter(month.tolist()).most_common(1)[0][0]
        days = dates.astype("datetime64[D]")
        is_end = bool(((days + 1).astype("datetime64[M]") != days.astype("datetime64[M]")).all())
        offsets = dates - dates.astype("datetime64[M]").astype("datetime64[s]")
        if size and (is_end or len(set(offsets.tolist())) == 1):
            candidates.append(TimeGrid(start, "month", int(size), pattern, at_month_end=is_end))
    elif common == DAY_S and len(dates) >= MIN_BUSINESS_DAYS:
        has_times = bool((dates != dates.astype("datetime64[D]").astype("datetime64[s]")).any())
        if not has_times and np.is_busday(dates.astype("datetime64[D]")).all():
            candidates.append(TimeGrid(start, "business day", 1, pattern))
    candidates.append(TimeGrid(start, "second", int(common), pattern))
    for grid in candidates:
        try:
            steps = grid.steps_of(dates)
        except ValueError:
            continue
        if (np.diff(steps) > 0).all():
            return grid
    grid = candidates[-1]
    odd = int(np.argmax(gaps % common != 0))
    num_odd = int((gaps % common != 0).sum())
    before, after = grid.format_dates(dates[odd : odd + 2])
    raise UserError(
        f"the dates are irregular: most are {grid.describe()} apart, and {num_odd:,} are not, the "
        f"first of them {before} and {after}; resample the series, or take its rows as equal steps "
        "with dataset.date_column=none dataset.skip_columns=[<the dates>]"
    )


def pattern_of_iso_date(cell: str) -> str:
    """Return the strftime pattern of a date as `parse_dates` reads it."""
    text = ZONE.sub("", cell)
    if "Q" in text.upper():
        return "%Y-Q"
    joint = "T" if "T" in text else " "
    lengths = {4: "%Y", 7: "%Y-%m", 10: "%Y-%m-%d", 13: f"%Y-%m-%d{joint}%H"}
    lengths |= {16: f"%Y-%m-%d{joint}%H:%M"}
    return lengths.get(len(text), f"%Y-%m-%d{joint}%H:%M:%S")


# --- seasons --------------------------------------------------------------------------------------


def season_phase(dates: np.ndarray, season: str) -> np.ndarray:
    """Return the part of a season, 0 … 1, that has passed at dates (N,), as float64 (N,)."""
    dates = dates.astype("datetime64[s]")
    if season == "year":
        year = dates.astype("datetime64[Y]")
        begin, end = year.astype("datetime64[s]"), (year + 1).astype("datetime64[s]")
        return (dates - begin).astype(np.float64) / (end - begin).astype(np.float64)
    seconds = dates.astype(np.int64)
    length = round(SEASON_DAYS[season] * DAY_S)
    # 1970-01-01 was a Thursday: weeks begin on Monday
    phase: np.ndarray = ((seconds + 3 * DAY_S * (season == "week")) % length) / length
    return phase


# f_{s,k}(t) = (sin 2πk φ_s(t), cos 2πk φ_s(t)): the Fourier terms of season s
def seasonal_features(dates: np.ndarray, seasons: Sequence[str], harmonics: int) -> np.ndarray:
    """Return sines and cosines (N, 2 · harmonics · seasons) of the dates (N,), as float64."""
    columns: list[np.ndarray] = []
    waves: tuple[Callable[[np.ndarray], np.ndarray], ...] = (np.sin, np.cos)
    for season in seasons:
        phase = season_phase(dates, season)
        for k in range(1, harmonics + 1):
            columns += [wave(2 * math.pi * k * phase) for wave in waves]
    return np.stack(columns, 1) if columns else np.zeros((len(dates), 0))


def seasons_of(grid: TimeGrid, num_steps: int) -> list[str]:
    """Return the seasons that steps resolve and a series repeats: those it has at least twice.

    A step must be at most a quarter of the season.
    """
    days = grid.step_days
    return [
        season
        for season, length in SEASON_DAYS.items()
        if grid.unit != "row" and 4 * days <= length and num_steps * days >= 2 * length
    ]
