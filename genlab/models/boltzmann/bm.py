"""Boltzmann machine: Ackley, Hinton & Sejnowski 1985, https://doi.org/10.1207/s15516709cog0901_7."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from genlab.abilities import Estimate
from genlab.models.boltzmann.ais import estimate, kept, schedule
from genlab.models.boltzmann.binary_units import ENUMERABLE, check, flip, refuse_classes, states
from genlab.spec import Batch, Count, Positive, Spec

SUM_AT_ONCE = 2**20  # terms of a sum over hidden states that are in memory together


class BM(nn.Module):
    """A Boltzmann machine: p(s) = exp(½ sᵀJs + sᵀb) / Z of binary units s = (v, h), each coupled to every other.

    Up to 20 units in all everything is exact: log Z, the likelihood and its gradient are sums over all states, and samples
    are drawn from the table of probabilities. Beyond, both phases of learning run Gibbs chains, and log Z is estimated.

    Args:
        hidden: number of hidden units; 0: none.
        sweeps: Gibbs sweeps over the hidden units with which the data-dependent phase begins, where it is sampled.
        chains: number of persistent Gibbs chains of the other phase.
        scale: standard deviation of the first couplings.
        temperatures: of annealed importance sampling.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: Count = 8,
        sweeps: Positive = 10,
        chains: Positive = 100,
        scale: float = 0.1,
        temperatures: Positive = 1_000,
    ) -> None:
        super().__init__()
        check(spec, "BM")
        self.spec, self.hidden, self.sweeps, self.temperatures = spec, hidden, sweeps, temperatures
        units = spec.dim + hidden
        self.exact = units <= ENUMERABLE
        self.register_buffer(
            "pairs", torch.triu_indices(units, units, 1), persistent=False
        )  # (2, units (units − 1) / 2)
        self.J = nn.Parameter(scale * torch.randn(self.pairs.shape[1]))
        self.b = nn.Parameter(torch.zeros(units))
        self.register_buffer(
            "chains", torch.randint(2, (0 if self.exact else chains, units)).to(self.b)
        )
        if hidden > ENUMERABLE:
            self.energy = None  # a sum over too many hidden states
        if not self.exact:
            self.log_prob = None

    # --- the mathematics, on all units s (B, N) or the visible ones v (B, D) ------------------------------------------

    def couplings(self) -> Tensor:
        """Return J (N, N), symmetric with a diagonal of zeros."""
        i, j = self.pairs
        upper = self.J.new_zeros(len(self.b), len(self.b)).index_put((i, j), self.J)
        return upper + upper.T

    # Ackley et al., eq. 1: E(s) = −Σ_{i<j} J_ij s_i s_j − Σ_i b_i s_i
    def joint_energy(self, s: Tensor) -> Tensor:
        """Return E(s) (B,) in nats of s (B, N)."""
        return -0.5 * ((s @ self.couplings()) * s).sum(1) - s @ self.b

    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) = −log Σ_h exp(−E(v, h)) (B,) in nats of v (B, D), over all hidden states."""
        J, d = self.couplings(), self.spec.dim
        h = states(self.hidden, self.b)  # (2^H, H)
        own = 0.5 * ((h @ J[d:, d:]) * h).sum(1) + h @ self.b[d:]  # (2^H,)
        sums = [
            (part @ J[:d, d:] @ h.T + own).logsumexp(1)
            for part in v.split(max(1, SUM_AT_ONCE >> self.hidden))
        ]
        return -0.5 * ((v @ J[:d, :d]) * v).sum(1) - v @ self.b[:d] - torch.cat(sums)

    def log_z(self) -> Tensor:
        """Return log Z (), summed over all states."""
        return (-self.free_energy(states(self.spec.dim, self.b))).logsumexp(0)

    @torch.no_grad()
    def gibbs(self, s: Tensor, k: int, *, free: Tensor | None = None, beta: float = 1.0) -> Tensor:
        """Return s (B, N) after k sweeps over the units in turn, with the couplings times `beta`.

        Of each item only the units that are True in `free` (N,) or (B, N) are drawn; None: all.
        """
        s, J = s.clone(), beta * self.couplings()
        turn = (
            range(s.shape[1]) if free is None else free.expand_as(s).any(0).nonzero()[:, 0].tolist()
        )
        for _ in range(k):
            for i in turn:
                # Ackley et al., eq. 2: p(s_i = 1 | the others) = σ(Σ_j J_ij s_j + b_i)
                new = flip((s @ J[i] + self.b[i]).sigmoid())
                s[:, i] = (
                    new if free is None else torch.where(free.expand_as(s)[:, i], new, s[:, i])
                )
        return s

    # The likelihood's gradient is ⟨s_i s_j⟩ with v clamped to the data minus ⟨s_i s_j⟩ running free (Ackley et al., eq. 6).
    def loss(self, batch: Batch, s_model: Tensor | None = None) -> dict[str, Tensor]:
        """Return −log p of the data where all states can be listed, else its contrast with the states s_model (·, N)."""
        if self.exact:
            nll = self.free_energy(batch.x.flatten(1)).mean() + self.log_z()
            return {"loss": nll}
        s_data = self.clamped(batch.x)
        s_model = self.gibbs(s_data, 1) if s_model is None else s_model
        data, model = self.joint_energy(s_data).mean(), self.joint_energy(s_model).mean()
        return {"loss": data - model, "energy/data": data, "energy/model": model}

    # --- what the trainer asks ------------------------------------------------------------------------------------------

    def clamped(self, x: Tensor) -> Tensor:
        """Draw the hidden units of x (B, *shape) by Gibbs sweeps with v clamped; return all units (B, N)."""
        v = x.flatten(1)
        s = torch.cat([v, flip(v.new_full((len(v), self.hidden), 0.5))], 1)
        return self.gibbs(
            s, self.sweeps, free=torch.arange(s.shape[1], device=s.device) >= v.shape[1]
        )

    def statistics(self, x: Tensor) -> Tensor:
        """Return what `watch` wants to know of x (B, *shape): the units' means (D,)."""
        return x.flatten(1).mean(0)

    @torch.no_grad()
    def watch(self, mean: Tensor, *, at: int, batch_size: int) -> None:
        """Start the visible biases from the mean (D,) of the first batch."""
        if at == 0:
            self.b[: len(mean)] = mean.clamp(1 / batch_size, 1 - 1 / batch_size).logit()

    # --- abilities ------------------------------------------------------------------------------------------------------

    def energy(self, x: Tensor) -> Tensor:
        """Return the free energy (B,) in nats of x (B, *shape): log p(x) = −energy(x) − log Z."""
        return self.free_energy(x.flatten(1))

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,) in nats of x (B, *shape), summed over all states."""
        refuse_classes(self, y)
        return -self.energy(x) - self.log_z()

    @kept
    @torch.no_grad()
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact up to 20 units in all, else by annealed importance sampling of the couplings.

        Neal 2001, https://doi.org/10.1023/A:1008923215028: the base has the biases alone, and p*_β the couplings times β.
        """
        if self.exact:
            return Estimate(self.log_z().item(), None, "exact")
        log_w = torch.zeros(100, dtype=torch.float64, device=self.b.device)
        s = flip(self.b.sigmoid().expand(len(log_w), -1))
        for low, high in pairwise(schedule(self.temperatures)):
            log_w += (high - low) * (-self.joint_energy(s) - s @ self.b)  # ½ sᵀJs
            s = self.gibbs(s, 1, beta=high)
        return estimate(log_w, softplus(self.b.double()).sum().item())

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, steps: Positive | None = None) -> Tensor:
        """Draw n items (n, *shape): from the table of probabilities where there is one and `steps` is None, else by Gibbs.

        Each Gibbs chain begins with random units and makes `steps` sweeps (1,000 if None).
        """
        refuse_classes(self, y)
        if self.exact and steps is None:
            v = states(self.spec.dim, self.b)
            s = v[(-self.free_energy(v)).softmax(0).multinomial(n, replacement=True)]
        else:
            s = self.gibbs(flip(self.b.new_full((n, len(self.b)), 0.5)), steps or 1000)
        return s[:, : self.spec.dim].unflatten(1, self.spec.shape)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, steps: Positive = 1000) -> Tensor:
        """Return x (B, *shape) with the unknown values drawn given the known ones: exactly, or by clamped Gibbs sweeps."""
        v, keep = x.flatten(1), known.expand_as(x).flatten(1).bool()
        if self.exact:
            table = states(self.spec.dim, self.b)  # (2^D, D)
            differ = (keep * v).sum(1, keepdim=True) + (
                keep * (1 - 2 * v)
            ) @ table.T  # (B, 2^D) known values that differ
            log_p = (
                (-self.free_energy(table)).expand_as(differ).masked_fill(differ > 0.5, -torch.inf)
            )
            v = table[log_p.softmax(1).multinomial(1)[:, 0]]
        else:
            coins = flip(self.b.new_full((len(v), len(self.b)), 0.5))
            s = torch.cat([torch.where(keep, v, coins[:, : v.shape[1]]), coins[:, v.shape[1] :]], 1)
            free = torch.cat([~keep, keep.new_ones(len(v), self.hidden)], 1)
            v = self.gibbs(s, steps, free=free)[:, : v.shape[1]]
        return v.unflatten(1, self.spec.shape)

    @torch.no_grad()
    def walk(self, x: Tensor, k: int) -> Tensor:
        """Return the state (B, *shape) of the chains that left x (B, *shape) k Gibbs sweeps ago."""
        return self.gibbs(self.clamped(x), k)[:, : self.spec.dim].unflatten(1, self.spec.shape)

    def filters(self) -> Tensor:
        """Return each hidden unit's couplings to the visible ones (H, *shape)."""
        return self.couplings()[self.spec.dim :, : self.spec.dim].unflatten(1, self.spec.shape)
