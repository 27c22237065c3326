"""Draws of the unknown values of points from a diffusion model, by sequential Monte Carlo.

SMC-Diff (Trippe et al. 2023, https://arxiv.org/abs/2206.04119, algorithm 2): the known values are
noised to every level, and particles of the reverse process are resampled by how well they predict
the noised values of the next level. With many particles this draws from the model's conditional
distribution; RePaint's replacement of the known values, without weights, does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genlab.console import track
from genlab.models.diffusion.samplers import (
    Denoiser,
    posterior_mean,
    posterior_variance,
    transition_coefficients,
)
from genlab.models.diffusion.schedule import NoiseLevel

NUM_PARTICLES = 32  # for each draw
ROWS_PER_BATCH = 2048  # draws of rows at a time, each with all its particles
MIN_EFFECTIVE_SHARE = 0.5  # particles are resampled where the effective number is a smaller share


@torch.no_grad()
def draw_unknown_values(
    denoise: Denoiser,
    x: Tensor,
    known: Tensor,
    levels: Sequence[NoiseLevel],
    *,
    draws: int,
    prior_std: float = 1.0,
    data_std: float = 1.0,
    num_particles: int = NUM_PARTICLES,
) -> Tensor:
    """Draw the unknown values of points x (B, D) given the known ones (draws, B, D).

    Each draw has its own particles.

    Args:
        known: bool (B, D).
        levels: from the noisiest to the clean one.
        prior_std: standard deviation of the noise at the first level.
        data_std: standard deviation of a value of the data; see `posterior_variance`.
    """
    rows = zip(
        x.repeat(draws, 1).split(ROWS_PER_BATCH),
        known.repeat(draws, 1).split(ROWS_PER_BATCH),
        strict=True,
    )
    count = -(-draws * len(x) // ROWS_PER_BATCH)
    parts = [
        run_particles(denoise, *row, levels, prior_std, data_std, num_particles)
        for row in track(rows, "sampling", count, unit="batches")
    ]
    return torch.cat(parts).unflatten(0, (draws, len(x)))


def run_particles(
    denoise: Denoiser,
    x: Tensor,
    known: Tensor,
    levels: Sequence[NoiseLevel],
    prior_std: float,
    data_std: float,
    num_particles: int,
) -> Tensor:
    """Return x (R, D) with the unknown values of one particle, drawn by its weight."""
    path = noise_known_values(x, levels)
    known = known[:, None]
    noise = prior_std * torch.randn(len(x), num_particles, x.shape[1]).to(x)
    particles = torch.where(known, path[0][:, None], noise)  # (R, K, D)
    log_weight = x.new_zeros(len(x), num_particles)
    for i, (now, then) in enumerate(pairwise(levels), 1):
        x0 = denoise(particles.flatten(0, 1), now.t).unflatten(0, particles.shape[:2])
        mean = posterior_mean(x0, particles, now, then)
        variance = posterior_variance(now, then, data_std)
        target = path[i][:, None]
        # log p(known values at `then` | particle at `now`), up to a constant
        squares = torch.where(known, (target - mean).square(), 0.0).sum(2)
        log_weight = log_weight - 0.5 * squares / variance
        drawn = mean + variance**0.5 * torch.randn_like(mean) if then.sigma else mean
        particles = torch.where(known, target, drawn)
        particles, log_weight = resample_where_few_count(particles, log_weight)
    chosen = torch.multinomial(log_weight.softmax(1), 1)[:, :, None]
    return particles.take_along_dim(chosen, 1)[:, 0]


def noise_known_values(x: Tensor, levels: Sequence[NoiseLevel]) -> list[Tensor]:
    """Return x (R, D) at every level, from the noisiest to the clean, by the forward process.

    Each level adds noise to the level below it.
    """
    path = [x]
    for then, now in pairwise(reversed(levels)):
        alpha, beta, _ = transition_coefficients(now, then)
        path.append(alpha * path[-1] + math.sqrt(beta) * torch.randn_like(x))
    return path[::-1]


# Systematic resampling: Douc & Cappé 2005, https://arxiv.org/abs/cs/0507025, section 2.4
def resample_where_few_count(particles: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return particles (R, K, D) and log-weights (R, K), resampled where few have the weight."""
    weight = log_weight.softmax(1)
    num_particles = weight.shape[1]
    is_low = 1 / weight.square().sum(1) < MIN_EFFECTIVE_SHARE * num_particles
    start = torch.rand(len(weight), 1).to(weight)
    points = (torch.arange(num_particles).to(weight) + start) / num_particles
    index = torch.searchsorted(weight.cumsum(1), points).clamp(max=num_particles - 1)
    resampled = particles.take_along_dim(index[:, :, None], 1)
    return (
        torch.where(is_low[:, None, None], resampled, particles),
        torch.where(is_low[:, None], 0.0, log_weight),
    )
