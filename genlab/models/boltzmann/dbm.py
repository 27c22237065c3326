"""Deep Boltzmann machines: Salakhutdinov & Hinton 2009.

https://proceedings.mlr.press/v5/salakhutdinov09a.html
"""

from __future__ import annotations

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
    reject_labels,
    require_binary_data,
    sample_bernoulli,
)
from genlab.models.boltzmann.bounds import (
    bernoulli_entropy,
    bernoulli_log_prob,
    importance_weighted_bound,
)
from genlab.models.boltzmann.gibbs_trajectory import (
    DEFAULT_GIBBS_STEPS,
    GibbsTrajectory,
    StepReport,
    make_step_report,
)
from genlab.models.boltzmann.rbm import RBM
from genlab.nn.precision import in_full_precision
from genlab.spec import Batch, DataSpec, Positive

EVAL_MEAN_FIELD_UPDATES = 50  # mean-field updates for codes and reported bounds


class DBM(GibbsTrajectory):
    """A deep Boltzmann machine with the hidden layers h and g.

    p(v, h, g) = exp(vᵀb + hᵀc + gᵀa + hᵀWv + gᵀUh) / Z. Units of v and g are not coupled to each
    other, so (v, g) and h are the two layers of an RBM, whose Gibbs steps, free energy and log Z
    are used here. The data gives v only; g is filled in by mean field for the data-dependent
    statistics. The first training stage trains the RBM (v, h) with g disconnected, the second stage
    trains all parameters.

    Args:
        hidden: numbers of units of h and g.
        num_updates: mean-field updates in a training step.
        num_chains: persistent Gibbs chains.
        num_temperatures: of the annealed importance sampling of log Z.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samples_are_means = True
    trajectory_note = "the last state is the mean of p(x | h), the others are drawn"

    samplers = ("gibbs",)
    step_by_step = True
    chains: Tensor

    gray_level_recipe = "grbm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: tuple[Positive, Positive] = (500, 1000),
        num_updates: Positive = 10,
        num_chains: Positive = 100,
        num_temperatures: Positive = 14_500,
    ) -> None:
        super().__init__()
        require_binary_data(spec, "DBM")
        self.spec, self.num_updates, self.num_temperatures = spec, num_updates, num_temperatures
        visible = DataSpec((spec.dim,), kind="points", levels=2, range=(0.0, 1.0))
        self.first = RBM(visible, hidden=hidden[0], num_chains=num_chains)
        self.U = nn.Parameter(0.01 * torch.randn(hidden[1], hidden[0]))
        self.a = nn.Parameter(torch.zeros(hidden[1]))
        chains = torch.randint(2, (num_chains, spec.dim + hidden[1]))
        self.register_buffer("chains", chains.to(self.U))

    # --- the RBM with visible layer s = (v, g) (B, D + G) and hidden layer h (B, H) ---------------

    def split_state(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return v (B, D) and g (B, G) of s (B, D + G)."""
        return s[:, : self.spec.dim], s[:, self.spec.dim :]

    def hidden_logits(self, v: Tensor, g: Tensor) -> Tensor:
        """Return the logits (B, H) of p(h = 1 | v, g) = σ(c + Wv + Uᵀg)."""
        return torch.addmm(linear(v, self.first.W, self.first.c), g, self.U)

    def top_layer_probs(self, h: Tensor) -> Tensor:
        """Return p(g = 1 | h) = σ(a + Uh) (B, G)."""
        return linear(h, self.U, self.a).sigmoid()

    @in_full_precision
    def free_energy(self, s: Tensor) -> Tensor:
        """Return −log Σ_h exp(−E(v, h, g)) (B,) in nats for s = (v, g)."""
        v, g = self.split_state(s)
        return -(v @ self.first.b) - g @ self.a - softplus(self.hidden_logits(v, g)).sum(1)

    @torch.no_grad()
    def gibbs(self, s: Tensor, num_steps: int, report: StepReport | None = None) -> Tensor:
        """Return s (B, D + G) after Gibbs steps: h ~ p(h | v, g), then v, g ~ p(v | h) p(g | h).

        Args:
            report: receives the units after each step; see `make_step_report`.
        """
        for _ in range(num_steps):
            h = sample_bernoulli(self.hidden_logits(*self.split_state(s)).sigmoid())
            s = torch.cat(
                [self.first.sample_visible(h), sample_bernoulli(self.top_layer_probs(h))], 1
            )
            if report is not None:
                report(s, h)
        return s

    # --- posterior --------------------------------------------------------------------------------

    # Equations 6 and 7 of the paper: μ ← σ(c + Wv + Uᵀν), ν ← σ(a + Uμ). They start from ν = 1/2.
    @torch.no_grad()
    @in_full_precision
    def mean_field(self, v: Tensor, num_updates: int) -> tuple[Tensor, Tensor]:
        """Return the means μ (B, H) and ν (B, G) of the factorial q(h, g | v) for v (B, D)."""
        from_below = linear(v, self.first.W, self.first.c)  # (B, H), the same in every update
        nu = from_below.new_full((len(v), len(self.a)), 0.5)
        for _ in range(num_updates):
            mu = torch.addmm(from_below, nu, self.U).sigmoid()
            nu = self.top_layer_probs(mu)
        return torch.addmm(from_below, nu, self.U).sigmoid(), nu

    # The gradient of F(v, ν) with ν fixed is that of E_q[E(v, h, g)] at μ = σ(c + Wv + Uᵀν): the
    # data-dependent statistics v μᵀ and μ νᵀ of the paper's algorithm. F at the chains' states
    # gives those of the model.
    def loss(self, batch: Batch, s_model: Tensor | None = None) -> dict[str, Tensor]:
        """Return the free energy of the data, g filled in, minus that of the model's states.

        Args:
            s_model: states (·, D + G) of the model; None makes one Gibbs step from the data.
        """
        s_model = self.gibbs(self.chain_state_from_data(batch.x), 1) if s_model is None else s_model
        v = batch.x.flatten(1)
        s = torch.cat([v, self.mean_field(v, self.num_updates)[1]], 1)
        energy = self.free_energy(torch.cat([s, s_model]))
        data, model = energy[: len(v)].mean(), energy[len(v) :].mean()
        return {"loss": data - model, "energy/data": data, "energy/model": model}

    # --- called by the trainer --------------------------------------------------------------------

    @property
    def stage_modules(self) -> dict[str, nn.Module]:
        """The module that each training stage trains, by name."""
        return {"first": self.first, "both": self}

    def propagate_up(self, x: Tensor, stage: int) -> Tensor:
        """Return the training data of a stage: x itself in both stages."""
        return x

    @torch.no_grad()
    def init_stage(self, stage: int) -> None:
        """Prepare a stage; the second starts from the chains of the first RBM and random g."""
        if stage == 1:
            # units of g are on with probability 1/2: remove their mean input to h
            self.first.c.sub_(0.5 * self.U.sum(0))
            half = self.a.new_full((len(self.chains), len(self.a)), 0.5)
            self.chains.copy_(torch.cat([self.first.chains, sample_bernoulli(half)], 1))

    def chain_state_from_data(self, x: Tensor) -> Tensor:
        """Return the state (B, D + G) of a chain that starts at x (B, *shape).

        g is drawn from the mean-field posterior.
        """
        v = x.flatten(1)
        return torch.cat([v, sample_bernoulli(self.mean_field(v, self.num_updates)[1])], 1)

    def batch_data_stats(self, x: Tensor) -> Tensor:
        """Return the statistics of x (B, *shape) for `update_data_stats`: the means (D,)."""
        return self.first.batch_data_stats(x)

    @torch.no_grad()
    def update_data_stats(self, stats: Tensor, *, step: int, batch_size: int) -> None:
        """Update the running mean (D,) of the data; the first stage has initialized the biases."""
        self.first.base_rate.lerp_(stats, 1 / (step + 2))

    # --- bounds -----------------------------------------------------------------------------------

    @torch.no_grad()
    @in_full_precision
    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return the mean-field bound (B,) of log p(x) in nats: −E_q[E] + H(q) − log Z.

        Equation 5 of the paper.
        """
        check_sampling_arguments(self, y)
        v = x.flatten(1)
        mu, nu = self.mean_field(v, EVAL_MEAN_FIELD_UPDATES)
        minus_energy = v @ self.first.b + (mu * self.hidden_logits(v, nu)).sum(1) + nu @ self.a
        entropy = bernoulli_entropy(mu) + bernoulli_entropy(nu)
        return minus_energy + entropy - self.log_partition().value

    @in_full_precision
    def iwae(self, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) in nats.

        h is sampled from the mean-field posterior and g is summed out.
        """
        reject_labels(self, y)
        # logits (B, H) of q(h | v)
        q = torch.logit(self.mean_field(x.flatten(1), EVAL_MEAN_FIELD_UPDATES)[0], eps=1e-6)

        @torch.no_grad()
        def log_weights(x: Tensor) -> Tensor:
            logits = q.repeat(len(x) // len(q), 1)
            v, h = x.flatten(1), sample_bernoulli(logits.sigmoid())
            # log Σ_g exp(−E(v, h, g)) = vᵀb + hᵀ(c + Wv) + Σ_k log(1 + exp(a_k + U_k h))
            top = softplus(linear(h, self.U, self.a)).sum(1)
            below = v @ self.first.b + (h * linear(v, self.first.W, self.first.c)).sum(1)
            return below + top - bernoulli_log_prob(h, logits)

        bound = importance_weighted_bound(log_weights, x, num_samples)
        return bound - self.log_partition().value

    @cache_log_partition
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact if h or (v, g) has at most 20 units, else an estimate."""
        W, b, c = self.equivalent_rbm_parameters()
        if min(W.shape) <= MAX_ENUMERATED_UNITS:
            hidden_is_smaller = len(c) <= len(b)
            parameters = (W, b, c) if hidden_is_smaller else (W.T, c, b)
            return Estimate(enumerate_log_partition(*parameters), None, "exact")
        return self.ais_log_partition()

    def ais_log_partition(
        self, *, num_chains: int = 100, num_temperatures: int | None = None
    ) -> Estimate:
        """Return log Z in nats by annealed importance sampling from the data's base rates.

        Units of g are on with probability 1/2 in the base model.
        """
        W, b, c = self.equivalent_rbm_parameters()
        v_base = self.first.base_rate.clamp(0.01, 0.99).logit()
        return ais_log_partition(
            W,
            b,
            c,
            b_base=torch.cat([v_base, torch.zeros_like(self.a)]),
            num_chains=num_chains,
            num_temperatures=num_temperatures or self.num_temperatures,
        )

    @torch.no_grad()
    def equivalent_rbm_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (H, D + G) and biases (D + G,), (H,) of the RBM of (v, g) and h."""
        W = torch.cat([self.first.W, self.U.T], 1)
        return W, torch.cat([self.first.b, self.a]), self.first.c

    # --- other abilities --------------------------------------------------------------------------

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the mean-field means of h (B, H) for x (B, *shape)."""
        return self.mean_field(x.flatten(1), EVAL_MEAN_FIELD_UPDATES)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return p(x = 1 | h) (B, *shape) for units z (B, H) of the first layer."""
        return self.first.visible_probs(z).unflatten(1, self.spec.shape)

    def denoise(self, x: Tensor, *, sigma: float | None = None) -> Tensor:
        """Return p(x' = 1 | h) (B, *shape) at the mean-field means h of x."""
        return self.decode(self.encode(x))

    def sample_initial_states(self, n: int) -> Tensor:
        """Draw (v, g) (n, D + G) with independent units, to start chains."""
        g = sample_bernoulli(self.a.new_full((n, len(self.a)), 0.5))
        return torch.cat([self.first.sample_initial_states(n), g], 1)

    def pixel_means(self, s: Tensor) -> Tensor:
        """Return p(x = 1 | h) (B, *shape) for one sample of h from p(h | s)."""
        return self.decode(self.sample_hidden(s))

    def sample_hidden(self, s: Tensor) -> Tensor:
        """Draw h (B, H) from p(h | s)."""
        return sample_bernoulli(self.hidden_logits(*self.split_state(s)).sigmoid())

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
        s = self.sample_initial_states(n)
        report_step(s, None)
        s = self.gibbs(s, (steps or DEFAULT_GIBBS_STEPS) - 1, report_step)
        h = self.sample_hidden(s)
        means = self.decode(h)
        report_step(means.flatten(1), h)
        return means

    def to_items(self, s: Tensor) -> Tensor:
        """Return the items (B, *shape) of states s (B, D + G)."""
        return self.split_state(s)[0].unflatten(1, self.spec.shape)

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
        s = self.sample_initial_states(len(x))
        for _ in range(steps or DEFAULT_GIBBS_STEPS):
            v, g = self.split_state(s)
            clamped = torch.cat([torch.where(keep, data, v), g], 1)
            s = self.gibbs(clamped, 1)
        return torch.where(known, x, self.pixel_means(clamped))

    @torch.no_grad()
    def gibbs_chain(self, x: Tensor, num_steps: int, report: Report | None = None) -> Tensor:
        report_step = make_step_report(report, self.to_items, self.decode)
        s = self.chain_state_from_data(x)
        report_step(s, None)
        return self.to_items(self.gibbs(s, num_steps, report_step))

    def filters(self) -> Tensor:
        """Return the weights of each first-layer unit (H, *shape)."""
        return self.first.W.unflatten(1, self.spec.shape)
