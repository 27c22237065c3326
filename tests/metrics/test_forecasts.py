"""Metrics of forecasts: closed forms, calibration, and baselines that are fitted."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from genlab.data.series import AR2, Series
from genlab.metrics import forecast_baselines
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.crps import crps_of_quantiles, fair_crps
from genlab.metrics.forecast_quantiles import gaussian_quantiles
from genlab.metrics.interval_coverage import is_inside_interval
from genlab.metrics.pinball import mean_pinball_loss, pinball_loss
from genlab.metrics.registry import measure


def gaussian_crps(z: torch.Tensor) -> torch.Tensor:
    """Return the CRPS of N(0, 1) at z: z (2Φ(z) − 1) + 2φ(z) − 1/√π (Gneiting & Raftery, eq. 5)."""
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)


def test_crps_of_gaussians_is_the_closed_form(float64):
    y = torch.linspace(-3, 3, 7)
    exact = gaussian_crps(y)
    quantile = gaussian_quantiles(torch.zeros(7, 1, 1), torch.ones(7, 1, 1))
    found = crps_of_quantiles(quantile, y.view(7, 1, 1)).flatten()
    assert torch.allclose(found, exact, atol=1e-3)
    draws = torch.randn(200_000, 1)
    assert torch.allclose(fair_crps(draws, y.expand(1, 7)), exact, atol=0.01)


@pytest.mark.parametrize("num_draws", [2, 3, 5])
def test_the_fair_crps_has_no_bias_for_few_draws_and_equals_the_double_sum(num_draws, float64):
    draws, y = torch.randn(num_draws, 60_000), torch.randn(60_000)
    fair = fair_crps(draws, y)
    # an ideal forecast of N(0, 1) has the expected CRPS 1/√π
    error = fair.std() / 60_000**0.5
    assert (fair.mean() - 1 / math.sqrt(math.pi)).abs() < 4 * error
    pairs = (draws[:, None] - draws[None]).abs().sum((0, 1)) / (num_draws * (num_draws - 1))
    assert torch.allclose(fair, (draws - y).abs().mean(0) - pairs / 2)


def test_the_pinball_loss_is_least_at_the_quantile():
    y = torch.randn(4000, dtype=torch.float64)
    for level in (0.1, 0.5, 0.9):
        tau = torch.tensor([level], dtype=torch.float64)
        best = torch.quantile(y, level)
        losses = [pinball_loss((best + d).expand(1, 4000), y, tau).mean() for d in (-0.2, 0.0, 0.2)]
        assert losses[1] < min(losses[0], losses[2])
    one = pinball_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0]), torch.tensor([0.1, 0.9]))
    assert torch.allclose(one.flatten(), torch.tensor([0.1, 0.2]))


class ExactForecast(torch.nn.Module):
    """Draws of the exact forecast of an AR(2) process, with a factor on its deviation."""

    forecasts_in_many_passes = False

    def __init__(self, data: AR2, factor: float = 1.0) -> None:
        super().__init__()
        self.data, self.factor = data, factor
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forecast(self, cond, draws=1):
        mean, deviation = self.data.true_forecast(cond)
        noise = torch.randn(draws, *mean.shape)
        return (mean + self.factor * deviation * noise) / self.data.columns[0].scale


@pytest.mark.parametrize(("factor", "inside"), [(1.0, 0.9), (0.5, 0.589)])
def test_coverage_is_the_nominal_one_for_the_exact_forecast(factor, inside, monkeypatch):
    monkeypatch.setattr(forecast_baselines, "find_spec", lambda name: None)
    data = AR2(n=400, num_heldout=8000, heldout_stride=20)
    context = MetricContext(data, Settings(n=400), model=ExactForecast(data, factor))
    names = ["crps", "pinball", "interval_coverage"]
    rows = {r.name: r for found in measure(context, names).values() for r in found}
    # P(|z| ≤ f q) of a normal, whose interval is f times too narrow
    assert abs(rows["coverage_90"].value - inside) < 5 * rows["coverage_90"].error
    assert rows["coverage_90"].real_vs_real == pytest.approx(0.9, abs=0.02)
    ratio = rows["crps"].value / rows["crps"].real_vs_real
    assert ratio == pytest.approx(1, abs=0.02) if factor == 1 else ratio > 1.05
    expected = (data.forecast_deviations(20) / math.sqrt(math.pi)).mean()
    assert abs(rows["crps"].real_vs_real - expected) < 4 * rows["crps"].error
    for name in ("crps", "pinball"):
        conditions = rows[name].conditions
        assert float(conditions["last_value"]) > 1.5 * rows[name].real_vs_real
        assert "pip install" in conditions["autoregression"]


def test_several_columns_are_averaged_in_their_deviations(tmp_path, monkeypatch):
    """A column in a unit a thousand times smaller counts as much; coverage has no unit."""
    monkeypatch.setattr(forecast_baselines, "find_spec", lambda name: None)
    days = np.datetime64("2001-01-01") + np.arange(400)
    x = np.random.default_rng(0).normal(size=(400, 2))
    for factor in (1.0, 1000.0):
        rows = [f"{d},{a},{factor * b}" for d, (a, b) in zip(days, x.tolist(), strict=True)]
        path = tmp_path / f"{factor:g}.csv"
        path.write_text("day,a,b\n" + "\n".join(rows) + "\n")
        data = Series(path=str(path), context_steps=3, target_steps=2, seasons=())
        model = torch.nn.Linear(1, 1)
        model.forecasts_in_many_passes = False
        model.forecast = lambda cond, draws: torch.randn(draws, len(cond), 2, 2)
        context = MetricContext(data, Settings(n=39), model=model)
        names = ["crps", "interval_coverage"]
        rows = {r.name: r for found in measure(context, names).values() for r in found}
        assert rows["crps"].unit == "deviations" and rows["coverage_90"].unit == "share"
        assert rows["crps"].value == pytest.approx(1 / math.sqrt(math.pi), abs=0.1)
        assert rows["coverage_90"].value == pytest.approx(0.9, abs=0.08)


# --- baselines ------------------------------------------------------------------------------------


def monthly(tmp_path, n: int = 120) -> Series:
    """A season of twelve months with a trend: y_t = t / 10 + s_{t mod 12} + noise."""
    rng = np.random.default_rng(0)
    season = rng.normal(0, 3, 12)
    months = np.datetime64("1990-01") + np.arange(n)
    values = np.arange(n) / 10 + season[np.arange(n) % 12] + 0.1 * rng.normal(size=n)
    path = tmp_path / "monthly.csv"
    lines = [f"{m},{v}" for m, v in zip(months, values, strict=True)]
    path.write_text("month,sales\n" + "\n".join(lines) + "\n")
    return Series(path=str(path), context_steps=12, target_steps=14, test=0.3, validation=0)


def test_seasonal_naive_repeats_the_last_known_season(tmp_path):
    data = monthly(tmp_path)
    start = int(data.splits["test"].x[0])
    naive = forecast_baselines.seasonal_naive(data, np.array([start]), 12)[0, :, 0]
    known = data.store[:, 0].double().numpy()
    rows = [*range(start - 12, start), start - 12, start - 11]
    assert forecast_baselines.season_length(data) == 12
    assert np.array_equal(naive, known[rows])


def test_fitted_baselines_beat_the_naive_one_and_see_no_future(tmp_path):
    pytest.importorskip("statsmodels")
    data = monthly(tmp_path)
    starts = data.splits["test"].x.numpy()
    x = data.to_own_units(data.items("test", torch.arange(len(starts))).x)
    found, absent = forecast_baselines.compute_baselines(data, starts)
    assert not absent and list(found) == [
        "seasonal_naive", "autoregression", "exponential_smoothing"
    ]  # fmt: skip
    scores = {
        name: crps_of_quantiles(quantile, x).mean().item() for name, quantile in found.items()
    }
    assert scores["exponential_smoothing"] < 0.3 * scores["seasonal_naive"]
    inside = is_inside_interval(found["exponential_smoothing"], x, 0.9).mean()
    assert 0.75 < inside <= 1
    # the values after the first forecast do not change it
    before = [quantile(torch.tensor([0.5]))[0, 0] for quantile in found.values()]
    data.store[int(starts[0]) :, 0] += 100
    after, _ = forecast_baselines.compute_baselines(data, starts)
    for old, quantile in zip(before, after.values(), strict=True):
        assert torch.allclose(quantile(torch.tensor([0.5]))[0, 0], old)


def test_the_autoregression_of_ar2_is_nearly_exact():
    pytest.importorskip("statsmodels")
    data = AR2(num_heldout=400)
    index = torch.arange(data.size("test"))
    batch = data.items("test", index)
    moments = forecast_baselines.autoregression_moments(data, data.splits["test"].x.numpy(), 1, 0)
    mean, deviation = (torch.from_numpy(np.array(part)) * data.columns[0].scale for part in moments)
    exact_mean, exact_deviation = (part[..., 0] for part in data.true_forecast(batch.cond))
    assert (mean - exact_mean).abs().max() < 0.3
    assert torch.allclose(deviation, exact_deviation, rtol=0.06)


def test_quantiles_are_increasing_and_symmetric():
    quantile = gaussian_quantiles(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))
    low, middle, high = quantile(torch.tensor([0.05, 0.5, 0.95]))
    assert (low < middle).all() and (middle == 0).all() and torch.allclose(low, -high)
    score = partial(mean_pinball_loss, y=torch.zeros(1, 2, 1, dtype=torch.float64))
    assert all(a <= b for a, b in pairwise([score(quantile).mean(), torch.tensor(1.0)]))
