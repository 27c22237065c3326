"""Parts of the lower bounds of log p(x) of DBMs and DBNs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from genlab.console import track

MAX_IMPORTANCE_SAMPLES = 2**12  # items whose hidden units are in memory at a time


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x) (B,) in nats of independent binary units x (B, D) with these logits."""
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def bernoulli_entropy(p: Tensor) -> Tensor:
    """Return the entropy (B,) in nats of independent binary units with the means p (B, D)."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum(1)


def importance_weighted_bound(
    log_weights: Callable[[Tensor], Tensor], x: Tensor, num_samples: int
) -> Tensor:
    """Return the log of the mean of num_samples importance weights (B,), computed in chunks.

    Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, equation 8.

    Args:
        log_weights: returns one random log-weight per item.
        x: (B, *shape).
    """
    chunk = max(1, MAX_IMPORTANCE_SAMPLES // len(x))
    total: Tensor | None = None
    for start in track(range(0, num_samples, chunk), "importance samples", unit="chunks"):
        n = min(chunk, num_samples - start)
        repeated = x.expand(n, *x.shape).flatten(0, 1)  # (n·B, *shape)
        part = log_weights(repeated).view(n, -1).logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total - math.log(num_samples)
