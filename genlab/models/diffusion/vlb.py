"""The variational lower bound of DDPM (Ho et al. 2020, eq. 5), in nats.

−log p(x_0) ≤ L_T + Σ_t L_{t−1} + L_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr

from genlab.abilities import BoundTerms
from genlab.console import track
from genlab.models.diffusion.samplers import transition_coefficients
from genlab.models.diffusion.schedule import NoiseLevel, Variance
from genlab.nn.broadcast import expand_like

# Values in one pass of the network: if the batch is small, several times t share a pass.
MAX_VALUES_PER_PASS = 2**18
LEFT_TAIL = -3.0  # standard deviations


def gaussian_log_prob(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return log N(x; mean, variance) of each element."""
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean) ** 2 / variance)


def discretized_gaussian_log_prob(
    x: Tensor, mean: Tensor, variance: Tensor, num_levels: int
) -> Tensor:
    """Return the log-probability of each element's bin under N(mean, variance) (eq. 13).

    x takes `num_levels` values spaced evenly over [−1, 1]; the two outer bins reach to infinity.
    """
    half, far = 1 / (num_levels - 1), 1e3
    std = variance.sqrt()
    low = (x - torch.where(x < -1 + half, far, half) - mean) / std
    high = (x + torch.where(x > 1 - half, far, half) - mean) / std
    # log(Φ(high) − Φ(low)) in the tail where neither Φ rounds to 1.
    mirror = low + high > 0
    low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_high = log_normal_cdf(high)
    return log_high + torch.log1p(-torch.exp(log_normal_cdf(low) - log_high))


def log_normal_cdf(z: Tensor) -> Tensor:
    """Return log Φ(z), with a gradient that float32 can represent far in the left tail.

    There PyTorch's gradient of log_ndtr is the exponential of a small difference of large numbers,
    which becomes infinite.
    """
    is_tail = z < LEFT_TAIL
    z_tail, z_body = torch.where(is_tail, z, LEFT_TAIL), torch.where(is_tail, 0.0, z)
    log_tail = (0.5 * erfcx(z_tail / -math.sqrt(2))).log() - z_tail.square() / 2
    return torch.where(is_tail, log_tail, log_ndtr(z_body))


def timestep_strata_bounds(T: int, num_terms: int | None) -> Tensor:
    """Return the borders (K + 1,) of K strata of the times 1, …, T − 1.

    The strata are narrow at small t, where the terms of the bound are large.
    """
    K = T - 1 if num_terms is None else min(num_terms, T - 1)
    i = torch.arange(K + 1, dtype=torch.float64)
    return (1 + i + ((T - 1 - K) * (i / max(K, 1)) ** 2).round()).long()


def vlb_term(
    x0: Tensor,
    predicted_x0: Tensor,
    weight: Tensor,
    beta_tilde: Tensor,
    variance: Tensor,
    *,
    num_levels: int = 0,
) -> Tensor:
    """Return L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ N(μ, σ²)) (B,) in nats.

    The two means differ by weight · (x_0 − predicted_x0). In the last step, where β̃ = 0, the term
    is −log N(x_0; μ, σ²).

    Args:
        predicted_x0: the expected x_0 (B, …) of x_t.
        weight: weight (B, 1, …) of x_0 in the mean of q (eq. 7).
        beta_tilde: the variance of q (B, 1, …).
        variance: σ² (B, …) of the model's step.
        num_levels: number of values of discrete data in [−1, 1], whose L_0 is eq. 13; 0 for a
            density.
    """
    is_last = beta_tilde == 0  # (B, 1, …)
    ratio = torch.where(is_last, 1.0, beta_tilde / variance)
    kl = 0.5 * (ratio - 1 - ratio.log() + (weight * (x0 - predicted_x0)) ** 2 / variance)
    if is_last.any():
        if num_levels:
            log_prob = discretized_gaussian_log_prob(x0, predicted_x0, variance, num_levels)
        else:
            log_prob = gaussian_log_prob(x0, predicted_x0, variance)
        kl = torch.where(is_last, -log_prob, kl)
    return kl.flatten(1).sum(1)


def vlb(
    denoise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]],
    x0: Tensor,
    path: Sequence[NoiseLevel],
    **options: Any,
) -> Tensor:
    """Return an unbiased estimate (B,) of the lower bound of log p(x_0), in nats.

    The bound is that of ancestral sampling along a path. Arguments as of `vlb_terms`.
    """
    return -vlb_terms(denoise, x0, path, **options).total


