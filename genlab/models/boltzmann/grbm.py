"""GRBM: Hinton & Salakhutdinov 2006, https://doi.org/10.1126/science.1127647, with the energy of Cho, Ilin & Raiko 2011.

Cho, Ilin & Raiko: Improved learning of Gaussian–Bernoulli RBMs, https://doi.org/10.1007/978-3-642-21735-7_2.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate
from genlab.errors import UserError
from genlab.models.boltzmann.ais import estimate, kept, schedule
from genlab.models.boltzmann.binary_units import ENUMERABLE, flip, states
from genlab.models.boltzmann.rbm import RBM
from genlab.spec import Positive, PositiveFloat, Spec


class GRBM(RBM):
    """A restricted Boltzmann machine of real visible and binary hidden units.

    p(v, h) = exp(−Σ_i (v_i − b_i)² / 2σ_i² + Σ_ij h_j W_ji v_i / σ_i² + hᵀc) / Z, a mixture of 2^H Gaussians.

    Args:
        hidden: number of hidden units.
        sigma_min: the least standard deviation of a value given h, in data units, so that constant values have a density.
        chains: number of persistent Gibbs chains.
        temperatures: of annealed importance sampling, where log Z is too large a sum.

    Raises:
        UserError: the data is discrete.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: Positive = 500,
        sigma_min: PositiveFloat = 0.1,
        chains: Positive = 100,
        temperatures: Positive = 14_500,
    ) -> None:
        super().__init__(spec, hidden=hidden, chains=chains, temperatures=temperatures)
        self.sigma_min = sigma_min
        self.z = nn.Parameter(torch.zeros(spec.dim))  # σ² = sigma_min² + e^z, with Cho's z
        self.register_buffer(
            "base_var", torch.ones(spec.dim)
        )  # the data's variance, as the trainer has seen it

    def check(self, spec: Spec) -> None:
        if spec.kind not in ("image", "points") or spec.discrete:
            raise UserError(f"GRBM's Gaussian visible units are a density, and this is {spec.kind} data with {spec.levels} "
                            "levels; set prepare.dequantise=true prepare.binarize=none, or take model=rbm")  # fmt: skip

    @property
    def var(self) -> Tensor:
        """The variances σ² (D,) of p(v | h)."""
        return self.sigma_min**2 + self.z.exp()

    # --- the mathematics ------------------------------------------------------------------------------------------------

    # Cho et al., eqs. 1–3, with the hidden units summed over
    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) = Σ_i (v_i − b_i)² / 2σ_i² − Σ_j log(1 + exp(c_j + W_j (v / σ²))) (B,) in nats of v (B, D)."""
        return ((v - self.b).square() / (2 * self.var)).sum(1) - softplus(
            linear(v / self.var, self.W, self.c)
        ).sum(1)

    def p_hidden(self, v: Tensor) -> Tensor:
        """Return p(h_j = 1 | v) = σ(c_j + W_j (v / σ²)) (B, H)."""
        return linear(v / self.var, self.W, self.c).sigmoid()

    def mean_visible(self, h: Tensor) -> Tensor:
        """Return the mean b + hᵀW (B, D) of the Gaussian p(v | h)."""
        return torch.addmm(self.b, h, self.W)

    def draw_visible(self, h: Tensor) -> Tensor:
        mean = self.mean_visible(h)
        return mean + self.var.sqrt() * torch.randn_like(mean)

    def draw_base(self, n: int) -> Tensor:
        return self.base_rate + self.base_var.sqrt() * torch.randn(n, len(self.b)).to(self.b)

    # --- what the trainer asks ------------------------------------------------------------------------------------------

    def statistics(self, x: Tensor) -> Tensor:
        """Return the means of v and of v² (2, D) of x (B, *shape)."""
        v = x.flatten(1)
        return torch.stack([v.mean(0), v.square().mean(0)])

    @torch.no_grad()
    def watch(self, moments: Tensor, *, at: int, batch_size: int) -> None:
        """Keep the mean and variance (D,) of the data seen so far, and start b, σ and the chains from them."""
        mean, square = moments
        square_before = self.base_var + self.base_rate.square()
        self.base_rate.lerp_(mean, 1 / (at + 1))
        self.base_var.copy_(square_before.lerp(square, 1 / (at + 1)) - self.base_rate.square())
        self.base_var.clamp_(min=self.sigma_min**2)
        if at == 0:
            self.b.copy_(self.base_rate)
            self.z.copy_(self.base_var.log())
            self.chains.copy_(self.draw_base(len(self.chains)))

    # --- abilities that differ from binary units' -----------------------------------------------------------------------

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | h) (B, *shape) of hidden units z (B, H); an image's is cut to its range."""
        mean = self.mean_visible(z).unflatten(1, self.spec.shape)
        return mean.clamp(*self.spec.range) if self.spec.kind == "image" else mean

    @kept
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact up to 20 hidden units, else estimated by `ais`."""
        if len(self.c) <= ENUMERABLE:
            return Estimate(self.enumerate_log_partition(), None, "exact")
        return self.ais()

    @torch.no_grad()
    def enumerate_log_partition(self) -> float:
        """Return log Z in nats, summed over all states of the hidden units, the visible ones integrated out."""
        W, b, c, var = (t.double() for t in (self.W, self.b, self.c, self.var))
        parts = []
        for h in states(len(c), c).split(4096):
            mean = torch.addmm(b, h, W)  # (4096, D)
            parts.append((h @ c + ((mean.square() - b.square()) / (2 * var)).sum(1)).logsumexp(0))
        return (torch.stack(parts).logsumexp(0) + 0.5 * (2 * math.pi * var).log().sum()).item()

    # Salakhutdinov & Murray 2008, section 4.1, with Gaussian visible units: the base is N(data's mean, data's variance)
    @torch.no_grad()
    def ais(self, *, chains: int = 100, temperatures: int | None = None) -> Estimate:
        """Return log Z in nats by annealed importance sampling from p*_β = p_base^(1 − β) p*^β, h idle in the base."""
        mean, precision = self.base_rate, 1 / self.base_var
        own = 1 / self.var
        log_w = torch.zeros(chains, dtype=torch.float64, device=self.b.device)
        v = self.draw_base(chains)
        for low, high in pairwise(schedule(temperatures or self.temperatures)):
            a = linear(v * own, self.W, self.c)  # (M, H)
            squares = precision * (v - mean).square() - own * (v - self.b).square()
            log_w += (high - low) * 0.5 * squares.sum(1) + (
                softplus(high * a) - softplus(low * a)
            ).sum(1)
            h = flip((high * a).sigmoid())
            both = torch.lerp(precision, own, high)  # precisions add up
            centre = ((1 - high) * precision * mean + high * own * self.mean_visible(h)) / both
            v = centre + torch.randn_like(centre) / both.sqrt()
        log_z_base = 0.5 * (2 * math.pi * self.base_var.double()).log().sum().item() + len(
            self.c
        ) * math.log(2)
        return estimate(log_w, log_z_base)
