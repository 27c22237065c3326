"""Samplers for every denoising network and every path from noise to data.

A denoiser is a function (x (B, …), t) -> E[x_0 | x] (B, …), where all rows have the same noise
level. Levels go from the noisiest to the clean one. A step leads from one level to the next,
whatever steps the training used. On each level x = α x_0 + σ ε: DDPM's paths have α² + σ² = 1,
EDM's α = 1, those of flow matching α + σ = 1. Every sampler reports the states that it passes
through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from genlab.models.diffusion.schedule import NoiseLevel, Variance

Denoiser = Callable[[Tensor, float], Any]  # x_0, or (x_0, v) with learned variances
NoiseFn = Callable[[Tensor], Tensor]  # draws standard noise of the shape of its argument
LevelAt = Callable[[float], NoiseLevel]  # the level of a path at a given σ/α
Interval = tuple[float, float]
# receives the level, x (B, …) and the prediction of x_0 (B, …) of each step, before it is taken
StepReport = Callable[[NoiseLevel, Tensor, Tensor], None]

MAX_CHURN = 2**0.5 - 1


# --- times and noise levels -----------------------------------------------------------------------


def ddim_timesteps(T: int, steps: int) -> list[int]:
    """Return `steps` times 0, T/S, 2T/S, … with a uniform stride from 0.

    Song et al. 2021, appendix D.2.
    """
    return [i * T // steps for i in range(steps)]


def linspace_timesteps(T: int, steps: int) -> list[int]:
    """Return `steps` times spaced evenly over 0, …, T − 1, both ends included.

    Nichol & Dhariwal 2021, section 4.
    """
    return [round(i * (T - 1) / max(steps - 1, 1)) for i in range(steps)] if steps > 1 else [T - 1]


def quadratic_timesteps(T: int, steps: int) -> list[int]:
    """Return `steps` times ⌊c i²⌋ from 0 to T − 1, denser where there is little noise.

    Song et al. 2021, appendix D.2.
    """
    times = [(T - 1) * i * i // (steps - 1) ** 2 for i in range(steps)] if steps > 1 else [T - 1]
    return make_timesteps_distinct(times[::-1])


def karras_sigmas(highest: float, lowest: float, steps: int, rho: float = 7.0) -> list[float]:
    """Return `steps` noise levels from the highest down, evenly spaced in their ρ-th roots.

    Karras et al. 2022, 2206.00364, eq. 5.
    """
    high, low = highest ** (1 / rho), lowest ** (1 / rho)
    return [(high + i / max(steps - 1, 1) * (low - high)) ** rho for i in range(steps)]


def make_timesteps_distinct(times: Sequence[int]) -> list[int]:
    """Return as many times as given (descending), now ascending and all different.

    Times repeat where levels are coarse, so that one time is the nearest to several levels.
    """
    distinct: list[int] = []
    for i, time in enumerate(times):
        candidate = min(time, distinct[-1] - 1) if distinct else time
        distinct.append(max(candidate, len(times) - 1 - i))
    return distinct[::-1]


def shift_levels(
    levels: Iterable[NoiseLevel], time_shift: float, nearest_noise_level: LevelAt
) -> Iterator[NoiseLevel]:
    """Yield the levels with σ/α multiplied by `time_shift`, but none noisier than the first.

    On straight paths the time t becomes shift·t / (1 + (shift − 1) t) (Esser et al. 2024,
    2403.03206, eq. 23).
    """
    highest = None
    for level in levels:
        if highest is None:
            highest = level.noise_to_signal
        elif level.sigma:
            level = nearest_noise_level(min(time_shift * level.noise_to_signal, highest))
        yield level


def is_noise_in_interval(noise_to_signal: float, interval: Interval | None) -> bool:
    """Return whether low < σ/α ≤ high; the interval None contains all noise levels."""
    return interval is None or interval[0] < noise_to_signal <= interval[1]


# --- one step -------------------------------------------------------------------------------------


def transition_coefficients(now: NoiseLevel, then: NoiseLevel) -> tuple[float, float, float]:
    """Return α_{t|s} and the variances of q(x_t | x_s) and q(x_s | x_t, x_0).

    The step leads from t = now to s = then.
    """
    alpha = now.alpha / then.alpha
    beta = now.sigma**2 - (alpha * then.sigma) ** 2
    return alpha, beta, beta * (then.sigma / now.sigma) ** 2


def posterior_mean(x0: Tensor, x: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Return the mean (B, …) of q(x_s | x_t, x_0) for a step from t = now to s = then.

    Ho et al. 2020, eq. 7.
    """
    alpha, beta, _ = transition_coefficients(now, then)
    return then.alpha * beta / now.sigma**2 * x0 + alpha * (then.sigma / now.sigma) ** 2 * x


