"""Noise schedules: paths x_t = α_t x_0 + σ_t ε from data to noise, and their tables.

DDPM's notation (Ho et al. 2020, https://arxiv.org/abs/2006.11239): β_t, ᾱ_t = ∏ (1 − β_s), so
α_t = √ᾱ_t and σ_t² = 1 − ᾱ_t. Times count from 0 here: t = 0 is the paper's t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genlab.nn.broadcast import expand_like

ScheduleName = Literal["linear", "cosine", "sigmoid"]
Objective = Literal["eps", "x0", "v"]
Variance = Literal["beta", "beta_tilde", "posterior", "learned"]
TimestepSpacing = Literal["uniform", "quadratic"]


class NoiseLevel(NamedTuple):
    """A noise level of x = α x_0 + σ ε, with the time t that the network receives for it."""

    t: float
    alpha: float
    sigma: float

    @property
    def noise_to_signal(self) -> float:
        """The ratio σ/α, which is infinite without signal."""
        return self.sigma / self.alpha if self.alpha else math.inf


CLEAN = NoiseLevel(0.0, 1.0, 0.0)  # the end of every path; the network is never evaluated here


def linear_betas(T: int) -> Tensor:
    """Return β (T,) from 1e-4 to 0.02 (section 4).

    Other T than 1000 scale it so that the total noise stays the same.
    """
    scale = 1000 / T
    return torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=0.999)


def betas_from_alphas_bar(alphas_bar: Tensor) -> Tensor:
    """Return β (T,) of ᾱ (T + 1,), whose first value is that before the first step."""
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


def cosine_betas(T: int, s: float = 0.008) -> Tensor:
    """Return β (T,) of the cosine schedule of Nichol & Dhariwal 2021, eq. 17.

    ᾱ_t = f(t)/f(0) with f(t) = cos²((t/T + s)/(1 + s) · π/2).
    """
    t = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return betas_from_alphas_bar(f / f[0])


def sigmoid_betas(T: int, start: float = -3.0, end: float = 3.0) -> Tensor:
    """Return β (T,) of the sigmoid schedule, with which ᾱ_t falls as a sigmoid from 1 to 0.

    Jabri et al. 2022, https://arxiv.org/abs/2212.11972, appendix.
    """
    t = torch.arange(T + 1, dtype=torch.float64) / T
    s = torch.sigmoid(start + t * (end - start))
    return betas_from_alphas_bar((s[-1] - s) / (s[-1] - s[0]))


BETA_SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return β (T,) rescaled so that the last ᾱ is 0: √ᾱ is shifted and stretched.

    Lin et al. 2024, https://arxiv.org/abs/2305.08891, algorithm 1.
    """
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ab = root**2
    return 1 - ab / torch.cat([torch.ones(1, dtype=torch.float64), ab[:-1]])


