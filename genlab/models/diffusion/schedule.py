"""The forward process of DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239), and what follows from it alone.

Letters are the paper's: β_t, α_t = 1 − β_t, ᾱ_t = ∏ α_s, β̃_t. Times count from 0 here: t = 0 is the paper's t = 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Name = Literal["linear", "cosine"]
Objective = Literal["eps", "x0", "v"]
Variance = Literal["beta", "beta_tilde"]


def linear_betas(T: int) -> Tensor:
    """Return β from 1e-4 to 0.02 (section 4); other T than 1000 keep the total noise of it."""
    scale = 1000 / T
    return torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=0.999)


def cosine_betas(T: int, s: float = 0.008) -> Tensor:
    """Return β of ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2) (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.arange(T + 1, dtype=torch.float64) / T
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


class Schedule(nn.Module):
    """The noise schedule with its tables (T,): buffers in the module's precision, `exact` in float64 on the CPU."""

    def __init__(self, name: Name = "linear", T: int = 1000) -> None:
        super().__init__()
        self.T = T
        betas = BETAS[name](T)
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
        for key, value in self.exact.items():  # a change of precision starts from the float64 values
            getattr(self, key).copy_(value)
        return self

    def at(self, key: str, t: Tensor, like: Tensor) -> Tensor:
        """Return the table `key` at t (B,), shaped (B, 1, …) to multiply `like`."""
        return getattr(self, key)[t].view(-1, *[1] * (like.dim() - 1))

    def model_variance(self, kind: Variance, t: Tensor, like: Tensor) -> Tensor:
        """Return σ_t² of p(x_{t−1} | x_t) (section 3.2), where β̃_0 is clipped to β̃_1."""
        return self.at("betas" if kind == "beta" else "beta_tilde_clipped", t, like)

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