def posterior_variance(now: NoiseLevel, then: NoiseLevel, data_std: float) -> float:
    """Return the variance of q(x_s | x_t) of data N(0, data_std²), for a step from t to s.

    β̃ is the variance given x_0. That of x_0 given x_t is added, times the square of x_0's weight in
    the mean (Bao et al. 2022, https://arxiv.org/abs/2201.06503, theorem 1). Samples of normal data
    then have the right variance in any number of steps; β is the limit of a large data_std.
    """
    _, beta, beta_tilde = transition_coefficients(now, then)
    power = now.alpha**2 * data_std**2 + now.sigma**2
    x0_variance = data_std**2 * now.sigma**2 / power
    return beta_tilde + (then.alpha * beta / now.sigma**2) ** 2 * x0_variance


def add_noise_up_to(
    x: Tensor, now: NoiseLevel, target: NoiseLevel, noise: NoiseFn
) -> tuple[Tensor, NoiseLevel]:
    """Return x (B, …) with noise added up to the level `target`, and that level.

    If `target` is not noisier than `now`, x and `now` are returned unchanged.
    """
    scale = target.alpha / now.alpha
    variance = target.sigma**2 - (scale * now.sigma) ** 2
    return (scale * x + variance**0.5 * noise(x), target) if variance > 0 else (x, now)


def ode_scale_and_time(level: NoiseLevel, straight_path: bool) -> tuple[float, float]:
    """Return the scale s and the clock τ in which the probability-flow ODE of x/s is simple.

    EDM's coordinates are s = α, τ = σ/α: x/s = x_0 + τ ε. Those of straight paths are s = α + σ,
    τ = σ/s: x/s = (1 − τ) x_0 + τ ε. The latter also hold without signal (α = 0).
    """
    scale = level.alpha + level.sigma if straight_path else level.alpha
    return scale, level.sigma / scale


def ode_derivative(x0: Tensor, x: Tensor, level: NoiseLevel, straight_path: bool) -> Tensor:
    """Return d(x/s)/dτ (B, …): ε, or ε − x_0 in the coordinates of straight paths."""
    eps = (x - level.alpha * x0) / level.sigma
    return eps - x0 if straight_path else eps


def half_log_snr(level: NoiseLevel) -> float:
    """Return λ = log α/σ."""
    if not level.alpha or not level.sigma:
        return math.inf if level.alpha else -math.inf
    return math.log(level.alpha / level.sigma)


# --- the samplers ---------------------------------------------------------------------------------


def ignore_step(level: NoiseLevel, x: Tensor, x0: Tensor) -> None:
    """Ignore the report of a step."""


