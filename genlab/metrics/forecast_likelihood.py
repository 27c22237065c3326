"""The log-likelihood of held-out futures, given their past."""

from __future__ import annotations

import torch

from genlab.batching import map_batched
from genlab.metrics.base import Row, mean_and_error
from genlab.metrics.context import MetricContext
from genlab.metrics.forecast_samples import EXACT_WORDS


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    return ["nll_forecast"] if "forecast_log_prob" in context.abilities else []


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return −log p(future | past) per step of n held-out windows of standardized values.

    Beside it is that of the exact forecast, where the process is known.
    """
    model, dataset, s = context.model, context.dataset, context.settings
    batch = dataset.head(s.split, s.n, seed=s.seed)
    like = next(model.parameters())
    x, cond = (part.to(context.device, like.dtype) for part in (batch.x, batch.cond))
    log_p = map_batched(model.forecast_log_prob, x, cond, batch_size=s.batch_size)
    value, error = mean_and_error(-log_p / dataset.target_steps)
    exact = dataset.true_forecast_log_prob(batch.x, batch.cond)
    conditions = {"n": len(x), "split": s.split, "seed": s.seed}
    if exact is not None:
        conditions["real_vs_real"] = EXACT_WORDS
    return [
        Row(
            "nll_forecast",
            value,
            "nats/step",
            error=error,
            real_vs_real=None if exact is None else -exact.mean().item() / dataset.target_steps,
            conditions=conditions,
        )
    ]
