"""Boltzmann machine: Ackley, Hinton & Sejnowski 1985.

https://doi.org/10.1207/s15516709cog0901_7
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from genlab.abilities import Estimate, Report, TrajectoryState
from genlab.console import track
from genlab.models.boltzmann.ais import (
    ais_estimate_from_log_weights,
    ais_inverse_temperatures,
    cache_log_partition,
)
from genlab.models.boltzmann.binary_units import (
    MAX_ENUMERATED_UNITS,
    enumerate_states,
    reject_labels,
    require_binary_data,
    sample_bernoulli,
)
from genlab.models.boltzmann.gibbs_trajectory import (
    GibbsTrajectory,
    StepReport,
    make_step_report,
)
from genlab.nn.precision import in_full_precision
from genlab.spec import Batch, Count, DataSpec, Positive

MAX_TERMS = 2**20  # terms of a sum over hidden states that are in memory at a time
NUM_AIS_CHAINS = 100
DEFAULT_GIBBS_SWEEPS = 1000


class BM(GibbsTrajectory):
    """A Boltzmann machine: p(s) = exp(½ sᵀJs + sᵀb) / Z of binary units s = (v, h).

    Each unit is coupled to every other. Up to 20 units in total everything is exact: log Z, the
    likelihood and its gradient are sums over all states, and samples are drawn from the table of
    probabilities. Beyond that both phases of learning run Gibbs chains, and log Z is estimated.

    Args:
        hidden: number of hidden units, may be 0.
        num_sweeps: Gibbs sweeps over the hidden units that start the data-dependent phase, if it is
            sampled.
        num_chains: persistent Gibbs chains of the model-dependent phase.
        init_std: standard deviation of the initial couplings.
        num_temperatures: of annealed importance sampling.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    step_by_step = True
    pairs: Tensor
    chains: Tensor

    gray_level_recipe = "grbm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: Count = 8,
        num_sweeps: Positive = 10,
        num_chains: Positive = 100,
        init_std: float = 0.1,
        num_temperatures: Positive = 1_000,
    ) -> None:
        super().__init__()
        require_binary_data(spec, "BM")
        self.spec, self.hidden = spec, hidden
        self.num_sweeps, self.num_temperatures = num_sweeps, num_temperatures
        units = spec.dim + hidden
        self.is_exact = units <= MAX_ENUMERATED_UNITS
        pairs = torch.triu_indices(units, units, 1)  # (2, units (units − 1) / 2)
        self.register_buffer("pairs", pairs, persistent=False)
        self.J = nn.Parameter(init_std * torch.randn(self.pairs.shape[1]))
        self.b = nn.Parameter(torch.zeros(units))
        chains = torch.randint(2, (0 if self.is_exact else num_chains, units))
        self.register_buffer("chains", chains.to(self.b))
        if hidden > MAX_ENUMERATED_UNITS:  # the sum over hidden states is intractable
            self.energy = None  # type: ignore[assignment, method-assign]  # withdraws the ability
        if not self.is_exact:
            self.log_prob = None  # type: ignore[assignment, method-assign]  # withdraws the ability

    # --- the distribution, on all units s (B, N) or the visible ones v (B, D) ---------------------

    def coupling_matrix(self) -> Tensor:
        """Return J (N, N), symmetric with a zero diagonal."""
        i, j = self.pairs
        upper = self.J.new_zeros(len(self.b), len(self.b)).index_put((i, j), self.J)
        return upper + upper.T

    # Ackley et al., eq. 1: E(s) = −Σ_{i<j} J_ij s_i s_j − Σ_i b_i s_i
    @in_full_precision
    def joint_energy(self, s: Tensor) -> Tensor:
        """Return E(s) (B,) in nats for s (B, N)."""
        return -0.5 * ((s @ self.coupling_matrix()) * s).sum(1) - s @ self.b

    @in_full_precision
    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) = −log Σ_h exp(−E(v, h)) (B,) in nats for v (B, D)."""
        J, d = self.coupling_matrix(), self.spec.dim
        h = enumerate_states(self.hidden, self.b)  # (2^H, H)
        hidden_terms = 0.5 * ((h @ J[d:, d:]) * h).sum(1) + h @ self.b[d:]  # (2^H,)
        log_sums = [
            (chunk @ J[:d, d:] @ h.T + hidden_terms).logsumexp(1)
            for chunk in v.split(max(1, MAX_TERMS >> self.hidden))
        ]
        return -0.5 * ((v @ J[:d, :d]) * v).sum(1) - v @ self.b[:d] - torch.cat(log_sums)

    def enumerate_log_partition(self) -> Tensor:
        """Return log Z () in nats, summed over all states."""
        return (-self.free_energy(enumerate_states(self.spec.dim, self.b))).logsumexp(0)

    @torch.no_grad()
    def gibbs(
        self,
        s: Tensor,
        num_steps: int,
        report: StepReport | None = None,
        *,
        free: Tensor | None = None,
        beta: float = 1.0,
    ) -> Tensor:
        """Return s (B, N) after num_steps sweeps over the units, one unit at a time.

        Args:
            free: bool (N,) or (B, N); only units that are True are sampled. None samples all.
            beta: factor of the couplings.
            report: receives s after each sweep.
        """
        s, J = s.clone(), beta * self.coupling_matrix()
        free = None if free is None else free.expand_as(s)
        units = range(s.shape[1]) if free is None else free.any(0).nonzero()[:, 0].tolist()
        for _ in range(num_steps):
            for i in units:
                # Ackley et al., eq. 2: p(s_i = 1 | the others) = σ(Σ_j J_ij s_j + b_i)
                new = sample_bernoulli((s @ J[i] + self.b[i]).sigmoid())
                s[:, i] = new if free is None else torch.where(free[:, i], new, s[:, i])
            if report is not None:
                report(s, None)
        return s

    # The gradient of the likelihood is ⟨s_i s_j⟩ with v clamped to the data minus ⟨s_i s_j⟩ under
    # the model (Ackley et al., eq. 6).
    def loss(self, batch: Batch, s_model: Tensor | None = None) -> dict[str, Tensor]:
        """Return −log p of the data if it is exact, otherwise its contrast with model states.

        Args:
            s_model: states (·, N) of the model; None makes one Gibbs sweep from the data.
        """
        if self.is_exact:
            nll = self.free_energy(batch.x.flatten(1)).mean() + self.enumerate_log_partition()
            return {"loss": nll}
        s_data = self.chain_state_from_data(batch.x)
        s_model = self.gibbs(s_data, 1) if s_model is None else s_model
        data, model = self.joint_energy(s_data).mean(), self.joint_energy(s_model).mean()
        return {"loss": data - model, "energy/data": data, "energy/model": model}

    # --- called by the trainer --------------------------------------------------------------------

    def chain_state_from_data(self, x: Tensor) -> Tensor:
        """Clamp v to x (B, *shape) and draw h by Gibbs sweeps; return all units (B, N)."""
        v = x.flatten(1)
        s = torch.cat([v, sample_bernoulli(v.new_full((len(v), self.hidden), 0.5))], 1)
        is_hidden = torch.arange(s.shape[1], device=s.device) >= v.shape[1]
        return self.gibbs(s, self.num_sweeps, free=is_hidden)

    def batch_data_stats(self, x: Tensor) -> Tensor:
        """Return the statistics of x (B, *shape) for `update_data_stats`: the means (D,)."""
        return x.flatten(1).mean(0)

    @torch.no_grad()
    def update_data_stats(self, stats: Tensor, *, step: int, batch_size: int) -> None:
        """Initialize the visible biases from the mean (D,) of the first batch."""
        if step == 0:
            least = 1 / max(2, batch_size)
            self.b[: len(stats)] = stats.clamp(least, 1 - least).logit()

    # --- abilities --------------------------------------------------------------------------------

    def energy(self, x: Tensor) -> Tensor:
        """Return the free energy (B,) in nats of x (B, *shape): log p(x) = −energy(x) − log Z."""
        return self.free_energy(x.flatten(1))

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,) in nats of x (B, *shape), summed over all states."""
        reject_labels(self, y)
        return -self.energy(x) - self.enumerate_log_partition()

    @cache_log_partition
    @torch.no_grad()
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact up to 20 units in total, otherwise estimated by AIS.

        Neal 2001, https://doi.org/10.1023/A:1008923215028: the base model has only the biases, and
        p*_β has the couplings times β.
        """
        if self.is_exact:
            return Estimate(self.enumerate_log_partition().item(), None, "exact")
        log_w = torch.zeros(NUM_AIS_CHAINS, dtype=torch.float64, device=self.b.device)
        s = sample_bernoulli(self.b.sigmoid().expand(len(log_w), -1))
        betas = ais_inverse_temperatures(self.num_temperatures)
        for low, high in track(
            pairwise(betas), "annealed importance sampling", len(betas) - 1, unit="temperatures"
        ):
            log_w += (high - low) * (-self.joint_energy(s) - s @ self.b)  # ½ sᵀJs
            s = self.gibbs(s, 1, beta=high)
        return ais_estimate_from_log_weights(log_w, softplus(self.b.double()).sum().item())

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, steps: Positive | None = None) -> Tensor:
        """Draw n samples (n, *shape).

        Args:
            steps: sweeps of each Gibbs chain, which starts from random units. None samples from the
                table of probabilities if it is exact, and otherwise makes 1,000 sweeps.
        """
        return self.trajectory(None, n, y, steps=steps)

    @torch.no_grad()
    def trajectory(
        self,
        report: Report | None,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Draw n items as `sample` does, and report the visible units after each sweep."""
        reject_labels(self, y)
        if self.is_exact and steps is None:
            v = enumerate_states(self.spec.dim, self.b)
            v = v[(-self.free_energy(v)).softmax(0).multinomial(n, replacement=True)]
            if report is not None:
                report(TrajectoryState(0, "exact draw", self.to_items(v)))
            return self.to_items(v)
        report_step = make_step_report(report, self.to_items)
        s = sample_bernoulli(self.b.new_full((n, len(self.b)), 0.5))
        report_step(s, None)
        return self.to_items(self.gibbs(s, steps or DEFAULT_GIBBS_SWEEPS, report_step))

    def to_items(self, s: Tensor) -> Tensor:
        """Return the items (B, *shape) of states s (B, N)."""
        return s[:, : self.spec.dim].unflatten(1, self.spec.shape)

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | None = None,
        *,
        steps: Positive | None = None,
    ) -> Tensor:
        """Return x (B, *shape) with the unknown values drawn given the known ones.

        They are drawn exactly if possible, otherwise by Gibbs sweeps with the known values clamped.

        Args:
            known: bool, broadcasts to x; True where a value is kept.
            steps: Gibbs sweeps; None makes 1,000.
        """
        v, keep = x.flatten(1), known.expand_as(x).flatten(1).bool()
        if self.is_exact:
            table = enumerate_states(self.spec.dim, self.b)  # (2^D, D)
            # known values in which a row of the table differs from v, (B, 2^D)
            ones = (keep * v).sum(1, keepdim=True)
            differences = ones + (keep * (1 - 2 * v)) @ table.T
            log_p = (-self.free_energy(table)).expand_as(differences)
            log_p = log_p.masked_fill(differences > 0.5, -torch.inf)
            v = table[log_p.softmax(1).multinomial(1)[:, 0]]
        else:
            random = sample_bernoulli(self.b.new_full((len(v), len(self.b)), 0.5))
            d = v.shape[1]
            s = torch.cat([torch.where(keep, v, random[:, :d]), random[:, d:]], 1)
            free = torch.cat([~keep, keep.new_ones(len(v), self.hidden)], 1)
            v = self.gibbs(s, steps or DEFAULT_GIBBS_SWEEPS, free=free)[:, :d]
        return v.unflatten(1, self.spec.shape)

    @torch.no_grad()
    def gibbs_chain(self, x: Tensor, num_steps: int, report: Report | None = None) -> Tensor:
        report_step = make_step_report(report, self.to_items)
        s = self.chain_state_from_data(x)
        report_step(s, None)
        return self.to_items(self.gibbs(s, num_steps, report_step))

    def filters(self) -> Tensor:
        """Return the couplings of each hidden unit to the visible units (H, *shape)."""
        d = self.spec.dim
        return self.coupling_matrix()[d:, :d].unflatten(1, self.spec.shape)
