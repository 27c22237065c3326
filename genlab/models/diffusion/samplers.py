"""Samplers: functions of a denoiser, a start and the noise levels, so that each serves every network and every path.

A denoiser is a function (x (B, …), t) -> the expected x_0 (B, …): all rows are at the same noise level. Levels go from the
noisiest to the clean one; between two of them lies one step, whatever the training's own steps were. x = α x_0 + σ ε on
each: DDPM's paths have α² + σ² = 1, EDM's α = 1, those of flow matching α + σ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genlab.models.diffusion.schedule import Level, Variance

Denoiser = Callable[[Tensor, float], Tensor]
Noise = Callable[[Tensor], Tensor]
Interval = tuple[float, float]


def strided(T: int, steps: int) -> list[int]:
    """Return `steps` times 0, T/S, 2T/S, … with a uniform stride from 0 (Song et al. 2021, appendix D.2)."""
    return [i * T // steps for i in range(steps)]


def spread(T: int, steps: int) -> list[int]:
    """Return `steps` times spread evenly over 0, …, T − 1, with both ends (Nichol & Dhariwal 2021, section 4)."""
    return [round(i * (T - 1) / max(steps - 1, 1)) for i in range(steps)] if steps > 1 else [T - 1]


def quadratic(T: int, steps: int) -> list[int]:
    """Return `steps` times ⌊c i²⌋, from 0 to T − 1: closer where there is little noise (Song et al. 2021, appendix D.2)."""
    times = [(T - 1) * i * i // (steps - 1) ** 2 for i in range(steps)] if steps > 1 else [T - 1]
    return apart(times[::-1])


def karras(highest: float, lowest: float, steps: int, rho: float = 7.0) -> list[float]:
    """Return `steps` noise levels from the highest down, even in their ρ-th roots (Karras et al. 2022, 2206.00364, eq. 5)."""
    high, low = highest ** (1 / rho), lowest ** (1 / rho)
    return [(high + i / max(steps - 1, 1) * (low - high)) ** rho for i in range(steps)]


def apart(times: Sequence[int]) -> list[int]:
    """Return as many times (descending), ascending and all different: where levels are coarse, one lies nearest to several."""
    found: list[int] = []
    for i, time in enumerate(times):
        below = min(time, found[-1] - 1) if found else time
        found.append(max(below, len(times) - 1 - i))
    return found[::-1]


def spreads(now: Level, then: Level) -> tuple[float, float, float]:
    """Return α_{t|s}, and the variances of q(x_t | x_s) and of q(x_s | x_t, x_0), of a step from t = now to s = then."""
    alpha = now.alpha / then.alpha
    beta = now.sigma**2 - (alpha * then.sigma) ** 2
    return alpha, beta, beta * (then.sigma / now.sigma) ** 2


def inside(noise: float, interval: Interval | None) -> bool:
    """Whether a noise level σ/α lies in (low, high]; in None each does."""
    return interval is None or interval[0] < noise <= interval[1]


def posterior_mean(x0: Tensor, x: Tensor, now: Level, then: Level) -> Tensor:
    """Return the mean (B, …) of q(x_s | x_t, x_0) of a step from t = now to s = then (Ho et al. 2020, eq. 7)."""
    alpha, beta, _ = spreads(now, then)
    return then.alpha * beta / now.sigma**2 * x0 + alpha * (then.sigma / now.sigma) ** 2 * x


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    variance: Variance = "beta",
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by algorithm 2 of DDPM (Ho et al. 2020).

    Args:
        variance: σ² = β or β̃ of each step (section 3.2), or "learned": the denoiser gives (x_0, v), and σ² = β^v β̃^(1−v)
            (Nichol & Dhariwal 2021, eq. 15). The last step adds no noise.
    """
    for now, then in pairwise(levels):
        x0, v = denoise(x, now.t) if variance == "learned" else (denoise(x, now.t), None)
        x = posterior_mean(x0, x, now, then)
        if then.sigma:
            _, beta, beta_tilde = spreads(now, then)
            if v is None:
                std = (beta if variance == "beta" else beta_tilde) ** 0.5
            else:
                std = (0.5 * (v * math.log(beta) + (1 - v) * math.log(beta_tilde))).exp()
            x = x + std * noise(x)
    return x


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    eta: float = 0.0,
    noise_interval: Interval | None = None,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by DDIM (Song et al. 2021, 2010.02502, eqs. 12 and 16).

    Args:
        eta: 0 is deterministic; 1 over the same levels is `ancestral` with σ² = β̃.
        noise_interval: the σ/α between which it acts; see `heun`.
    """
    for now, then in pairwise(levels):
        x0 = denoise(x, now.t)
        eps = (x - now.alpha * x0) / now.sigma
        sigma = (
            eta * spreads(now, then)[2] ** 0.5 if eta and inside(now.noise, noise_interval) else 0.0
        )  # eq. 16
        x = then.alpha * x0 + max(then.sigma**2 - sigma**2, 0.0) ** 0.5 * eps  # eq. 12
        if sigma:
            x = x + sigma * noise(x)
    return x


@torch.no_grad()
def euler(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    straight: bool = False,
    shift: float = 1.0,
    level: Callable[[float], Level] | None = None,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by Euler's method on the probability-flow ODE.

    On every path it is the deterministic DDIM: to hold x_0 and ε still for a step is to go along the tangent.

    Args:
        straight: follow the ODE in the frame of flow matching; else in that of EDM. See `frame`.
        shift: the noise of each level is taken so many times; see `shifted`. With it `level` gives the level of a σ/α.
    """
    for now, then in pairwise(levels if shift == 1 else shifted(levels, shift, level)):
        (a, b), (c, d) = frame(now, straight), frame(then, straight)
        x = c * (x / a + (d - b) * slope(denoise(x, now.t), x, now, straight))
    return x