def vlb_terms(
    denoise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]],
    x0: Tensor,
    path: Sequence[NoiseLevel],
    *,
    variance: Variance = "beta",
    num_levels: int = 0,
    num_terms: int | None = None,
    prior_std: float = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> BoundTerms:
    """Return L_T, L_{t−1} and L_0 of the bound of ancestral sampling along a path, in nats.

    Args:
        denoise: (x_t, t, row) -> the expected x_0, and v of a learned variance or None. `row`
            (len(t),) is the index in the batch of the sample that each x_t comes from.
        path: the noise levels of all steps, from the noisiest to the clean one.
        variance: σ² of p(x_{t−1} | x_t): β or β̃, whose first value is clipped to the second, or
            "learned": β^v β̃^(1−v).
        num_levels: number of values of discrete data in [−1, 1], whose last step is eq. 13; 0 for a
            density N(x_0; μ, σ²).
        num_terms: how many of the T − 1 terms L_{t−1} are evaluated, at random times that are
            stratified for each sample; None evaluates all.
        prior_std: standard deviation of p(x_T) = N(0, prior_std²).
    """
    B, dim = len(x0), x0[0].numel()
    rows, T = torch.arange(B, device=x0.device), len(path) - 1
    table = {key: value.to(x0) for key, value in vlb_step_coefficients(path).items()}

    def terms_at(x: Tensor, i: Tensor, row: Tensor) -> Tensor:
        """Return the terms (len(i),) of the steps i for samples x (len(i), …)."""
        step = {key: expand_like(value[i], x) for key, value in table.items()}
        predicted, v = denoise(step["alpha"] * x + step["sigma"] * noise(x), table["t"][i], row)
        if v is None:
            sigma2 = step["beta" if variance == "beta" else "clipped"]
        else:
            sigma2 = (v * step["beta"].log() + (1 - v) * step["clipped"].log()).exp()
        return vlb_term(
            x, predicted, step["weight"], step["beta_tilde"], sigma2, num_levels=num_levels
        )

    # L_T = KL(q(x_T | x_0) || N(0, prior_std²))
    a, s = path[0].alpha / prior_std, path[0].sigma / prior_std
    prior = 0.5 * ((a * x0) ** 2 + s**2 - 1 - math.log(s**2)).flatten(1).sum(1)
    reconstruction = terms_at(x0, torch.zeros_like(rows), rows)  # L_0
    # L_{t−1} at one time of each stratum, weighted by the stratum's width
    borders = timestep_strata_bounds(T, num_terms).to(x0.device)
    widths = borders.diff()
    strata_per_pass = max(1, MAX_VALUES_PER_PASS // (B * dim))
    parts = torch.arange(len(widths), device=x0.device).split(strata_per_pass)
    steps = [x0.new_zeros(0, B)]
    for part in track(parts, "noise levels", unit="parts"):
        row = rows.repeat(len(part))
        weight = widths[part].repeat_interleave(B)
        offset = (torch.rand(len(row), device=x0.device) * weight).long()
        i = borders[part].repeat_interleave(B) + offset
        x = x0.repeat(len(part), *[1] * (x0.dim() - 1))
        steps.append((weight * terms_at(x, i, row)).view(len(part), B))
    return BoundTerms(prior, torch.cat(steps).mT, reconstruction, borders)


def eps_mse(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    path: Sequence[NoiseLevel],
    *,
    num_terms: int | None = None,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return an estimate (B,) of E ‖ε − ε̂(x_t)‖² over ε and all levels of a path.

    It is the bound without its weights.

    Args:
        denoise: (x_t, t, row) -> the expected x_0; `row` (len(t),) is the index in the batch of the
            sample that each x_t comes from.
        path: the noise levels, from the noisiest to the clean one.
        num_terms: how many random levels are evaluated, stratified for each sample; None evaluates
            all.
    """
    B, dim, T = len(x0), x0[0].numel(), len(path) - 1
    t, alpha, sigma = (
        torch.tensor(values, dtype=torch.float64).to(x0) for values in zip(*path[:-1], strict=True)
    )
    rows, total = torch.arange(B, device=x0.device), torch.zeros(B).to(x0)
    K = min(num_terms or T, T)
    strata_per_pass = max(1, MAX_VALUES_PER_PASS // (B * dim))
    parts = torch.arange(K, device=x0.device).split(strata_per_pass)
    for part in track(parts, "noise levels", unit="parts"):
        row = rows.repeat(len(part))
        position = part.repeat_interleave(B) + torch.rand(len(row), device=x0.device)
        i = (position * (T / K)).long().clamp(max=T - 1)
        x = x0[row]
        a, s = expand_like(alpha[i], x0), expand_like(sigma[i], x0)
        error = a / s * (x - denoise(a * x + s * noise(x), t[i], row))
        total = total + error.square().flatten(1).sum(1).view(len(part), B).sum(0) / K
    return total


def vlb_step_coefficients(path: Sequence[NoiseLevel]) -> dict[str, Tensor]:
    """Return t, α, σ, β, β̃ and the weight of x_0 in eq. 7 for each step (T,), float64.

    Steps go from the last to the first, that is, from low to high noise. `clipped` is β̃ with its
    first value, 0, replaced by the second, as in the authors' code.
    """
    ascending = [*reversed(path)]
    steps = list(pairwise(ascending))  # (then, now)
    transitions = [transition_coefficients(now, then) for then, now in steps]
    betas = [beta for _, beta, _ in transitions]
    betas_tilde = [beta_tilde for *_, beta_tilde in transitions]
    columns = {
        "t": [level.t for level in ascending[1:]],
        "alpha": [level.alpha for level in ascending[1:]],
        "sigma": [level.sigma for level in ascending[1:]],
        "beta": betas,
        "beta_tilde": betas_tilde,
        "weight": [
            then.alpha * beta / now.sigma**2 for (then, now), beta in zip(steps, betas, strict=True)
        ],
        "clipped": [betas_tilde[min(1, len(steps) - 1)] or betas[0], *betas_tilde[1:]],
    }
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in columns.items()}
