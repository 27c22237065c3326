"""Forecasts without a model of genlab, beside which the metrics of forecasts are shown.

They are fitted to the training part, and see all values before each forecast.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from genlab.console import track
from genlab.metrics.forecast_quantiles import QuantileFn, gaussian_quantiles

MAX_LAGS = 30  # of the autoregression
# Steps of a season up to which exponential smoothing has a state for each of them.
MAX_SEASON_STATES = 24
MIN_SEASONS = 2  # that the training part must have
MIN_TRAIN_STEPS = 20
WITHOUT_STATSMODELS = "pip install 'genlab[series]'"

Baselines = tuple[dict[str, QuantileFn], dict[str, str]]
Moments = tuple[np.ndarray, np.ndarray]  # mean and deviation of forecasts, (B, H)
_computed: WeakKeyDictionary[Any, dict[tuple[str, bytes], Baselines]] = WeakKeyDictionary()


def baseline_quantiles(dataset: Any, split: str, index: Tensor) -> Baselines:
    """Return the quantiles of each baseline for windows of a split, and why others are absent.

    They are computed once for the same windows of a dataset.
    """
    cache = _computed.setdefault(dataset, {})
    key = split, index.numpy().tobytes()
    if key not in cache:
        cache[key] = compute_baselines(dataset, dataset.splits[split].x[index].numpy())
    return cache[key]


def compute_baselines(dataset: Any, starts: np.ndarray) -> Baselines:
    """Return the quantiles of each baseline, and why others are absent.

    Args:
        starts: the rows (B,) at which the futures begin.
    """
    season = season_length(dataset)
    naive = torch.from_numpy(seasonal_naive(dataset, starts, season))
    found = {"seasonal_naive" if season > 1 else "last_value": point_quantiles(dataset, naive)}
    absent: dict[str, str] = {}
    fits: dict[str, Callable[..., Moments]] = {
        "autoregression": autoregression_moments,
        "exponential_smoothing": exponential_smoothing_moments,
    }
    if find_spec("statsmodels") is None:
        return found, dict.fromkeys(fits, WITHOUT_STATSMODELS)
    if num_train_rows(dataset) < MIN_TRAIN_STEPS:
        return found, dict.fromkeys(fits, f"less than {MIN_TRAIN_STEPS} training steps")
    import_module("statsmodels.tsa.api")  # it shows its warnings always, unless they are turned off
    for name, fit in track(fits.items(), "fitting baselines", unit="baselines"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: the score shows how good it is
            try:
                columns = [fit(dataset, starts, season, c) for c in range(dataset.num_columns)]
            except (ValueError, np.linalg.LinAlgError) as error:
                absent[name] = str(error).splitlines()[0]
                continue
        moments = zip(*columns, strict=True)
        mean, deviation = (torch.from_numpy(np.stack(part, 2)) for part in moments)
        found[name] = own_quantiles(dataset, gaussian_quantiles(mean, deviation))
    return found, absent


def own_quantiles(dataset: Any, quantiles: QuantileFn) -> QuantileFn:
    """Return quantiles of standardized values in own units; the map is increasing."""
    return lambda levels: dataset.to_own_units(quantiles(levels))


def point_quantiles(dataset: Any, forecast: Tensor) -> QuantileFn:
    """Return the quantiles of a forecast (B, H, C) of standardized values without a spread."""
    return lambda levels: dataset.to_own_units(forecast.expand(len(levels), *forecast.shape))


def num_train_rows(dataset: Any) -> int:
    """Return the number of rows up to the end of the last training window."""
    return int(dataset.splits["train"].x.max()) + dataset.target_steps


def season_length(dataset: Any) -> int:
    """Return the steps of the longest season that the training part has twice; 1 for none."""
    lengths = [dataset.grid.season_steps(season) for season in dataset.seasons_found]
    return max((m for m in lengths if MIN_SEASONS * m <= num_train_rows(dataset)), default=1)


def seasonal_naive(dataset: Any, starts: np.ndarray, season: int) -> np.ndarray:
    """Return the standardized values (B, H, C) one season before, of the last known season."""
    ahead = np.arange(dataset.target_steps)
    back = season * (ahead // season + 1)
    rows = np.maximum(starts[:, None] + ahead - back, 0)
    values: np.ndarray = dataset.store.double().numpy()[rows, : dataset.num_columns]
    return values


# y_t = c + Σ_i φ_i y_{t−i} + βᵀ f_t + ε_t
def autoregression_moments(dataset: Any, starts: np.ndarray, season: int, column: int) -> Moments:
    """Return the moments of an AR(p) with the harmonics of the seasons, p chosen by AIC."""
    from statsmodels.tsa.ar_model import AutoReg, ar_select_order

    store = dataset.store.double().numpy()
    y, features = store[:, column], store[:, dataset.num_columns :]
    end = num_train_rows(dataset)
    exog = features[:end] if features.shape[1] else None
    most = max(1, min(MAX_LAGS, end // 10))
    lags = ar_select_order(y[:end], most, ic="aic", exog=exog).ar_lags or [1]
    p = max(lags)
    fitted = AutoReg(y[:end], p, exog=exog).fit()
    constant, phi, beta = np.split(np.asarray(fitted.params), [1, 1 + p])
    past = y[starts[:, None] + np.arange(-p, 0)]  # (B, p), the newest last
    psi = np.zeros(dataset.target_steps)
    for h in range(dataset.target_steps):
        season_part = features[starts + h] @ beta if features.shape[1] else 0.0
        next_value = constant + past[:, -p:] @ phi[::-1] + season_part
        past = np.concatenate([past, next_value[:, None]], 1)
        psi[h] = 1.0 if h == 0 else sum(phi[i] * psi[h - 1 - i] for i in range(min(p, h)))
    deviation = np.sqrt(fitted.sigma2 * np.cumsum(psi**2))
    mean = past[:, p:]
    return mean, np.broadcast_to(deviation, mean.shape)


def exponential_smoothing_moments(
    dataset: Any, starts: np.ndarray, season: int, column: int
) -> Moments:
    """Return the moments of additive exponential smoothing; AIC decides on a damped trend.

    Holt-Winters in the form of Hyndman et al. 2002,
    https://doi.org/10.1016/S0169-2070(01)00110-8.
    """
    from pandas import Series
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    y, end = Series(dataset.store[:, column].double().numpy()), num_train_rows(dataset)
    seasonal: dict[str, Any] = {}
    if 1 < season <= MAX_SEASON_STATES:
        seasonal = {"seasonal": "add", "seasonal_periods": season}
    fits = []
    for trend in ({}, {"trend": "add", "damped_trend": True}):
        options = {"error": "add", **trend, **seasonal}
        fits.append((ETSModel(y[:end], **options).fit(disp=False), options))
    fitted, options = min(fits, key=lambda fit: fit[0].aic)
    smoothed = ETSModel(y, **options).smooth(fitted.params)
    last, ahead = starts - 1, np.arange(dataset.target_steps)
    # y_{t+h} = l_t + (φ + … + φ^h) b_t + s_{t + h − m k}
    mean = np.repeat(np.asarray(smoothed.level)[last, None], len(ahead), 1)
    if "trend" in options:
        damping = np.cumsum(smoothed.damping_trend ** (ahead + 1))
        mean = mean + np.asarray(smoothed.slope)[last, None] * damping
    if seasonal:
        known = last[:, None] - season + 1 + ahead % season
        mean = mean + np.asarray(smoothed.season)[known]
    # the variance of an additive model is the same after every step
    forecast = fitted.get_prediction(start=end, end=end + len(ahead) - 1)
    deviation = np.sqrt(np.asarray(forecast.forecast_variance))
    return mean, np.broadcast_to(deviation, mean.shape)