@torch.no_grad()
def heun(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    straight: bool = False,
    churn: float = 0.0,
    noise_interval: Interval | None = None,
    level: Callable[[float], Level] | None = None,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by Heun's method (Karras et al. 2022, 2206.00364, algorithms 1 and 2).

    Second order for two network evaluations a step, and for one in the last.

    Args:
        straight: follow the ODE in the frame of flow matching; else in that of EDM. See `frame`.
        churn: γ: noise is added before each step, to 1 + γ times its level, in which the errors of the steps before drown;
            at most √2 − 1, the paper's S_churn / steps. 0: none. With it `level` gives the level of a σ/α.
        noise_interval: the σ/α between which noise is added, the paper's S_tmin and S_tmax; None: at all.
    """
    for now, then in pairwise(levels):
        if churn and now.alpha and inside(now.noise, noise_interval):
            x, now = raised(x, now, level((1 + min(churn, 2**0.5 - 1)) * now.noise), noise)
        (a, b), (c, d) = frame(now, straight), frame(then, straight)
        first = slope(denoise(x, now.t), x, now, straight)
        u, x = x / a, c * (x / a + (d - b) * first)
        if then.sigma:
            second = slope(denoise(x, then.t), x, then, straight)
            x = c * (u + (d - b) * 0.5 * (first + second))
    return x


def shifted(
    levels: Iterable[Level], shift: float, level: Callable[[float], Level]
) -> Iterator[Level]:
    """Yield levels with σ/α so many times as high, but none above the first, which stays (Esser et al. 2024, 2403.03206, eq. 23).

    On straight paths the time t becomes shift·t / (1 + (shift − 1) t).
    """
    highest = None
    for at in levels:
        if highest is None:
            highest = at.noise
        elif at.sigma:
            at = level(min(shift * at.noise, highest))
        yield at


def raised(x: Tensor, now: Level, to: Level, noise: Noise) -> tuple[Tensor, Level]:
    """Return x (B, …) with as much noise more as leads to a noisier level, and that level; x as it is if it is no noisier."""
    scale = to.alpha / now.alpha
    more = to.sigma**2 - (scale * now.sigma) ** 2
    return (scale * x + more**0.5 * noise(x), to) if more > 0 else (x, now)


def frame(level: Level, straight: bool) -> tuple[float, float]:
    """Return the scale s and the clock τ in which the ODE of x/s is simple.

    EDM's frame is s = α, τ = σ/α: x/s = x_0 + τ ε. The straight one is s = α + σ, τ = σ/s: x/s = (1 − τ) x_0 + τ ε; it holds
    where there is no signal at all (α = 0) too.
    """
    scale = level.alpha + level.sigma if straight else level.alpha
    return scale, level.sigma / scale


def slope(x0: Tensor, x: Tensor, level: Level, straight: bool) -> Tensor:
    """Return d(x/s)/dτ (B, …): ε, or in the straight frame ε − x_0."""
    eps = (x - level.alpha * x0) / level.sigma
    return eps - x0 if straight else eps


@torch.no_grad()
def dpm_solver(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    eta: float = 0.0,
    noise_interval: Interval | None = None,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by DPM-Solver++(2M) (Lu et al. 2022, 2211.01095, algorithm 2).

    Second order for one network evaluation a step: x_0 is taken to go on as it did, in λ = log α/σ. The first step and the
    last, to where λ is infinite, hold it still.

    Args:
        eta: 0 follows the ODE, 1 the SDE of the same laws (SDE-DPM-Solver++(2M), the same paper, version 3).
        noise_interval: the σ/α between which it acts, elsewhere 0; see `heun`.
    """
    before, h_before = None, 0.0
    for now, then in pairwise(levels):
        x0 = denoise(x, now.t)
        h = half_log_snr(then) - half_log_snr(now)
        guess = x0
        if before is not None and then.sigma:
            r = h_before / h
            guess = x0 + (x0 - before) / (2 * r)
        share = eta if inside(now.noise, noise_interval) else 0.0
        forgotten = (
            math.exp(-share * h) if share else 1.0
        )  # what the noise of the SDE takes the place of
        x = (
            then.sigma / now.sigma * forgotten * x
            - then.alpha * math.expm1(-(1 + share) * h) * guess
        )
        if share and then.sigma:
            x = x + then.sigma * (-math.expm1(-2 * share * h)) ** 0.5 * noise(x)
        before, h_before = x0, h
    return x


def half_log_snr(level: Level) -> float:
    """Return λ = log α/σ."""
    if not level.alpha or not level.sigma:
        return math.inf if level.alpha else -math.inf
    return math.log(level.alpha / level.sigma)


SAMPLERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm_solver": dpm_solver,
}
