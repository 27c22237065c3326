"""Samplers: functions of a denoiser, a start and a schedule, so that each serves every network.

A denoiser is a function (x_t (B, …), t (1,) int64) -> the expected x_0: all rows are at the same time. Each step goes
from a time t to the one before it in `times`, whatever lies between: β = 1 − ᾱ_t/ᾱ_s is the noise of that whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genlab.models.diffusion.schedule import Schedule, Variance

Denoiser = Callable[[Tensor, Tensor], Tensor]


def strided(T: int, steps: int) -> list[int]:
    """Return `steps` times 0, T/S, 2T/S, … with a uniform stride from 0 (Song et al. 2021, appendix D.2)."""
    return [i * T // steps for i in range(steps)]


def spread(T: int, steps: int) -> list[int]:
    """Return `steps` times spread evenly over 0, …, T − 1, with both ends (Nichol & Dhariwal 2021, section 4)."""
    return [round(i * (T - 1) / max(steps - 1, 1)) for i in range(steps)] if steps > 1 else [T - 1]


def walk(schedule: Schedule, times: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    """Yield (t, ᾱ_t, ᾱ_s) from the last time to the first, s the time before t; the last step ends at ᾱ_s = 1."""
    ab = schedule.exact["alphas_bar"].tolist()
    for i in reversed(range(len(times))):
        yield times[i], ab[times[i]], ab[times[i - 1]] if i else 1.0


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    times: Sequence[int] | None = None,
    variance: Variance = "beta",
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by Algorithm 2 of DDPM, over all times or those given (ascending).

    Args:
        variance: σ² = β or β̃ of each step (section 3.2); the last step adds no noise.
    """
    for t, ab_t, ab_s in walk(schedule, range(schedule.T) if times is None else times):
        x0 = denoise(x, torch.full((1,), t, device=x.device))
        alpha = ab_t / ab_s
        beta = 1 - alpha
        beta_tilde = beta * (1 - ab_s) / (1 - ab_t)
        x = ab_s**0.5 * beta / (1 - ab_t) * x0 + alpha**0.5 * (1 - ab_s) / (1 - ab_t) * x  # eq. 7
        if ab_s < 1:
            x = x + (beta if variance == "beta" else beta_tilde) ** 0.5 * noise(x)
    return x


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    times: Sequence[int] | None = None,
    eta: float = 0.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by DDIM (Song et al. 2021, 2010.02502, eqs. 12 and 16).

    Args:
        eta: 0 is deterministic; 1 over the same times is `ancestral` with σ² = β̃.
    """
    for t, ab_t, ab_s in walk(schedule, range(schedule.T) if times is None else times):
        x0 = denoise(x, torch.full((1,), t, device=x.device))
        eps = (x - ab_t**0.5 * x0) / (1 - ab_t) ** 0.5
        sigma = eta * ((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)) ** 0.5  # eq. 16
        x = ab_s**0.5 * x0 + max(1 - ab_s - sigma**2, 0.0) ** 0.5 * eps  # eq. 12
        if sigma > 0:
            x = x + sigma * noise(x)
    return x
