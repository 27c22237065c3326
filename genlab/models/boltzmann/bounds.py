"""Parts of the bounds of log p(x) that deep machines have."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

AT_ONCE = 2**12  # items whose hidden units are in memory together


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x) (B,) in nats of independent binary units x (B, D) with these logits (B, D)."""
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def entropy(p: Tensor) -> Tensor:
    """Return the entropy (B,) in nats of independent binary units with the means p (B, D)."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum(1)


def importance_weighted(log_weights: Callable[[Tensor], Tensor], x: Tensor, k: int) -> Tensor:
    """Return log of the mean of k importance weights (B,) of x (B, *shape), in bounded memory for any k.

    Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, equation 8.
    """
    at_once = max(1, AT_ONCE // len(x))
    total = None
    for start in range(0, k, at_once):
        draws = min(at_once, k - start)
        part = log_weights(x.repeat(draws, *[1] * (x.dim() - 1))).view(draws, -1).logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
    return total - math.log(k)
