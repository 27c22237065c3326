"""The terms L_T, L_{t−1} and L_0 of a diffusion model's bound, and their curve over t."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genlab.abilities import BoundTerms
from genlab.batching import map_batched
from genlab.metrics.base import Row, mean_and_error
from genlab.metrics.context import MetricContext


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "bound_terms" not in context.abilities:
        return []
    return ["L_T", "L_steps", "L_0", "L_total"]


def measure(context: MetricContext) -> list[Row]:
    """Return the mean terms of the bound −log p(x) ≤ L_T + Σ_{t>1} L_{t−1} + L_0, in nats.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 5. L_T: how much of the item is left
    at the noisiest level, without parameters. L_steps: the sum of the middle terms, evaluated at
    `elbo_timesteps` random times. L_0: the distortion of the last step. L_total: their sum for each
    item, the same bound as `nll_elbo` with other random numbers.
    """
    terms, s = compute_bound_terms(context), context.settings
    conditions = {"n": len(terms.prior), "split": s.split, "seed": s.seed}
    conditions["elbo_timesteps"] = terms.steps.shape[1]
    values = {
        "L_T": terms.prior,
        "L_steps": terms.steps.sum(1),
        "L_0": terms.reconstruction,
        "L_total": terms.total,
    }
    rows = []
    for name, nats in values.items():
        value, error = mean_and_error(nats)
        tag = "exact" if name == "L_T" else "bound" if name == "L_total" else "estimate"
        better: Literal["lower", "neither"] = "lower" if name == "L_total" else "neither"
        rows.append(Row(name, value, "nats", tag, error, better=better, conditions=conditions))
    return rows


@torch.no_grad()
def compute_bound_terms(context: MetricContext) -> BoundTerms:
    """Return the terms of n held-out items, the same ones each time, float64 on the CPU."""
    model, s = context.model, context.settings
    batch = context.dataset.head(s.split, s.n, seed=s.seed, device=context.device)
    x = batch.x.to(next(model.parameters()).dtype)
    y = batch.y if model.conditional else None
    borders: list[Tensor] = []

    def terms_as_columns(x: Tensor, y: Tensor | None) -> Tensor:
        terms = model.bound_terms(x, y, num_terms=s.elbo_timesteps)
        borders.append(terms.borders.cpu())
        ends = torch.stack([terms.prior, terms.reconstruction], 1)
        return torch.cat([ends, terms.steps], 1).double().cpu()

    torch.manual_seed(s.seed)
    columns = map_batched(
        terms_as_columns, x, y, batch_size=s.batch_size, label="terms of the bound"
    )
    return BoundTerms(columns[:, 0], columns[:, 2:], columns[:, 1], borders[0])
