"""The RBM: Smolensky 1986; Hinton 2002, https://doi.org/10.1162/089976602760128018.

Persistent chains: Tieleman 2008, https://doi.org/10.1145/1390156.1390290.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate, Report
from genlab.models.boltzmann.ais import (
    ais_log_partition,
    cache_log_partition,
    enumerate_log_partition,
)
from genlab.models.boltzmann.binary_units import (
    MAX_ENUMERATED_UNITS,
    check_sampling_arguments,
    require_binary_data,
    sample_bernoulli,
)
from genlab.models.boltzmann.gibbs_trajectory import (
    DEFAULT_GIBBS_STEPS,
    GibbsTrajectory,
    StepReport,
    make_step_report,
)
from genlab.nn.precision import in_full_precision
from genlab.spec import Batch, DataSpec, Positive


class RBM(GibbsTrajectory):
    """A restricted Boltzmann machine of binary units: p(v, h) = exp(vᵀb + hᵀc + hᵀWv) / Z.

    Args:
        hidden: number of hidden units.
        num_chains: persistent Gibbs chains, which provide the negative statistics in training.
        num_temperatures: of annealed importance sampling, if log Z cannot be enumerated.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samples_are_means = True
    trajectory_note = "the last state is the mean of p(x | h), the others are drawn"

    samplers = ("gibbs",)
    step_by_step = True
    base_rate: Tensor
    chains: Tensor

    gray_level_recipe = "grbm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: Positive = 500,
        num_chains: Positive = 100,
        num_temperatures: Positive = 14_500,
    ) -> None:
        super().__init__()
        self.validate_spec(spec)
        self.spec, self.num_temperatures = spec, num_temperatures
        # Hinton 2010, A practical guide to training RBMs, section 8: small weights, hidden biases 0
        self.W = nn.Parameter(0.01 * torch.randn(hidden, spec.dim))
        self.b = nn.Parameter(torch.zeros(spec.dim))
        self.c = nn.Parameter(torch.zeros(hidden))
        # running mean of the training data
        self.register_buffer("base_rate", torch.full((spec.dim,), 0.5))
        self.register_buffer("chains", torch.randint(2, (num_chains, spec.dim)).to(self.W))

    def validate_spec(self, spec: DataSpec) -> None:
        """Raise UserError if p(v | h) does not fit the data."""
        require_binary_data(spec, "RBM")

    # --- the distribution, on flat visible units v (B, D) and hidden units h (B, H) ---------------

    # Hinton 2010, eq. 25: F(v) = −vᵀb − Σ_j log(1 + exp(c_j + W_j v)) and p(v) = exp(−F(v)) / Z
    @in_full_precision
    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) (B,) in nats for v (B, D)."""
        return -(v @ self.b) - softplus(linear(v, self.W, self.c)).sum(1)

    def hidden_probs(self, v: Tensor) -> Tensor:
        """Return p(h_j = 1 | v) = σ(c_j + W_j v) (B, H)."""
        return linear(v, self.W, self.c).sigmoid()

    def visible_probs(self, h: Tensor) -> Tensor:
        """Return p(v_i = 1 | h) = σ(b_i + hᵀW_i) (B, D)."""
        return torch.addmm(self.b, h, self.W).sigmoid()

    def sample_visible(self, h: Tensor) -> Tensor:
        """Draw v (B, D) from p(v | h)."""
        return sample_bernoulli(self.visible_probs(h))

    def sample_initial_states(self, n: int) -> Tensor:
        """Draw v (n, D) with independent units at the data's base rates, to start chains."""
        return sample_bernoulli(self.base_rate.expand(n, -1))

    @torch.no_grad()
    def gibbs(self, v: Tensor, num_steps: int, report: StepReport | None = None) -> Tensor:
        """Return v (B, D) after block Gibbs steps: h ~ p(h | v), then v ~ p(v | h).

        Args:
            report: receives the units after each step; see `make_step_report`.
        """
        for _ in range(num_steps):
            h = sample_bernoulli(self.hidden_probs(v))
            v = self.sample_visible(h)
            if report is not None:
                report(v, h)
        return v

    # The gradient of F(v) − F(v_model), with v_model fixed, is the negative of the contrastive
    # statistic ⟨h v⟩_data − ⟨h v⟩_model with h at its mean (Hinton 2002, eq. 5; Hinton 2010,
    # eq. 9).
    def loss(self, batch: Batch, v_model: Tensor | None = None) -> dict[str, Tensor]:
        """Return the free energy of the data minus that of the model's states.

        Args:
            v_model: states (·, D) of the model; None makes one Gibbs step from the data (CD-1).
        """
        v = batch.x.flatten(1)  # (B, D)
        v_model = self.gibbs(v, 1) if v_model is None else v_model.detach()
        energy = self.free_energy(torch.cat([v, v_model]))  # one product with W for both
        data, model = energy[: len(v)].mean(), energy[len(v) :].mean()
        return {"loss": data - model, "energy/data": data, "energy/model": model}

    # --- called by the trainer --------------------------------------------------------------------

    def chain_state_from_data(self, x: Tensor) -> Tensor:
        """Return the state (B, D) of a chain that starts at the data x (B, *shape)."""
        return x.flatten(1)

    def batch_data_stats(self, x: Tensor) -> Tensor:
        """Return the statistics of x (B, *shape) for `update_data_stats`: the means (D,)."""
        return x.flatten(1).mean(0)

    @torch.no_grad()
    def update_data_stats(self, stats: Tensor, *, step: int, batch_size: int) -> None:
        """Update the running mean of the data; the first step initializes the visible biases.

        Args:
            stats: the mean (D,) of the batch.
            step: number of batches before this one.
            batch_size: of the joint batch.
        """
        self.base_rate.lerp_(stats, 1 / (step + 1))
        if step == 0:
            # Hinton 2010, section 8.1: b_i = log(p_i / (1 − p_i)); the clamp is the precision of a
            # mean over one batch
            least = 1 / max(2, batch_size)
            self.b.copy_(self.base_rate.clamp(least, 1 - least).logit())

    # --- abilities --------------------------------------------------------------------------------

    def energy(self, x: Tensor) -> Tensor:
        """Return the free energy (B,) in nats of x (B, *shape): log p(x) = −energy(x) − log Z."""
        return self.free_energy(x.flatten(1))

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return p(h = 1 | x) (B, H) of x (B, *shape)."""
        return self.hidden_probs(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | h) (B, *shape) for hidden units z (B, H)."""
        return self.visible_probs(z).unflatten(1, self.spec.shape)

    def denoise(self, x: Tensor, *, sigma: float | None = None) -> Tensor:
        """Return the mean of p(x' | h) (B, *shape) at the mean h of p(h | x)."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str = "gibbs",
        steps: Positive | None = None,
    ) -> Tensor:
        """Return the means of p(x | h) (n, *shape) at the end of n Gibbs chains.

        Each chain starts from pixels drawn independently at the data's base rates, so the samples
        are independent.

        Args:
            steps: of each chain; None makes 1,000.

        Raises:
            UserError: y is given, or another sampler than "gibbs".
        """
        return self.trajectory(None, n, y, sampler=sampler, steps=steps)

    @torch.no_grad()
    def trajectory(
        self,
        report: Report | None,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        sampler: str = "gibbs",
        steps: int | None = None,
    ) -> Tensor:
        """Draw n items as `sample` does, and report x and the mean of p(x | h) of the chains."""
        check_sampling_arguments(self, y, sampler)
        report_step = make_step_report(report, self.to_items, self.decode)
        v = self.sample_initial_states(n)
        report_step(v, None)
        v = self.gibbs(v, (steps or DEFAULT_GIBBS_STEPS) - 1, report_step)
        h = sample_bernoulli(self.hidden_probs(v))
        means = self.decode(h)
        report_step(means.flatten(1), h)
        return means

    def to_items(self, v: Tensor) -> Tensor:
        """Return the items (B, *shape) of visible units v (B, D)."""
        return v.unflatten(1, self.spec.shape)

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | None = None,
        *,
        steps: Positive | None = None,
    ) -> Tensor:
        """Return x (B, *shape) with unknown values replaced by their mean given h.

        h comes from a Gibbs chain in which the known values are clamped.

        Args:
            known: bool, broadcasts to x; True where a value is kept.
            steps: of the chain; None makes 1,000.
        """
        data, keep = x.flatten(1), known.expand_as(x).flatten(1)
        v = torch.where(keep, data, self.sample_initial_states(len(x)))
        for _ in range((steps or DEFAULT_GIBBS_STEPS) - 1):
            v = torch.where(keep, data, self.gibbs(v, 1))
        return torch.where(known, x, self.decode(sample_bernoulli(self.hidden_probs(v))))

    def gibbs_chain(self, x: Tensor, num_steps: int, report: Report | None = None) -> Tensor:
        report_step = make_step_report(report, self.to_items, self.decode)
        report_step(x.flatten(1), None)
        return self.to_items(self.gibbs(x.flatten(1), num_steps, report_step))

    def filters(self) -> Tensor:
        """Return the weights of each hidden unit (H, *shape)."""
        return self.W.unflatten(1, self.spec.shape)

    # --- log Z ------------------------------------------------------------------------------------

    @cache_log_partition
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact if a layer has at most 20 units, otherwise an estimate."""
        if min(self.W.shape) <= MAX_ENUMERATED_UNITS:
            return Estimate(self.enumerate_log_partition(), None, "exact")
        return self.ais_log_partition()

    def ais_log_partition(
        self, *, num_chains: int = 100, num_temperatures: int | None = None
    ) -> Estimate:
        """Return log Z in nats by annealed importance sampling from the data's base rates."""
        return ais_log_partition(
            self.W,
            self.b,
            self.c,
            b_base=self.base_rate.clamp(0.01, 0.99).logit(),
            num_chains=num_chains,
            num_temperatures=num_temperatures or self.num_temperatures,
        )

    def enumerate_log_partition(self, *, over: Literal["hidden", "visible"] | None = None) -> float:
        """Return log Z in nats, summed over all states of one layer (None: the smaller one)."""
        if over == "visible" or (over is None and len(self.b) < len(self.c)):
            return enumerate_log_partition(self.W.T, self.c, self.b)  # the layers are symmetric
        return enumerate_log_partition(self.W, self.b, self.c)
