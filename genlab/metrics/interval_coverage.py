"""The share of held-out values inside the intervals of forecasts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.metrics.forecast_quantiles import QuantileFn

PERCENTS = (50, 90)  # of the intervals


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "forecast" not in context.abilities:
        return []
    return [f"coverage_{percent}" for percent in PERCENTS]


def measure(context: MetricContext) -> list[Row]:
    """Return the share of values that central intervals of 50% and 90% contain.

    A calibrated forecast has 0.5 and 0.9. The ends are order statistics of the draws, whose
    interval has exactly that probability if truth and draws are exchangeable.
    """
    samples = context.forecasts
    rows = []
    for percent in PERCENTS:
        covered = partial(is_inside_interval, y=samples.x, fraction=percent / 100)
        rows.append(
            samples.make_unscaled_row(
                f"coverage_{percent}", covered, unit="share", better="neither"
            )
        )
    return rows


def is_inside_interval(quantile: QuantileFn, y: Tensor, fraction: float) -> Tensor:
    """Return 1 where the central interval contains the truth y (B, H, C), else 0."""
    levels = torch.tensor([(1 - fraction) / 2, (1 + fraction) / 2], dtype=torch.float64)
    low, high = quantile(levels)
    return ((low <= y) & (y <= high)).double()
