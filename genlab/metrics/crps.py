"""The continuous ranked probability score of forecasts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.metrics.forecast_quantiles import QuantileFn
from genlab.metrics.pinball import pinball_loss

NUM_QUANTILES = 400  # of a forecast that is given by its quantiles


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    return ["crps"] if "forecast" in context.abilities else []


def measure(context: MetricContext) -> list[Row]:
    """Return the mean CRPS over held-out windows, their steps and columns.

    Gneiting & Raftery 2007, https://doi.org/10.1198/016214506000001437. The error is that of the
    windows; windows that overlap are not independent, so that it is too small for them.
    """
    samples = context.forecasts
    scores = fair_crps(samples.draws, samples.x)
    return [samples.make_row("crps", partial(crps_of_quantiles, y=samples.x), scores)]


# CRPS(F, y) = E|X − y| − ½ E|X − X'|, eq. 21 of Gneiting & Raftery
def fair_crps(draws: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased CRPS (…) of S ≥ 2 draws (S, …) of a forecast at the truth y (…).

    Pairs of different draws estimate E|X − X'| without bias for any S (Ferro 2014,
    https://doi.org/10.1002/qj.2270). With the draws in order, the sum over all pairs i < j of
    x_j − x_i is Σ_i (2i − S − 1) x_i.
    """
    num_draws = len(draws)
    rank = torch.arange(1, num_draws + 1, dtype=draws.dtype, device=draws.device)
    weights = (2 * rank - num_draws - 1).view(-1, *[1] * (draws.dim() - 1))
    spread = (weights * draws.sort(0).values).sum(0) / (num_draws * (num_draws - 1))
    return (draws - y).abs().mean(0) - spread


# CRPS(F, y) = 2 ∫ ρ_τ(y − F⁻¹(τ)) dτ
def crps_of_quantiles(quantile: QuantileFn, y: Tensor) -> Tensor:
    """Return the CRPS (B, H, C) of a forecast that is given by its quantiles."""
    levels = (torch.arange(NUM_QUANTILES, dtype=torch.float64) + 0.5) / NUM_QUANTILES
    total = torch.zeros_like(y)
    for part in levels.split(50):
        total += 2 * pinball_loss(quantile(part), y, part).sum(0)
    return total / NUM_QUANTILES
