"""The variational bound of DDPM (Ho et al. 2020, eq. 5): −log p(x_0) ≤ L_T + Σ_t L_{t−1} + L_0, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.special import log_ndtr

from genlab.models.diffusion.schedule import Schedule, Variance

VALUES = 2**18  # numbers in one pass of the network: several times t share a pass where the batch is small


def gaussian(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return log N(x; mean, variance), element by element."""
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean) ** 2 / variance)


def discretised(x: Tensor, mean: Tensor, variance: Tensor, levels: int) -> Tensor:
    """Return the log-probability of the bin of x under N(mean, variance), element by element (eq. 13).

    x is one of `levels` values spread evenly over [−1, 1]; the two outer bins reach to infinity.
    """
    half, far = 1 / (levels - 1), 1e3
    std = variance.sqrt()
    low = (x - torch.where(x < -1 + half, far, half) - mean) / std
    high = (x + torch.where(x > 1 - half, far, half) - mean) / std
    # log(Φ(high) − Φ(low)) in the tail where neither Φ rounds to 1.
    mirror = low + high > 0
    low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    return log_ndtr(high) + torch.log1p(-torch.exp(log_ndtr(low) - log_ndtr(high)))


def strata(T: int, terms: int | None) -> Tensor:
    """Return the borders (K + 1,) of K strata of the times 1, …, T − 1, narrow at small t, where terms are large."""
    K = T - 1 if terms is None else min(terms, T - 1)
    i = torch.arange(K + 1, dtype=torch.float64)
    return (1 + i + ((T - 1 - K) * (i / max(K, 1)) ** 2).round()).long()


def bound(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    schedule: Schedule,
    *,
    variance: Variance = "beta",
    levels: int = 0,
    terms: int | None = None,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return an unbiased draw (B,) of the lower bound of log p(x_0), in nats.

    Args:
        denoise: (x_t, t, row) -> the expected x_0; row (len(t),) says which item of the batch each x_t comes from.
        variance: σ² of p(x_{t−1} | x_t): β or β̃, the first clipped to the second.
        levels: number of values of discrete data in [−1, 1], whose last step is eq. 13; 0: a density, N(x_0; μ, σ²).
        terms: how many of the T − 1 terms L_{t−1} are evaluated, at random times stratified for each item; None: all.
    """
    B, dim = len(x0), x0[0].numel()
    rows = torch.arange(B, device=x0.device)

    # L_T = KL(q(x_T | x_0) || N(0, 1))
    ab = schedule.exact["alphas_bar"][-1].item()
    total = 0.5 * (ab * x0**2 - ab - math.log1p(-ab)).flatten(1).sum(1)

    # L_0 = −log p(x_0 | x_1)
    t = torch.zeros_like(rows)
    mean = denoise(schedule.q_sample(x0, t, noise(x0)), t, rows)
    sigma2 = schedule.model_variance(variance, t, x0)
    last = discretised(x0, mean, sigma2, levels) if levels else gaussian(x0, mean, sigma2)
    total = total - last.flatten(1).sum(1)

    # L_{t−1} = KL(q(x_{t−1} | x_t, x_0) || N(μ_θ, σ²)), one time from each stratum, weighed by the stratum's width
    borders = strata(schedule.T, terms).to(x0.device)
    width = borders.diff()
    for part in torch.arange(len(width), device=x0.device).split(max(1, VALUES // (B * dim))):
        row = rows.repeat(len(part))
        weight = width[part].repeat_interleave(B)
        t = borders[part].repeat_interleave(B) + (torch.rand(len(row), device=x0.device) * weight).long()
        x = x0.repeat(len(part), *[1] * (x0.dim() - 1))
        xt = schedule.q_sample(x, t, noise(x))
        mean, beta_tilde = schedule.q_posterior(x, xt, t)
        guess, _ = schedule.q_posterior(denoise(xt, t, row), xt, t)
        sigma2 = schedule.model_variance(variance, t, x)
        ratio = beta_tilde / sigma2
        kl = 0.5 * (ratio - 1 - ratio.log() + (mean - guess) ** 2 / sigma2).flatten(1).sum(1)
        total = total + (weight * kl).view(len(part), B).sum(0)
    return -total
