"""Paths from data to noise, x_t = α_t x_0 + σ_t ε, and what follows from them alone.

DDPM's letters (Ho et al. 2020, https://arxiv.org/abs/2006.11239): β_t, ᾱ_t = ∏ (1 − β_s), so α_t = √ᾱ_t and σ_t² = 1 − ᾱ_t.
Its times count from 0 here: t = 0 is the paper's t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Name = Literal["linear", "cosine", "sigmoid"]
Objective = Literal["eps", "x0", "v"]
Variance = Literal["beta", "beta_tilde", "learned"]
Spacing = Literal["uniform", "quadratic"]


class Level(NamedTuple):
    """A noise level: x = α x_0 + σ ε, and the time t by which the network knows it."""

    t: float
    alpha: float
    sigma: float

    @property
    def noise(self) -> float:
        """σ/α: infinite where there is no signal."""
        return self.sigma / self.alpha if self.alpha else math.inf


CLEAN = Level(0.0, 1.0, 0.0)  # where every path ends; no network is asked here


def linear_betas(T: int) -> Tensor:
    """Return β from 1e-4 to 0.02 (section 4); other T than 1000 keep the total noise of it."""
    scale = 1000 / T
    return torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=0.999)


def betas_of(alphas_bar: Tensor) -> Tensor:
    """Return the β_t (T,) of ᾱ (T + 1,), from before the first step on."""
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


def cosine_betas(T: int, s: float = 0.008) -> Tensor:
    """Return β of ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2) (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return betas_of(f / f[0])


def sigmoid_betas(T: int, start: float = -3.0, end: float = 3.0) -> Tensor:
    """Return β of ᾱ_t falling as a sigmoid from 1 to 0 (Jabri et al. 2022, https://arxiv.org/abs/2212.11972, appendix)."""
    t = torch.arange(T + 1, dtype=torch.float64) / T
    s = torch.sigmoid(start + t * (end - start))
    return betas_of((s[-1] - s) / (s[-1] - s[0]))


BETAS = {"linear": linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas}


def without_signal(betas: Tensor) -> Tensor:
    """Return β whose last ᾱ is 0: √ᾱ shifted and stretched (Lin et al. 2024, https://arxiv.org/abs/2305.08891, algorithm 1)."""
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ab = root**2
    return 1 - ab / torch.cat([torch.ones(1, dtype=torch.float64), ab[:-1]])


class Schedule(nn.Module):
    """The noise schedule of T steps with its tables (T,): buffers in the module's precision, `exact` in float64 on the CPU."""

    def __init__(self, name: Name = "linear", T: int = 1000, *, zero_snr: bool = False) -> None:
        super().__init__()
        self.T = T
        betas = BETAS[name](T)
        if zero_snr:
            betas = without_signal(betas)
        alphas_bar = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_bar[:-1]])  # ᾱ_{t−1}
        beta_tilde = betas * (1 - before) / (1 - alphas_bar)  # eq. 7
        # β̃_0 = 0 has no logarithm: the first is clipped to the second, as in the authors' code.
        clipped = torch.cat([beta_tilde[1:2], beta_tilde[1:]]) if T > 1 else betas
        self.exact = {
            "betas": betas,
            "alphas_bar": alphas_bar,
            "sqrt_ab": alphas_bar.sqrt(),
            "sqrt_1_ab": (1 - alphas_bar).sqrt(),
            "beta_tilde": beta_tilde,
            "beta_tilde_clipped": clipped,
            "mean_x0": before.sqrt() * betas / (1 - alphas_bar),  # the two weights of eq. 7's mean
            "mean_xt": (1 - betas).sqrt() * (1 - before) / (1 - alphas_bar),
        }
        for key, value in self.exact.items():
            self.register_buffer(key, value.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for (
            key,
            value,
        ) in self.exact.items():  # a change of precision starts from the float64 values
            getattr(self, key).copy_(value)
        return self

    def levels(self, times: Sequence[int]) -> list[Level]:
        """Return the noise levels of `times` (ascending) from the noisiest to the clean one."""
        alpha, sigma = self.exact["sqrt_ab"].tolist(), self.exact["sqrt_1_ab"].tolist()
        return [*(Level(t, alpha[t], sigma[t]) for t in reversed(times)), CLEAN]

    def at(self, key: str, t: Tensor, like: Tensor) -> Tensor:
        """Return the table `key` at t (B,), shaped (B, 1, …) to multiply `like`."""
        return getattr(self, key)[t].view(-1, *[1] * (like.dim() - 1))

    def log_variance(self, v: Tensor, t: Tensor) -> Tensor:
        """Return log σ_t² (B, …) of p(x_{t−1} | x_t) from v (B, …): log β at 1, log β̃ at 0 (Nichol & Dhariwal 2021, eq. 15)."""
        return (
            v * self.at("betas", t, v).log() + (1 - v) * self.at("beta_tilde_clipped", t, v).log()
        )

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (eq. 4)."""
        return self.at("sqrt_ab", t, x0) * x0 + self.at("sqrt_1_ab", t, x0) * eps

    def q_posterior(self, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(x_{t−1} | x_t, x_0) (eqs. 6–7); the variance is shaped (B, 1, …)."""
        mean = self.at("mean_x0", t, xt) * x0 + self.at("mean_xt", t, xt) * xt
        return mean, self.at("beta_tilde", t, xt)

    def target(self, objective: Objective, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what the network learns: ε, x_0, or v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans & Ho 2022, 2202.00512)."""
        if objective == "eps":
            return eps
        if objective == "x0":
            return x0
        return self.at("sqrt_ab", t, x0) * eps - self.at("sqrt_1_ab", t, x0) * x0

    def to_x0(self, objective: Objective, prediction: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the x_0 that a prediction of ε, x_0 or v at (x_t, t) stands for."""
        if objective == "eps":
            return (xt - self.at("sqrt_1_ab", t, xt) * prediction) / self.at("sqrt_ab", t, xt)
        if objective == "x0":
            return prediction
        return self.at("sqrt_ab", t, xt) * xt - self.at("sqrt_1_ab", t, xt) * prediction

    def to_eps(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the noise ε that leads from x_0 to x_t."""
        return (xt - self.at("sqrt_ab", t, xt) * x0) / self.at("sqrt_1_ab", t, xt)

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio ᾱ/(1 − ᾱ) (B,) at t (B,)."""
        return self.alphas_bar[t] / (1 - self.alphas_bar[t])
