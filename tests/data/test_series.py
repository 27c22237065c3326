"""Series: dates, gaps, windows by time, and the exact forecast of an AR(2) process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import signal

from genlab.data.series import AR2, Series
from genlab.data.series_dates import find_time_grid, parse_dates, seasonal_features, seasons_of
from genlab.errors import UserError


def write(tmp_path, rows, header="date,value") -> str:
    path = tmp_path / "series.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def days(n: int, start: str = "2001-01-01") -> list[str]:
    return [str(day) for day in np.datetime64(start) + np.arange(n)]


SMALL = {"context_steps": 4, "target_steps": 3}

# --- dates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "step", "following"),
    [
        (["1981-01-01", "1981-01-02", "1981-01-04"], "1 day", "1981-01-05"),
        (["1949-11", "1949-12", "1950-01"], "1 month", "1950-02"),
        (["1990-01-31", "1990-02-28", "1990-03-31"], "1 month", "1990-04-30"),
        (["1990-01-15", "1990-02-15", "1990-03-15"], "1 month", "1990-04-15"),
        (["1990Q1", "1990Q2", "1990Q4"], "3 months", "1991-Q1"),
        (["1749", "1750", "1751"], "1 year", "1752"),
        (["2020-01-01 00:00", "2020-01-01 06:00"], "6 hours", "2020-01-01 12:00"),
        (["2020-01-01T00:30:00Z", "2020-01-01T00:45:00Z"], "15 minutes", "2020-01-01T01:00:00"),
        ([f"2024-03-{d:02d}" for d in (*range(4, 9), *range(11, 16))], "1 business day",
         "2024-03-18"),
        (["2024-01-01", "2024-01-08", "2024-01-15"], "7 days", "2024-01-22"),
    ],
)  # fmt: skip  # one case a line
def test_dates_continue_at_their_own_step(cells, step, following):
    dates = parse_dates(cells)
    grid = find_time_grid(dates, cells[0], None)
    steps = grid.steps_of(dates)
    assert grid.describe() == step
    assert (grid.dates_at(steps) == dates).all()
    assert grid.format_dates(grid.dates_at(steps[-1:] + 1)) == [following]


def test_zones_become_utc_and_formats_are_those_that_are_given():
    assert parse_dates(["2020-01-01T00:30+02:00"])[0] == np.datetime64("2019-12-31T22:30")
    assert parse_dates(["31/12/1990"], "%d/%m/%Y")[0] == np.datetime64("1990-12-31")
    with pytest.raises(ValueError, match="31/12/1990"):
        parse_dates(["31/12/1990"])


def test_features_repeat_with_the_season_and_stay_inside_it():
    dates = np.array(["2001-01-01", "2002-01-01", "2001-01-08"], "datetime64[s]")
    year = seasonal_features(dates, ("year",), 2)
    week = seasonal_features(dates, ("week",), 3)
    assert np.allclose(year[0], year[1]) and np.allclose(year[0], [0, 1, 0, 1])
    assert np.allclose(week[0], week[2]) and not np.allclose(week[0], week[1])
    assert np.allclose(week[0], [0, 1] * 3)  # a Monday
    daily = find_time_grid(dates[:2], "2001-01-01", None)
    assert seasons_of(daily, 10) == []  # a step of a year
    hours = np.datetime64("2001-01-01T00", "s") + np.arange(3) * 3600
    assert seasons_of(find_time_grid(hours, "2001-01-01 00:00", None), 24 * 15) == ["week", "day"]


# --- files ----------------------------------------------------------------------------------------


def test_windows_have_the_past_the_future_and_the_features_of_both(tmp_path):
    values = np.arange(800.0)
    path = write(tmp_path, [f"{d},{v}" for d, v in zip(days(800), values, strict=True)])
    data = Series(path=path, **SMALL, validation=0.1, test="2003-01-01", seasons=("year",))
    batch = data.items("train", torch.tensor([0, 5]))
    assert batch.x.shape == (2, 3, 1) and batch.cond.shape == (2, 7, 7)
    own = data.to_own_units(batch.x)[..., 0]
    assert torch.allclose(own, torch.tensor([[4.0, 5, 6], [9, 10, 11]]).double(), atol=1e-4)
    past = data.to_own_units(batch.cond[:, :4, :1])[..., 0]
    assert torch.allclose(past[1], torch.tensor([5.0, 6, 7, 8]).double(), atol=1e-4)
    assert (batch.cond[:, 4:, 0] == 0).all()  # the future is hidden
    wanted = seasonal_features(np.array(days(800)[:7], "datetime64[s]"), ("year",), 3)
    assert np.allclose(batch.cond[0, :, 1:], wanted, atol=1e-6)


def test_splits_follow_each_other_in_time_and_share_no_predicted_step(tmp_path):
    path = write(tmp_path, [f"{d},{i % 7}" for i, d in enumerate(days(400))])
    data = Series(path=path, **SMALL, validation="2001-10-01", test="2002-01-01", heldout_stride=5)
    ends = {name: data.splits[name].x for name in ("train", "validation", "test")}
    assert ends["train"].max() + 3 <= 273 == int(ends["validation"].min())
    assert ends["validation"].max() + 3 <= 365 == int(ends["test"].min())
    assert (ends["test"].diff() == 5).all() and (ends["train"].diff() == 1).all()
    # standardized by the training part
    train = data.values[:273, 0]
    assert math.isclose(data.columns[0].mean, train.mean())
    assert math.isclose(data.columns[0].scale, train.std())


def test_gaps_are_counted_and_no_window_crosses_one(tmp_path):
    rows = [f"{d},{i}" for i, d in enumerate(days(60)) if i not in (20, 21, 40)]
    path = write(tmp_path, rows)
    data = Series(path=path, **SMALL, validation=0, test=0)
    assert any("3 steps are missing in 2 gaps (2001-01-21, 2001-01-22, 2001-02-10)" in note
               for note in data.notes)  # fmt: skip
    windows = data.to_own_units(data.head("train").x)[..., 0]
    assert torch.allclose(windows.diff(dim=1), torch.ones(1).double(), atol=1e-4)
    assert len(windows) == sum(n - 6 for n in (20, 18, 19))
    filled = Series(path=path, **SMALL, validation=0, test=0, gaps="interpolate")
    assert filled.size("train") == 60 - 6 and np.allclose(filled.values[:, 0], np.arange(60))
    assert any("filled in linearly" in note for note in filled.notes)
    # a row without a value is missing as well
    holes = write(tmp_path, [f"{d},{'' if i == 30 else i}" for i, d in enumerate(days(60))])
    assert Series(path=holes, **SMALL, drop_missing=True).steps.tolist() == [
        i for i in range(60) if i != 30
    ]


def test_the_order_of_rows_does_not_matter_and_is_said(tmp_path):
    rows = [f"{d},{i}" for i, d in enumerate(days(60))]
    sorted_values = Series(path=write(tmp_path, rows), **SMALL).values
    for changed, note in (
        (rows[::-1], "reversed"),
        ([*rows[30:], *rows[:30]], "sorted"),
        ([*rows, rows[3]], "sorted"),
    ):
        data = Series(path=write(tmp_path, changed), **SMALL)
        assert np.array_equal(data.values, sorted_values)
        assert any(note in said for said in data.notes)
    assert data.left_out.counts["a repeated date with the same values"] == 1


def test_several_columns_and_logarithms_come_back_in_own_units(tmp_path):
    rows = [f"{d},{math.exp(i / 30):.17g},{10 + i}" for i, d in enumerate(days(90))]
    path = write(tmp_path, rows, "day,price [EUR],count")
    data = Series(path=path, **SMALL, log=True)
    assert [(c.name, c.unit) for c in data.columns] == [("price [EUR]", "EUR"), ("count", "")]
    x = data.head("train").x
    start = data.splits["train"].x[data.head_indices("train")]
    assert torch.allclose(data.to_own_units(x)[:, 0, 0], (start / 30).exp().double(), rtol=1e-5)
    one = Series(path=path, **SMALL, use_columns=("count",))
    assert one.values.shape == (90, 1)


BAD_FILES = {
    "no dates": (["a,1", "b,2"] * 20, {}, "date_column=none"),
    "irregular": (["2001-01-01,1", "2001-01-02,2", "2001-01-03,3", "2001-01-03 07:00,4"], {},
                  "no column has dates|irregular"),
    "uneven": (["2001-01-01,1", "2001-01-08,2", "2001-01-15,3", "2001-01-18,4"], {},
               "1 are not, the first of them 2001-01-15 and 2001-01-18"),
    "two values": (["2001-01-01,1", "2001-01-02,2", "2001-01-02,3"], {},
                   "rows 3 and 4 have the same date 2001-01-02"),
    "no such day": (["2001-02-27,1", "2001-02-30,2"], {}, "row 3: 2001-02-30 is not a date"),
    "short": ([f"{d},1" for d in days(5)], {}, "a window has 4 [+] 3 steps"),
    "order": ([f"{d},{i}" for i, d in enumerate(days(60))],
              {"validation": "2001-02-20", "test": "2001-02-10"}, "begins after the part"),
    "fraction": ([f"{d},{i}" for i, d in enumerate(days(60))], {"test": "later"},
                 "a fraction 0 … 1, or a date"),
    "missing": ([f"{d},{'' if i == 9 else i}" for i, d in enumerate(days(60))], {},
                "dataset.drop_missing=true"),
    "log": ([f"{d},{i}" for i, d in enumerate(days(60))], {"log": True},
            "value is 0 at 2001-01-01"),
    "format": (["27/01/2001,1", "28/01/2001,2"], {"date_column": "date"}, "dataset.date_format"),
    "seasons": (["1,1", "2,2"] * 20, {"date_column": "none", "seasons": ("year",)},
                "needs dates"),
}  # fmt: skip  # one case a line


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_not_a_series_is_refused_with_what_to_do(case, tmp_path):
    rows, options, told = BAD_FILES[case]
    with pytest.raises(UserError, match=told):
        Series(path=write(tmp_path, rows), **SMALL, **options)


# --- truth ----------------------------------------------------------------------------------------


def test_the_exact_forecast_of_ar2_is_that_of_its_covariance():
    """Conditional moments by Gaussian conditioning on the joint covariance, and by the process."""
    data = AR2(n=200, num_heldout=100, context_steps=6, target_steps=8)
    phi = np.array(data.phi)
    # γ_k = φ₁ γ_{k−1} + φ₂ γ_{k−2}
    gamma = [data.stationary_variance]
    gamma.append(phi[0] / (1 - phi[1]) * gamma[0])
    for _ in range(12):
        gamma.append(phi[0] * gamma[-1] + phi[1] * gamma[-2])
    index = np.abs(np.subtract.outer(np.arange(14), np.arange(14)))
    joint = np.array(gamma)[index]
    gain = joint[6:, :6] @ np.linalg.inv(joint[:6, :6])
    batch = data.head("test", 5)
    cond, x = batch.cond.double(), batch.x.double()
    mean, deviation = data.true_forecast(cond)
    past = data.to_own_units(cond[:, :6, :1])[..., 0].numpy()
    assert np.allclose(mean[..., 0], past @ gain.T)
    covariance = joint[6:, 6:] - gain @ joint[:6, 6:]
    assert np.allclose(deviation[0, :, 0], np.sqrt(np.diag(covariance)))
    error = data.to_own_units(x)[..., 0].numpy() - past @ gain.T
    solved = np.linalg.solve(covariance, error.T).T
    log_p = -0.5 * (error * solved).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    in_data_units = log_p + 8 * math.log(data.columns[0].scale)
    assert np.allclose(data.true_forecast_log_prob(x, cond), in_data_units, atol=1e-9)


def test_ar2_has_the_published_scores_and_its_own_moments():
    data = AR2(n=100_000, num_heldout=100)
    crps = data.forecast_deviations(20) / math.sqrt(math.pi)
    assert np.allclose(crps[[0, 4, 9, 19]], [0.5642, 1.5014, 1.6241, 1.6531], atol=5e-5)
    assert math.isclose(crps.mean(), 1.5059, abs_tol=5e-5)
    x = data.values[:100_000, 0]
    noise = signal.lfilter([1, -1.5, 0.75], [1], x)[2:]
    assert abs(noise.std() - 1) < 0.01 and abs(noise.mean()) < 0.01
    assert abs(x.var() / data.stationary_variance - 1) < 0.05
    # no window has steps of two realizations
    starts = data.splits["validation"].x
    assert int(starts.min()) - data.context_steps == 100_000
    with pytest.raises(UserError, match="not stationary"):
        AR2(phi=(1.5, 0.75))
