"""Gaussian–Bernoulli RBM: Hinton & Salakhutdinov 2006.

https://doi.org/10.1126/science.1127647. The energy is that of Cho, Ilin & Raiko 2011, Improved
learning of Gaussian–Bernoulli RBMs, https://doi.org/10.1007/978-3-642-21735-7_2.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate
from genlab.console import track
from genlab.errors import UserError
from genlab.models.boltzmann.ais import (
    STATES_PER_CHUNK,
    ais_estimate_from_log_weights,
    ais_inverse_temperatures,
    cache_log_partition,
)
from genlab.models.boltzmann.binary_units import (
    MAX_ENUMERATED_UNITS,
    enumerate_states,
    sample_bernoulli,
)
from genlab.models.boltzmann.rbm import RBM
from genlab.nn.precision import in_full_precision
from genlab.spec import DataSpec, Positive, PositiveFloat


class GRBM(RBM):
    """A restricted Boltzmann machine of real visible and binary hidden units.

    p(v, h) = exp(−Σ_i (v_i − b_i)² / 2σ_i² + Σ_ij h_j W_ji v_i / σ_i² + hᵀc) / Z, a mixture of 2^H
    Gaussians.

    Args:
        hidden: number of hidden units.
        sigma_min: smallest standard deviation of a value given h, in data units, so that constant
            values have a density.
        num_chains: persistent Gibbs chains.
        num_temperatures: of annealed importance sampling, if log Z cannot be enumerated.

    Raises:
        UserError: the data is discrete.
    """

    base_var: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: Positive = 500,
        sigma_min: PositiveFloat = 0.1,
        num_chains: Positive = 100,
        num_temperatures: Positive = 14_500,
    ) -> None:
        super().__init__(
            spec, hidden=hidden, num_chains=num_chains, num_temperatures=num_temperatures
        )
        self.sigma_min = sigma_min
        self.z = nn.Parameter(torch.zeros(spec.dim))  # σ² = sigma_min² + e^z, with Cho's z
        # running variance of the training data
        self.register_buffer("base_var", torch.ones(spec.dim))

    def validate_spec(self, spec: DataSpec) -> None:
        """Raise UserError if p(v | h) does not fit the data."""
        if spec.kind not in ("image", "points") or spec.is_discrete:
            raise UserError(
                "the Gaussian visible units of GRBM are a density, but this dataset has "
                f"{spec.kind} data with {spec.levels} levels; set preprocess.dequantize=true "
                "preprocess.binarize=none, or use model=rbm"
            )

    @property
    def visible_variance(self) -> Tensor:
        """The variances σ² (D,) of p(v | h)."""
        return self.sigma_min**2 + self.z.exp()

    # --- the distribution -------------------------------------------------------------------------

    # Cho et al., eqs. 1–3, with the hidden units summed out:
    # F(v) = Σ_i (v_i − b_i)² / 2σ_i² − Σ_j log(1 + exp(c_j + W_j (v / σ²)))
    @in_full_precision
    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) (B,) in nats for v (B, D)."""
        quadratic = ((v - self.b).square() / (2 * self.visible_variance)).sum(1)
        return quadratic - softplus(linear(v / self.visible_variance, self.W, self.c)).sum(1)

    def hidden_probs(self, v: Tensor) -> Tensor:
        """Return p(h_j = 1 | v) = σ(c_j + W_j (v / σ²)) (B, H)."""
        return linear(v / self.visible_variance, self.W, self.c).sigmoid()

    def visible_mean(self, h: Tensor) -> Tensor:
        """Return the mean b + hᵀW (B, D) of the Gaussian p(v | h)."""
        return torch.addmm(self.b, h, self.W)

    def sample_visible(self, h: Tensor) -> Tensor:
        """Draw v (B, D) from p(v | h)."""
        mean = self.visible_mean(h)
        return mean + self.visible_variance.sqrt() * torch.randn_like(mean)

    def sample_initial_states(self, n: int) -> Tensor:
        """Draw v (n, D) from N(data mean, data variance), to start chains."""
        return self.base_rate + self.base_var.sqrt() * torch.randn(n, len(self.b)).to(self.b)

    # --- called by the trainer --------------------------------------------------------------------

    def batch_data_stats(self, x: Tensor) -> Tensor:
        """Return the means of d and of d² (2, D), d = v − base_rate, of x (B, *shape).

        Moments about the running mean, in float64 where the device has it, do not cancel if the
        data is far from 0.
        """
        v = x.flatten(1)
        d = (v if v.device.type == "mps" else v.double()) - self.base_rate
        return torch.stack([d.mean(0), d.square().mean(0)])

    @torch.no_grad()
    def update_data_stats(self, stats: Tensor, *, step: int, batch_size: int) -> None:
        """Update the running mean and variance of the data.

        The first step initializes b, σ and the chains from them.

        Args:
            stats: see `batch_data_stats`.
            step: number of batches before this one.
            batch_size: of the joint batch.
        """
        shift, square = stats[0] / (step + 1), stats[1]
        self.base_var.copy_(self.base_var.to(square).lerp(square, 1 / (step + 1)) - shift.square())
        self.base_rate.add_(shift.to(self.base_rate))
        self.base_var.clamp_(min=self.sigma_min**2)
        if step == 0:
            self.b.copy_(self.base_rate)
            self.z.copy_(self.base_var.log())
            self.chains.copy_(self.sample_initial_states(len(self.chains)))

    # --- abilities that differ from those of binary units -----------------------------------------

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | h) (B, *shape) for hidden units z (B, H).

        Images are clamped to their range.
        """
        mean = self.visible_mean(z).unflatten(1, self.spec.shape)
        return mean.clamp(*self.spec.range) if self.spec.kind == "image" else mean

    @cache_log_partition
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact up to 20 hidden units, otherwise an estimate."""
        if len(self.c) <= MAX_ENUMERATED_UNITS:
            return Estimate(self.enumerate_log_partition(), None, "exact")
        return self.ais_log_partition()

    @torch.no_grad()
    def enumerate_log_partition(self, *, over: str | None = None) -> float:
        """Return log Z in nats by a sum over all hidden states, with v integrated out.

        Args:
            over: ignored, since only the hidden states can be enumerated.
        """
        W, b, c, var = (t.double() for t in (self.W, self.b, self.c, self.visible_variance))
        parts = []
        for h in enumerate_states(len(c), c).split(STATES_PER_CHUNK):
            mean = torch.addmm(b, h, W)  # (4096, D)
            parts.append((h @ c + ((mean.square() - b.square()) / (2 * var)).sum(1)).logsumexp(0))
        return (torch.stack(parts).logsumexp(0) + 0.5 * (2 * math.pi * var).log().sum()).item()

    # Salakhutdinov & Murray 2008, section 4.1, with Gaussian visible units: the base model is
    # N(data mean, data variance) with hidden units that are on with probability 1/2, and
    # p*_β = p_base^(1 − β) p*^β.
    @torch.no_grad()
    def ais_log_partition(
        self, *, num_chains: int = 100, num_temperatures: int | None = None
    ) -> Estimate:
        """Return log Z in nats by annealed importance sampling from the data's moments."""
        base_mean, base_precision = self.base_rate, 1 / self.base_var
        precision = 1 / self.visible_variance
        log_w = torch.zeros(num_chains, dtype=torch.float64, device=self.b.device)
        v = self.sample_initial_states(num_chains)
        betas = ais_inverse_temperatures(num_temperatures or self.num_temperatures)
        for low, high in track(
            pairwise(betas), "annealed importance sampling", len(betas) - 1, unit="temperatures"
        ):
            a = linear(v * precision, self.W, self.c)  # (M, H)
            base_squares = base_precision * (v - base_mean).square()
            squares = base_squares - precision * (v - self.b).square()
            log_w += (high - low) * 0.5 * squares.sum(1) + (
                softplus(high * a) - softplus(low * a)
            ).sum(1)
            h = sample_bernoulli((high * a).sigmoid())
            # the precision and the mean of v given h at β = high
            total = torch.lerp(base_precision, precision, high)
            weighted = high * precision * self.visible_mean(h)
            mean = ((1 - high) * base_precision * base_mean + weighted) / total
            v = mean + torch.randn_like(mean) / total.sqrt()
        log_det = (2 * math.pi * self.base_var.double()).log().sum().item()
        return ais_estimate_from_log_weights(log_w, 0.5 * log_det + len(self.c) * math.log(2))
