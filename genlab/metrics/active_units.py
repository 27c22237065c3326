"""Use of the latent code: KL per dimension, and dimensions that depend on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext

# Variance above which a dimension's mean depends on the data (Burda et al. 2016, section 5.2).
MIN_ACTIVE_VARIANCE = 0.01


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    return ["kl", "active_units"] if "posterior" in context.abilities else []


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return the mean KL(q(z|x) ‖ N(0, I)) of held-out items, and the number of active units.

    The parts of the KL by dimension are logged. A unit u is active if
    A_u = Cov_x(E_q(u|x)[u]) > 0.01: Burda et al. 2016, https://arxiv.org/abs/1509.00519, section
    5.2. If none is active, the posterior has collapsed onto the prior (Bowman et al. 2016,
    https://arxiv.org/abs/1511.06349, section 3.1).
    """
    s = context.settings
    batch = context.dataset.head(s.split, s.n, seed=s.seed, device=context.device)
    x = batch.x.to(next(context.model.parameters()).dtype)
    labels = [None] * len(x) if batch.y is None else batch.y.split(s.batch_size)
    posteriors = [
        context.model.posterior(x_part, y_part)
        for x_part, y_part in zip(x.split(s.batch_size), labels, strict=False)
    ]
    mean, log_var = (
        torch.cat(part).double() for part in zip(*posteriors, strict=True)
    )  # (n, latent)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
    conditions = {"n": len(x), "split": s.split, "seed": s.seed}
    num_active, latent = int(is_active_dimension(mean).sum()), mean.shape[1]
    return [
        Row(
            "kl",
            kl.sum(1).mean().item(),
            "nats",
            error=kl.sum(1).std().item() / len(x) ** 0.5,
            better="neither",
            conditions=conditions,
            parts={f"kl/{j}": value for j, value in enumerate(kl.mean(0).tolist())},
        ),
        Row(
            "active_units",
            num_active,
            f"of {latent}",
            better="neither",
            conditions=conditions,
            note=posterior_collapse_warning(num_active, latent),
        ),
    ]


def is_active_dimension(mean: Tensor) -> Tensor:
    """Return whether each dimension (latent,) of means (n, latent) varies over items."""
    return mean.var(0) > MIN_ACTIVE_VARIANCE


def posterior_collapse_warning(num_active: int, latent: int) -> str:
    """Return a warning if the posterior has collapsed onto the prior, else an empty string."""
    if num_active:
        return ""
    return (
        f"posterior collapse: none of the {latent} code dimensions is active, so the code does not "
        "depend on the item; try trainer.kl_warmup, model.free_bits or a smaller model.beta"
    )
