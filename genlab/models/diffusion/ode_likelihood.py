"""The density of the probability-flow ODE: Song et al. 2021, 2011.13456.

Score-Based Generative Modeling through Stochastic Differential Equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genlab.console import track
from genlab.models.diffusion.samplers import Denoiser, ode_derivative, ode_scale_and_time
from genlab.models.diffusion.schedule import NoiseLevel


def hutchinson_probes(x: Tensor, num_probes: int) -> tuple[Tensor, float]:
    """Return probe vectors e (K, B, …) and the weight of each in Σ_e eᵀ J e ≈ tr J.

    The probes are random signs. If the data has at most `num_probes` dimensions they are the unit
    vectors, and the trace is exact.
    """
    dim = x[0].numel()
    if dim <= num_probes:
        unit = torch.eye(dim, dtype=x.dtype, device=x.device).view(dim, 1, *x.shape[1:])
        return unit.expand(dim, *x.shape), 1.0
    signs = torch.randint(2, (num_probes, *x.shape), device=x.device).to(x) * 2 - 1
    return signs, 1 / num_probes


def ode_log_prob(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    *,
    prior_std: float = 1.0,
    num_probes: int = 1,
) -> Tensor:
    """Return an estimate (B,) of log p(x), in nats, of data x (B, …).

    p is the model's distribution with the noise of the first level. In the coordinates u = x/s, τ
    of straight paths (see `samplers.ode_scale_and_time`) the ODE is du/dτ = v(u, τ), and along it d
    log p/dτ = −∇·v (eq. 39). Heun's method integrates both to the last level, where p = N(0,
    prior_std²). The divergence is Hutchinson's estimate E[eᵀ (∂v/∂u) e] with random signs e (eq.
    40); it is exact if the data has at most `num_probes` dimensions.

    Args:
        levels: from the least noisy to the noisiest, all with noise.
    """
    dim = x[0].numel()
    probes, probe_weight = hutchinson_probes(x, num_probes)

    def velocity_and_divergence(u: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Return v (B, …) and ∇·v (B,) at u (B, …)."""
        scale, _ = ode_scale_and_time(level, straight_path=True)
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            x0 = denoise(scale * u, level.t)
            v = ode_derivative(x0, scale * u, level, straight_path=True)
            products = [
                (torch.autograd.grad(v, u, e, retain_graph=True)[0] * e).flatten(1).sum(1)
                for e in probes
            ]
        divergence = sum(products, torch.zeros_like(products[0]))
        return v.detach(), divergence.detach() * probe_weight

    # x is taken for x_0, and its own noise for that of the first level
    x_scale = levels[0].alpha / ode_scale_and_time(levels[0], straight_path=True)[0]
    u, total = x_scale * x, x.new_full((len(x),), dim * math.log(x_scale))
    before = velocity_and_divergence(u, levels[0])
    for now, then in track(pairwise(levels), "likelihood", len(levels) - 1, unit="steps"):
        tau_now = ode_scale_and_time(now, straight_path=True)[1]
        h = ode_scale_and_time(then, straight_path=True)[1] - tau_now
        after = velocity_and_divergence(u + h * before[0], then)
        u = u + 0.5 * h * (before[0] + after[0])
        total = total + 0.5 * h * (before[1] + after[1])
        before = velocity_and_divergence(u, then)
    scale, _ = ode_scale_and_time(levels[-1], straight_path=True)
    log_normalizer = math.log(2 * math.pi * prior_std**2)
    log_prior = -0.5 * ((scale * u / prior_std) ** 2 + log_normalizer).flatten(1).sum(1)
    return total + log_prior + dim * math.log(scale)
