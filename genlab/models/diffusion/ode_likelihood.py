"""The density that the probability-flow ODE gives: Song et al. 2021, Score-Based Generative Modeling through SDEs, 2011.13456."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genlab.models.diffusion.samplers import Denoiser, frame, slope
from genlab.models.diffusion.schedule import Level


def log_prob(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    prior_std: float = 1.0,
    probes: int = 1,
) -> Tensor:
    """Return an estimate (B,) of log p(x), in nats, of data x (B, …), p being the model's law with the first level's noise on it.

    In the straight frame u = x/s with clock τ (see `samplers.frame`) the ODE is du/dτ = v(u, τ), and d log p/dτ = −∇·v along it
    (eq. 39): both go by Heun's method to the last level, where p = N(0, prior_std²). The divergence is Hutchinson's estimate with
    signs e, E[eᵀ (∂v/∂u) e] (eq. 40); exact where the data has no more dimensions than there are `probes`.

    Args:
        levels: from the least noisy to the noisiest, both with noise.
    """
    dim = x[0].numel()
    if dim <= probes:
        signs = (
            torch.eye(dim, dtype=x.dtype, device=x.device)
            .view(dim, 1, *x.shape[1:])
            .expand(dim, *x.shape)
        )
        share = 1.0
    else:
        signs, share = (
            torch.randint(2, (probes, *x.shape), device=x.device).to(x) * 2 - 1,
            1 / probes,
        )

    def field(u: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return v (B, …) and ∇·v (B,) at u (B, …)."""
        scale, _ = frame(level, straight=True)
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            v = slope(denoise(scale * u, level.t), scale * u, level, straight=True)
            div = sum(
                (torch.autograd.grad(v, u, e, retain_graph=True)[0] * e).flatten(1).sum(1)
                for e in signs
            )
        return v.detach(), div.detach() * share

    share_of_x = (
        levels[0].alpha / frame(levels[0], straight=True)[0]
    )  # x stands for x_0, and its own noise for the first level's
    u, total = share_of_x * x, x.new_full((len(x),), dim * math.log(share_of_x))
    before = field(u, levels[0])
    for now, then in pairwise(levels):
        h = frame(then, straight=True)[1] - frame(now, straight=True)[1]
        after = field(u + h * before[0], then)
        u = u + 0.5 * h * (before[0] + after[0])
        total = total + 0.5 * h * (before[1] + after[1])
        before = field(u, then)
    scale, _ = frame(levels[-1], straight=True)
    last = -0.5 * ((scale * u / prior_std) ** 2 + math.log(2 * math.pi * prior_std**2)).flatten(
        1
    ).sum(1)
    return total + last + dim * math.log(scale)