class NoiseSchedule(nn.Module):
    """The noise schedule of T steps with its tables (T,).

    The tables are buffers in the module's precision; `float64_tables` holds them in float64 on the
    CPU.
    """

    betas: Tensor
    alphas_bar: Tensor
    float64_tables: dict[str, Tensor]

    def __init__(
        self, name: ScheduleName = "linear", T: int = 1000, *, zero_terminal_snr: bool = False
    ) -> None:
        super().__init__()
        self.T = T
        betas = BETA_SCHEDULES[name](T)
        if zero_terminal_snr:
            betas = rescale_zero_terminal_snr(betas)
        alphas_bar = torch.cumprod(1 - betas, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])  # ᾱ_{t−1}
        beta_tilde = betas * (1 - previous) / (1 - alphas_bar)  # eq. 7
        # The logarithm of β̃_0 = 0 is undefined: the first is clipped to the second, as in the
        # authors' code.
        clipped = torch.cat([beta_tilde[1:2], beta_tilde[1:]]) if T > 1 else betas
        self.float64_tables = {
            "betas": betas,
            "alphas_bar": alphas_bar,
            "sqrt_ab": alphas_bar.sqrt(),
            "sqrt_1_ab": (1 - alphas_bar).sqrt(),
            "beta_tilde": beta_tilde,
            "beta_tilde_clipped": clipped,
            # the two weights of the mean in eq. 7
            "mean_x0": previous.sqrt() * betas / (1 - alphas_bar),
            "mean_xt": (1 - betas).sqrt() * (1 - previous) / (1 - alphas_bar),
        }
        for key, value in self.float64_tables.items():
            self.register_buffer(key, value.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> NoiseSchedule:
        super()._apply(fn, recurse)
        # a change of precision starts from the float64 values
        for key, value in self.float64_tables.items():
            getattr(self, key).copy_(value)
        return self

    def noise_levels(self, times: Sequence[int]) -> list[NoiseLevel]:
        """Return the noise levels of `times` (ascending), from the noisiest to the clean one."""
        alpha = self.float64_tables["sqrt_ab"].tolist()
        sigma = self.float64_tables["sqrt_1_ab"].tolist()
        return [*(NoiseLevel(t, alpha[t], sigma[t]) for t in reversed(times)), CLEAN]

    def table_values_at(self, key: str, t: Tensor, like: Tensor) -> Tensor:
        """Return the values of the table `key` at t (B,), shaped (B, 1, …) to multiply `like`."""
        return expand_like(getattr(self, key)[t], like)

    def learned_log_variance(self, v: Tensor, t: Tensor) -> Tensor:
        """Return log σ_t² (B, …) of p(x_{t−1} | x_t) from the output v (B, …).

        It is log β at v = 1 and log β̃ at v = 0: Nichol & Dhariwal 2021, eq. 15.
        """
        log_beta = self.table_values_at("betas", t, v).log()
        log_beta_tilde = self.table_values_at("beta_tilde_clipped", t, v).log()
        return v * log_beta + (1 - v) * log_beta_tilde

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (eq. 4)."""
        return (
            self.table_values_at("sqrt_ab", t, x0) * x0
            + self.table_values_at("sqrt_1_ab", t, x0) * eps
        )

    def q_posterior(self, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (B, …) and variance (B, 1, …) of q(x_{t−1} | x_t, x_0) (eqs. 6 and 7)."""
        mean = (
            self.table_values_at("mean_x0", t, xt) * x0
            + self.table_values_at("mean_xt", t, xt) * xt
        )
        return mean, self.table_values_at("beta_tilde", t, xt)

    def training_target(self, objective: Objective, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the network's target: ε, x_0, or v = √ᾱ ε − √(1 − ᾱ) x_0.

        v-prediction: Salimans & Ho 2022, 2202.00512.
        """
        if objective == "eps":
            return eps
        if objective == "x0":
            return x0
        return (
            self.table_values_at("sqrt_ab", t, x0) * eps
            - self.table_values_at("sqrt_1_ab", t, x0) * x0
        )

    def x0_from_prediction(
        self, objective: Objective, prediction: Tensor, xt: Tensor, t: Tensor
    ) -> Tensor:
        """Return the x_0 that corresponds to a prediction of ε, x_0 or v at (x_t, t)."""
        if objective == "eps":
            noise = self.table_values_at("sqrt_1_ab", t, xt) * prediction
            return (xt - noise) / self.table_values_at("sqrt_ab", t, xt)
        if objective == "x0":
            return prediction
        return (
            self.table_values_at("sqrt_ab", t, xt) * xt
            - self.table_values_at("sqrt_1_ab", t, xt) * prediction
        )

    def eps_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the noise ε that turns x_0 into x_t."""
        return (xt - self.table_values_at("sqrt_ab", t, xt) * x0) / self.table_values_at(
            "sqrt_1_ab", t, xt
        )

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio ᾱ/(1 − ᾱ) (B,) at t (B,)."""
        return self.alphas_bar[t] / (1 - self.alphas_bar[t])
