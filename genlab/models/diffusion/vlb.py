"""The variational bound of DDPM (Ho et al. 2020, eq. 5): −log p(x_0) ≤ L_T + Σ_t L_{t−1} + L_0, in nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.special import log_ndtr

from genlab.models.diffusion.samplers import spreads
from genlab.models.diffusion.schedule import Level, Variance

VALUES = (
    2**18
)  # numbers in one pass of the network: several times t share a pass where the batch is small


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


def step_nats(
    x0: Tensor,
    guess: Tensor,
    weight: Tensor,
    beta_tilde: Tensor,
    variance: Tensor,
    *,
    levels: int = 0,
) -> Tensor:
    """Return L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ N(μ, σ²)) (B,) in nats; where β̃ = 0, in the last step, −log N(x_0; μ, σ²).

    The two means differ by weight · (x_0 − guess), and only there.

    Args:
        guess: the expected x_0 (B, …) of x_t.
        weight: of x_0 in the mean of q (B, 1, …): eq. 7.
        beta_tilde: the variance of q (B, 1, …); variance: σ² (B, …) of the model's step.
        levels: number of values of discrete data in [−1, 1], whose L_0 is eq. 13; 0: a density.
    """
    first = beta_tilde == 0  # (B, 1, …)
    ratio = torch.where(first, 1.0, beta_tilde / variance)
    kl = 0.5 * (ratio - 1 - ratio.log() + (weight * (x0 - guess)) ** 2 / variance)
    if first.any():
        last = discretised(x0, guess, variance, levels) if levels else gaussian(x0, guess, variance)
        kl = torch.where(first, -last, kl)
    return kl.flatten(1).sum(1)


def bound(
    denoise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]],
    x0: Tensor,
    path: Sequence[Level],
    *,
    variance: Variance = "beta",
    levels: int = 0,
    terms: int | None = None,
    prior_std: float = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return an unbiased draw (B,) of the lower bound of log p(x_0), in nats, of ancestral sampling along a path.

    Args:
        denoise: (x_t, t, row) -> the expected x_0, and v of a learned variance or None; row (len(t),) says which item of the
            batch each x_t comes from.
        path: the noise levels of all steps, from the noisiest to the clean one.
        variance: σ² of p(x_{t−1} | x_t): β or β̃, the first clipped to the second; "learned": β^v β̃^(1−v).
        levels: number of values of discrete data in [−1, 1], whose last step is eq. 13; 0: a density, N(x_0; μ, σ²).
        terms: how many of the T − 1 terms L_{t−1} are evaluated, at random times stratified for each item; None: all.
        prior_std: of the law p(x_T) = N(0, prior_std²).
    """
    B, dim = len(x0), x0[0].numel()
    rows, T = torch.arange(B, device=x0.device), len(path) - 1
    table = {key: value.to(x0) for key, value in steps_of(path).items()}

    def nats(x: Tensor, i: Tensor, row: Tensor) -> Tensor:
        at = {key: value[i].view(-1, *[1] * (x.dim() - 1)) for key, value in table.items()}
        guess, v = denoise(at["alpha"] * x + at["sigma"] * noise(x), table["t"][i], row)
        if v is None:
            sigma2 = at["beta" if variance == "beta" else "clipped"]
        else:
            sigma2 = (v * at["beta"].log() + (1 - v) * at["clipped"].log()).exp()
        return step_nats(x, guess, at["weight"], at["beta_tilde"], sigma2, levels=levels)

    # L_T = KL(q(x_T | x_0) || N(0, prior_std²))
    a, s = path[0].alpha / prior_std, path[0].sigma / prior_std
    total = 0.5 * ((a * x0) ** 2 + s**2 - 1 - math.log(s**2)).flatten(1).sum(1)
    total = total + nats(x0, torch.zeros_like(rows), rows)  # L_0
    # L_{t−1}, one time from each stratum, weighed by the stratum's width
    borders = strata(T, terms).to(x0.device)
    width = borders.diff()
    for part in torch.arange(len(width), device=x0.device).split(max(1, VALUES // (B * dim))):
        row = rows.repeat(len(part))
        weight = width[part].repeat_interleave(B)
        i = (
            borders[part].repeat_interleave(B)
            + (torch.rand(len(row), device=x0.device) * weight).long()
        )
        x = x0.repeat(len(part), *[1] * (x0.dim() - 1))
        total = total + (weight * nats(x, i, row)).view(len(part), B).sum(0)
    return -total


def noise_error(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    path: Sequence[Level],
    *,
    terms: int | None = None,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return a draw (B,) of E ‖ε − ε̂(x_t)‖² over ε and all levels of a path alike: the bound without its weights.

    Args:
        denoise: (x_t, t, row) -> the expected x_0; row (len(t),) says which item of the batch each x_t comes from.
        path: the noise levels, from the noisiest to the clean one.
        terms: how many levels are asked, at random, stratified for each item; None: all.
    """
    B, dim, T = len(x0), x0[0].numel(), len(path) - 1
    t, alpha, sigma = (
        torch.tensor(values, dtype=torch.float64).to(x0) for values in zip(*path[:-1], strict=True)
    )
    rows, total, K = torch.arange(B, device=x0.device), torch.zeros(B).to(x0), min(terms or T, T)
    for part in torch.arange(K, device=x0.device).split(max(1, VALUES // (B * dim))):
        row = rows.repeat(len(part))
        i = (
            ((part.repeat_interleave(B) + torch.rand(len(row), device=x0.device)) * (T / K))
            .long()
            .clamp(max=T - 1)
        )
        x, shape = x0[row], (-1, *[1] * (x0.dim() - 1))
        a, s = alpha[i].view(shape), sigma[i].view(shape)
        error = a / s * (x - denoise(a * x + s * noise(x), t[i], row))
        total = total + error.square().flatten(1).sum(1).view(len(part), B).sum(0) / K
    return total


def steps_of(path: Sequence[Level]) -> dict[str, Tensor]:
    """Return of each step (T,), from the last one to the first, its level, β, β̃, and the weight of x_0 in eq. 7; float64.

    `clipped` is β̃ whose first value, 0, is the second's, as in the authors' code.
    """
    up = [*reversed(path)]
    spread = [spreads(now, then) for then, now in pairwise(up)]
    found = {
        "t": [level.t for level in up[1:]],
        "alpha": [level.alpha for level in up[1:]],
        "sigma": [level.sigma for level in up[1:]],
        "beta": [beta for _, beta, _ in spread], "beta_tilde": [tilde for *_, tilde in spread],
        "weight": [then.alpha * beta / now.sigma**2 for (then, now), (_, beta, _) in zip(pairwise(up), spread, strict=True)],
    }  # fmt: skip
    found["clipped"] = [
        found["beta_tilde"][min(1, len(spread) - 1)] or found["beta"][0],
        *found["beta_tilde"][1:],
    ]
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in found.items()}