@torch.no_grad()
def ancestral(
    denoise: Denoiser,
    x: Tensor,
    levels: Iterable[NoiseLevel],
    *,
    variance: Variance = "beta",
    data_std: float = 1.0,
    noise: NoiseFn = torch.randn_like,
    report: StepReport = ignore_step,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by algorithm 2 of DDPM (Ho et al. 2020).

    Args:
        variance: σ² = β or β̃ of each step (section 3.2), of which the first is too large and the
            second too small if steps are few; "posterior", see `posterior_variance`; or "learned":
            the denoiser gives (x_0, v) and σ² = β^v β̃^(1−v) (Nichol & Dhariwal 2021, eq. 15). The
            last step adds no noise.
        data_std: standard deviation of a value of the data, for "posterior".
    """
    for now, then in pairwise(levels):
        x0, v = denoise(x, now.t) if variance == "learned" else (denoise(x, now.t), None)
        report(now, x, x0)
        x = posterior_mean(x0, x, now, then)
        if then.sigma:
            _, beta, beta_tilde = transition_coefficients(now, then)
            std: float | Tensor
            if variance == "posterior":
                std = posterior_variance(now, then, data_std) ** 0.5
            elif v is None:
                std = (beta if variance == "beta" else beta_tilde) ** 0.5
            else:
                std = (0.5 * (v * math.log(beta) + (1 - v) * math.log(beta_tilde))).exp()
            x = x + std * noise(x)
    return x


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x: Tensor,
    levels: Iterable[NoiseLevel],
    *,
    eta: float = 0.0,
    noise_sigma_interval: Interval | None = None,
    noise: NoiseFn = torch.randn_like,
    report: StepReport = ignore_step,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by DDIM.

    Song et al. 2021, 2010.02502, eqs. 12 and 16.

    Args:
        eta: 0 is deterministic; 1 over the same levels is `ancestral` with σ² = β̃.
        noise_sigma_interval: the interval of σ/α in which eta acts; see `heun`.
    """
    for now, then in pairwise(levels):
        x0 = denoise(x, now.t)
        report(now, x, x0)
        eps = (x - now.alpha * x0) / now.sigma
        sigma = 0.0
        if eta and is_noise_in_interval(now.noise_to_signal, noise_sigma_interval):
            sigma = eta * transition_coefficients(now, then)[2] ** 0.5  # eq. 16
        x = then.alpha * x0 + max(then.sigma**2 - sigma**2, 0.0) ** 0.5 * eps  # eq. 12
        if sigma:
            x = x + sigma * noise(x)
    return x


@torch.no_grad()
def euler(
    denoise: Denoiser,
    x: Tensor,
    levels: Iterable[NoiseLevel],
    *,
    straight_path: bool = False,
    time_shift: float = 1.0,
    nearest_noise_level: LevelAt | None = None,
    report: StepReport = ignore_step,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by Euler's method on the probability-flow ODE.

    On every path this is deterministic DDIM: constant x_0 and ε during a step give the tangent.

    Args:
        straight_path: integrate in the coordinates of flow matching instead of EDM's; see
            `ode_scale_and_time`.
        time_shift: factor of σ/α of each level; see `shift_levels`. Other values than 1 need
            `nearest_noise_level`, which gives the level at a σ/α.
    """
    if time_shift != 1:
        assert nearest_noise_level is not None
        levels = shift_levels(levels, time_shift, nearest_noise_level)
    for now, then in pairwise(levels):
        (a, b), (c, d) = (
            ode_scale_and_time(now, straight_path),
            ode_scale_and_time(then, straight_path),
        )
        x0 = denoise(x, now.t)
        report(now, x, x0)
        derivative = ode_derivative(x0, x, now, straight_path)
        x = c * (x / a + (d - b) * derivative)
    return x


@torch.no_grad()
def heun(
    denoise: Denoiser,
    x: Tensor,
    levels: Iterable[NoiseLevel],
    *,
    straight_path: bool = False,
    churn_gamma: float = 0.0,
    noise_sigma_interval: Interval | None = None,
    nearest_noise_level: LevelAt | None = None,
    noise: NoiseFn = torch.randn_like,
    report: StepReport = ignore_step,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by Heun's method.

    Karras et al. 2022, 2206.00364, algorithms 1 and 2. Second order for two network evaluations per
    step, and one in the last step.

    Args:
        straight_path: integrate in the coordinates of flow matching instead of EDM's; see
            `ode_scale_and_time`.
        churn_gamma: γ: before each step noise is added, up to 1 + γ times its level, which hides
            the errors of earlier steps. The paper's γ = S_churn / steps, at most √2 − 1; 0 disables
            it. Other values need `nearest_noise_level`, which gives the level at a σ/α.
        noise_sigma_interval: the interval of σ/α in which noise is added, the paper's S_tmin and
            S_tmax; None stands for all levels.
    """
    for now, then in pairwise(levels):
        if (
            churn_gamma
            and now.alpha
            and is_noise_in_interval(now.noise_to_signal, noise_sigma_interval)
        ):
            assert nearest_noise_level is not None
            target = nearest_noise_level((1 + min(churn_gamma, MAX_CHURN)) * now.noise_to_signal)
            x, now = add_noise_up_to(x, now, target, noise)
        (a, b), (c, d) = (
            ode_scale_and_time(now, straight_path),
            ode_scale_and_time(then, straight_path),
        )
        x0 = denoise(x, now.t)
        report(now, x, x0)
        first = ode_derivative(x0, x, now, straight_path)
        u, x = x / a, c * (x / a + (d - b) * first)
        if then.sigma:
            second = ode_derivative(denoise(x, then.t), x, then, straight_path)
            x = c * (u + (d - b) * 0.5 * (first + second))
    return x


@torch.no_grad()
def dpm_solver(
    denoise: Denoiser,
    x: Tensor,
    levels: Iterable[NoiseLevel],
    *,
    eta: float = 0.0,
    noise_sigma_interval: Interval | None = None,
    noise: NoiseFn = torch.randn_like,
    report: StepReport = ignore_step,
) -> Tensor:
    """Return x_0 (B, …) from the noise x (B, …) by DPM-Solver++(2M).

    Lu et al. 2022, 2211.01095, algorithm 2. Second order for one network evaluation per step: x_0
    is extrapolated linearly in λ = log α/σ. In the first step, and in the last one, where λ becomes
    infinite, x_0 is constant.

    Args:
        eta: 0 follows the ODE, 1 the SDE with the same marginals (SDE-DPM-Solver++(2M), version 3
            of the same paper).
        noise_sigma_interval: the interval of σ/α in which eta acts; see `heun`.
    """
    previous_x0: Tensor | None = None
    previous_h = 0.0
    for now, then in pairwise(levels):
        x0 = denoise(x, now.t)
        report(now, x, x0)
        h = half_log_snr(then) - half_log_snr(now)
        extrapolated = x0
        if previous_x0 is not None and then.sigma:
            r = previous_h / h
            extrapolated = x0 + (x0 - previous_x0) / (2 * r)
        local_eta = eta if is_noise_in_interval(now.noise_to_signal, noise_sigma_interval) else 0.0
        # the share of the present noise that fresh noise of the SDE does not replace
        kept = math.exp(-local_eta * h) if local_eta else 1.0
        x = (
            then.sigma / now.sigma * kept * x
            - then.alpha * math.expm1(-(1 + local_eta) * h) * extrapolated
        )
        if local_eta and then.sigma:
            x = x + then.sigma * (-math.expm1(-2 * local_eta * h)) ** 0.5 * noise(x)
        previous_x0, previous_h = x0, h
    return x


def normal_std_ratio(
    integrate: Callable[..., Tensor],
    levels: Sequence[NoiseLevel],
    level_at: LevelAt,
    *,
    data_std: float,
    prior_std: float,
    adds_noise: bool,
) -> float:
    """Return the ratio of the samples' deviation to the data's, for data N(0, data_std²).

    It is exact, because all samplers are linear in x and their noise where the denoiser is: x is
    the vector of the coefficients of independent noises.

    Args:
        integrate: a sampler (denoise, x, levels) -> x_0.
        level_at: returns the level of a time.
        adds_noise: whether `integrate` takes `noise`.
    """
    by_time = {level.t: level for level in levels}
    num_noises = 0

    def denoise(x: Tensor, t: float) -> Tensor:
        level = by_time.get(t) or level_at(t)
        power = (level.alpha * data_std) ** 2 + level.sigma**2
        return level.alpha * data_std**2 / power * x

    def noise(x: Tensor) -> Tensor:
        nonlocal num_noises
        num_noises += 1
        unit = torch.zeros_like(x)
        unit[num_noises] = 1.0
        return unit

    x = torch.zeros(2 * len(levels) + 1, dtype=torch.float64)
    x[0] = prior_std
    options = {"noise": noise} if adds_noise else {}
    return integrate(denoise, x, levels, **options).norm().item() / data_std


@dataclass(frozen=True)
class Sampler:
    """A sampling function with the names of its options.

    Attributes:
        function: (denoise, x (B, …), levels, **options) -> x_0 (B, …).
        options: the options that a user may set, as `sampler.eta`.
        model_options: the options that the model sets.
    """

    function: Callable[..., Tensor]
    options: tuple[str, ...] = ()
    model_options: tuple[str, ...] = ()


SAMPLERS = {
    "ancestral": Sampler(ancestral, options=("variance",), model_options=("data_std",)),
    "ddim": Sampler(ddim, options=("eta", "noise_sigma_interval")),
    "euler": Sampler(
        euler, options=("time_shift",), model_options=("straight_path", "nearest_noise_level")
    ),
    "heun": Sampler(
        heun,
        options=("churn_gamma", "noise_sigma_interval"),
        model_options=("straight_path", "nearest_noise_level"),
    ),
    "dpm_solver": Sampler(dpm_solver, options=("eta", "noise_sigma_interval")),
}
