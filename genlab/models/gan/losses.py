"""The GAN losses in their papers' letters: what D minimises and what G minimises, given D's logits.

A loss is a pair of functions of logits: σ(logit) is D's probability that an item is real. A new loss is two functions,
its name in `Name` and its line in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

Name = Literal["minimax", "non_saturating"]


class Loss(NamedTuple):
    """`discriminator(real, fake)` and `generator(fake)`: logits (B,) to a scalar in nats, to be minimised."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


# Goodfellow et al. 2014, eq. 1: min_G max_D V(D, G) = E[log D(x)] + E[log(1 − D(G(z)))];
# with D = σ(a): −log D = softplus(−a) and −log(1 − D) = softplus(a).
def minus_value(real: Tensor, fake: Tensor) -> Tensor:
    """Return −V(D, G), which D minimises; at D = 1/2 everywhere it is log 4."""
    return softplus(-real).mean() + softplus(fake).mean()


def saturating(fake: Tensor) -> Tensor:
    """Return E[log(1 − D(G(z)))], G's part of V (eq. 1); its gradient dies where D is sure."""
    return -softplus(fake).mean()


def non_saturating(fake: Tensor) -> Tensor:
    """Return −E[log D(G(z))], the same fixed point with a strong gradient early on (section 3)."""
    return softplus(-fake).mean()


LOSSES: dict[str, Loss] = {
    "minimax": Loss(minus_value, saturating),
    "non_saturating": Loss(minus_value, non_saturating),
}


# Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, eq. 9: R1 = γ/2 E_data |∇_x D(x)|², with D the logit.
def r1_penalty(real: Tensor, x: Tensor) -> Tensor:
    """Return E|∇_x D(x)|² (scalar) of the logits `real` (B,) of data x (B, …), which needs requires_grad."""
    (gradient,) = torch.autograd.grad(real.sum(), x, create_graph=True)  # (B, …)
    return gradient.square().flatten(1).sum(1).mean()
