"""Forecasts of series by a model: any number of steps ahead, as draws and as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.viz.fan_charts import Fan, plot_fans
from genlab.viz.picture import Picture

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles, symmetric
PERCENTS = (90, 50)  # of the intervals between them
MIN_PAST_SHOWN = 3  # times as many steps of the past as of the future, in a picture
PREVIEW_WINDOWS, PREVIEW_DRAWS = 4, 100
MAX_DRAWS_TOGETHER = 1000  # draws continued at a time, to bound the memory


@dataclass(frozen=True)
class Origin:
    """Where a forecast begins: the last row that it knows, and that row's step and date."""

    row: int
    step: int
    date: str


def find_origin(dataset: Any, given: str | None) -> Origin:
    """Return the origin at a date, or at the end of the series.

    Raises:
        UserError: the date is not one of the series, or the steps before it have a gap.
    """
    grid, steps = dataset.grid, dataset.steps
    dates = grid.format_dates(grid.dates_at(steps))
    row = len(steps) - 1
    if given is not None:
        if given not in dates:
            raise UserError(
                f"origin={given}: no such date in {dataset.name}, whose dates are {dates[0]} to "
                f"{dates[-1]}, {grid.describe()} apart"
            )
        row = dates.index(given)
    first = row - dataset.context_steps + 1
    if first < 0:
        raise UserError(
            f"origin={dates[row]}: a forecast needs the {dataset.context_steps} steps before; the "
            f"first possible origin is {dates[dataset.context_steps - 1]}"
        )
    if steps[row] - steps[first] != dataset.context_steps - 1:
        raise UserError(
            f"origin={dates[row]}: one of the {dataset.context_steps} steps before is missing; "
            "give another date with origin=, or fill in the gaps: dataset.gaps=interpolate at "
            "training"
        )
    return Origin(row, int(steps[row]), dates[row])


@torch.no_grad()
def draw_futures(
    model: Any, dataset: Any, origin: Origin, num_steps: int, draws: int, device: Any
) -> Tensor:
    """Draw futures (draws, num_steps, C) of standardized values after an origin.

    Beyond the steps that the model predicts at once, each draw is continued from its own values.
    """
    num_columns, context = dataset.num_columns, dataset.context_steps
    like = next(model.parameters())
    first = origin.row - context + 1
    past = dataset.store[first : origin.row + 1, :num_columns]  # (P, C)
    parts = []
    for start in track(range(0, draws, MAX_DRAWS_TOGETHER), "forecasting", unit="batches"):
        size = min(MAX_DRAWS_TOGETHER, draws - start)
        known = past.expand(size, -1, -1)
        while known.shape[1] - context < num_steps:
            done = known.shape[1] - context
            ahead = np.arange(-context, dataset.target_steps) + origin.step + 1 + done
            features = dataset.features_of_steps(ahead)  # (P + H, F)
            values = torch.cat(
                [known[:, done:], known.new_zeros(size, dataset.target_steps, num_columns)], 1
            )
            cond = torch.cat([values, features.expand(size, -1, -1)], 2)
            if done:
                drawn = model.forecast(cond.to(device, like.dtype))[0]
            else:  # all draws have the same past
                drawn = model.forecast(cond[:1].to(device, like.dtype), size)[:, 0]
            known = torch.cat([known, drawn.float().cpu()], 1)
        parts.append(known[:, context : context + num_steps])
    return torch.cat(parts)


def quantiles_of_draws(draws: Tensor) -> np.ndarray:
    """Return the quantiles (5, …) at LEVELS of draws (S, …)."""
    found: np.ndarray = np.quantile(draws.double().numpy(), LEVELS, axis=0)
    return found


def column_title(column: Any) -> str:
    """Return the name of a column; units are a part of it."""
    return str(column.name)


def make_fans(
    dataset: Any, origin: Origin, draws: Tensor, *, num_past: int | None = None, title: str = ""
) -> list[Fan]:
    """Return the fan charts of a forecast, one for each column.

    Args:
        draws: in own units (S, H, C).
        num_past: steps of the past that are shown; None chooses it.
    """
    num_steps = draws.shape[1]
    wanted = num_past or max(dataset.context_steps, MIN_PAST_SHOWN * num_steps)
    first = max(0, origin.row + 1 - wanted)
    ahead = origin.step + 1 + np.arange(num_steps)
    steps = np.concatenate([dataset.steps[first : origin.row + 1], ahead])
    times = steps if dataset.grid.unit == "row" else dataset.grid.dates_at(steps)
    values = dataset.to_own_units(dataset.store[:, : dataset.num_columns]).numpy()
    truth = true_future(dataset, origin, num_steps)
    quantiles = quantiles_of_draws(draws)
    return [
        Fan(
            times,
            values[first : origin.row + 1, c],
            quantiles[:, :, c],
            None if truth is None else truth[:, c],
            column_title(column),
            title,
        )
        for c, column in enumerate(dataset.columns)
    ]


def true_future(dataset: Any, origin: Origin, num_steps: int) -> np.ndarray | None:
    """Return the values (H, C) after an origin in own units; None if they are not all known."""
    last = origin.row + num_steps
    if last >= len(dataset.steps) or dataset.steps[last] - origin.step != num_steps:
        return None
    values = dataset.store[origin.row + 1 : last + 1, : dataset.num_columns]
    own: np.ndarray = dataset.to_own_units(values).numpy()
    return own


def preview_forecasts(model: Any, dataset: Any, split: str) -> Picture:
    """Return fan charts of a few windows of a split, evenly spread over its time."""
    starts = dataset.splits[split].x
    picked = torch.linspace(0, len(starts) - 1, min(PREVIEW_WINDOWS, len(starts))).round().long()
    device = next(model.parameters()).device
    fans = []
    for row in sorted({int(starts[i]) - 1 for i in picked}):
        step = int(dataset.steps[row])
        date = dataset.grid.format_dates(dataset.grid.dates_at(np.array([step])))[0]
        origin = Origin(row, step, date)
        num_steps = dataset.target_steps
        drawn = draw_futures(model, dataset, origin, num_steps, PREVIEW_DRAWS, device)
        fans += make_fans(
            dataset,
            origin,
            dataset.to_own_units(drawn),
            num_past=max(dataset.context_steps, num_steps),
            title=f"after {'step ' * (dataset.grid.unit == 'row')}{date}",
        )
    return plot_fans(fans[: 2 * PREVIEW_WINDOWS], PERCENTS)
