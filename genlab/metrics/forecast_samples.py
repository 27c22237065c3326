"""Forecasts of held-out windows and of baselines, as all metrics of forecasts use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.metrics.base import Row, Settings, mean_and_error
from genlab.metrics.forecast_baselines import baseline_quantiles
from genlab.metrics.forecast_quantiles import QuantileFn, gaussian_quantiles

# Draws of a forecast. S + 1 is a multiple of 40, so that the quantiles of the intervals of 50, 80
# and 90% are order statistics: of exchangeable draws k are below the truth with probability
# k / (S + 1), for any S.
NUM_DRAWS, FEW_DRAWS = 199, 39
MAX_DRAWN_STEPS = 2**21  # steps of all draws together, beyond which there are FEW_DRAWS
EXACT_WORDS = "the exact forecast"  # of a known process, in the place of real items
HORIZONS_SHOWN = (1, 5, 10, 20, 30)


@dataclass
class ForecastSamples:
    """Draws for held-out windows in own units, with the truth and the forecasts of baselines.

    Attributes:
        draws: float64 (S, B, H, C).
        x: the truth, float64 (B, H, C).
        exact: quantiles of the exact forecast, where the data is of a known process.
        baselines: name -> quantiles of a forecast without the model.
        absent: name of a baseline -> why it is not measured.
        scale: (C,) deviations of the columns; several columns are averaged in their units.
        unit: of the averages.
    """

    draws: Tensor
    x: Tensor
    exact: QuantileFn | None
    baselines: dict[str, QuantileFn]
    absent: dict[str, str]
    scale: Tensor
    unit: str
    conditions: dict[str, Any] = field(default_factory=dict)

    def quantiles(self, levels: Tensor) -> Tensor:
        """Return the order statistics (Q, B, H, C) of the draws at levels (Q,) of S + 1."""
        ranks = levels * (len(self.draws) + 1)
        index = ranks.round().long().clamp(1, len(self.draws)) - 1
        return self.draws.sort(0).values[index]

    def make_row(
        self, name: str, score: Callable[[QuantileFn], Tensor], scores: Tensor | None = None
    ) -> Row:
        """Return the row of a score in the unit of the values, beside those of the baselines.

        Args:
            score: returns the scores (B, H, C) of a forecast that is given by its quantiles.
            scores: those of the draws; None takes their quantiles.
        """

        def scaled_score(quantile: QuantileFn) -> Tensor:
            return score(quantile) / self.scale

        own = None if scores is None else scores / self.scale
        return self.make_unscaled_row(name, scaled_score, own, unit=self.unit)

    def make_unscaled_row(
        self,
        name: str,
        score: Callable[[QuantileFn], Tensor],
        scores: Tensor | None = None,
        **more: Any,
    ) -> Row:
        """Return the row of a score that does not have the unit of the values; see `make_row`.

        Args:
            more: further fields of the row, such as its unit.
        """
        scores = score(self.quantiles) if scores is None else scores
        value, error = mean_and_error(scores.mean((1, 2)))
        conditions = dict(self.conditions)
        by_step = scores.mean((0, 2))
        shown = [h for h in HORIZONS_SHOWN if h <= len(by_step)]
        conditions["by step"] = " ".join(f"{h}: {by_step[h - 1].item():.4g}" for h in shown)
        for baseline, quantile in self.baselines.items():
            found = score(quantile).mean().item()
            conditions[baseline] = f"{found:.4g}"
        conditions |= {name: f"not measured ({reason})" for name, reason in self.absent.items()}
        exact = None
        if self.exact is not None:
            conditions["real_vs_real"] = EXACT_WORDS
            exact = score(self.exact).mean().item()
        return Row(
            name,
            value,
            tag="estimate",
            error=error,
            real_vs_real=exact,
            conditions=conditions,
            **more,
        )


@torch.no_grad()
def draw_forecasts(
    model: Any, dataset: Any, settings: Settings, device: torch.device
) -> ForecastSamples:
    """Draw forecasts of n held-out windows, and compute those of the baselines."""
    s = settings
    index = dataset.head_indices(s.split, s.n, seed=s.seed)
    batch = dataset.items(s.split, index, seed=s.seed)
    num_steps = len(index) * dataset.target_steps
    many = num_steps * NUM_DRAWS <= MAX_DRAWN_STEPS and not model.forecasts_in_many_passes
    num_draws = NUM_DRAWS if many else FEW_DRAWS
    like = next(model.parameters())
    torch.manual_seed(s.seed)

    def forecast(cond: Tensor) -> Tensor:
        return model.forecast(cond, num_draws).float().transpose(0, 1)

    draws = map_batched(forecast, batch.cond.to(device, like.dtype), batch_size=s.batch_size)
    exact = None
    if (truth := dataset.true_forecast(batch.cond)) is not None:
        exact = gaussian_quantiles(*truth)
    baselines, absent = baseline_quantiles(dataset, s.split, index)
    columns = dataset.columns
    is_single = len(columns) == 1
    scale = torch.tensor([1.0 if is_single else column.scale for column in columns])
    return ForecastSamples(
        dataset.to_own_units(draws.transpose(0, 1)),
        dataset.to_own_units(batch.x),
        exact,
        baselines,
        absent,
        scale.double(),
        (columns[0].unit or "units") if is_single else "deviations",
        {"n": len(index), "split": s.split, "seed": s.seed, "draws": num_draws},
    )
