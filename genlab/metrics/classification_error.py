"""The error rate of a model that classifies held-out items."""

from __future__ import annotations

import torch

from genlab.batching import map_batched
from genlab.metrics.base import Row, binomial_standard_error
from genlab.metrics.context import MetricContext


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    is_applicable = "classify" in context.abilities and context.spec.num_classes
    return ["classification_error"] if is_applicable else []


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return the fraction of n held-out items that `classify` gets wrong, with binomial error."""
    model, s = context.model, context.settings
    batch = context.dataset.head(s.split, s.n, seed=s.seed, device=context.device)
    x = batch.x.to(next(model.parameters()).dtype)
    torch.manual_seed(s.seed)
    log_p = map_batched(model.classify, x, batch_size=s.batch_size)  # (N, classes)
    fraction = (log_p.argmax(1) != batch.y).double().mean().item()
    return [
        Row(
            "classification_error",
            fraction,
            "share",
            error=binomial_standard_error(fraction, len(x)),
            conditions={"n": len(x), "split": s.split, "seed": s.seed},
        )
    ]
