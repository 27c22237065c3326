"""The pinball loss of forecasts at several quantiles."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.metrics.forecast_quantiles import QuantileFn

LEVELS = torch.arange(1, 10, dtype=torch.float64) / 10


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    return ["pinball"] if "forecast" in context.abilities else []


def measure(context: MetricContext) -> list[Row]:
    """Return the mean pinball loss over the quantiles 0.1 … 0.9, and all windows and steps.

    Koenker & Bassett 1978, https://doi.org/10.2307/1913643. The quantiles of the model are order
    statistics of its draws.
    """
    samples = context.forecasts
    return [samples.make_row("pinball", partial(mean_pinball_loss, y=samples.x))]


def mean_pinball_loss(quantile: QuantileFn, y: Tensor) -> Tensor:
    """Return the mean over LEVELS of the pinball loss (B, H, C) of a forecast."""
    return pinball_loss(quantile(LEVELS), y, LEVELS).mean(0)


# ρ_τ(u) = u (τ − 1[u < 0])
def pinball_loss(quantiles: Tensor, y: Tensor, levels: Tensor) -> Tensor:
    """Return the loss (Q, …) of quantiles (Q, …) at levels (Q,) for the truth y (…)."""
    error = y - quantiles
    tau = levels.view(-1, *[1] * y.dim())
    return torch.maximum(tau * error, (tau - 1) * error)
