"""Deep belief networks: Hinton, Osindero & Teh 2006.

https://doi.org/10.1162/neco.2006.18.7.1527. The variational bound is that of Salakhutdinov & Murray
2008.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn.functional import linear

from genlab.abilities import Estimate, Report, TrajectoryState
from genlab.models.boltzmann.binary_units import (
    check_sampling_arguments,
    reject_labels,
    require_binary_data,
    sample_bernoulli,
)
from genlab.models.boltzmann.bounds import bernoulli_log_prob, importance_weighted_bound
from genlab.models.boltzmann.gibbs_trajectory import (
    DEFAULT_GIBBS_STEPS,
    GibbsTrajectory,
    make_step_report,
)
from genlab.models.boltzmann.rbm import RBM
from genlab.nn.precision import in_full_precision
from genlab.spec import Batch, DataSpec, Positive


class DBN(GibbsTrajectory):
    """A deep belief network, whose top two layers form an RBM.

    p(x, h¹, …, hᴸ) = p(x | h¹) ⋯ p(hᴸ⁻² | hᴸ⁻¹) p(hᴸ⁻¹, hᴸ). Each layer is an RBM trained on the
    hidden units of the layer below, which is then frozen. Upward its p(h | v) approximates the
    posterior; downward its p(v | h) is the model.

    Args:
        hidden: number of units of each hidden layer, from the data up.
        num_chains: persistent Gibbs chains of each layer.
        num_temperatures: of the annealed importance sampling of the top RBM's log Z.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samples_are_means = True

    samplers = ("gibbs",)
    step_by_step = True

    gray_level_recipe = "grbm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: Annotated[tuple[Positive, ...], MinLen(2)] = (500, 2000),
        num_chains: Positive = 100,
        num_temperatures: Positive = 14_500,
    ) -> None:
        super().__init__()
        require_binary_data(spec, "DBN")
        self.spec = spec
        layer_specs = [
            DataSpec((n,), kind="points", levels=2, range=(0.0, 1.0)) for n in (spec.dim, *hidden)
        ]
        self.layers = nn.ModuleList(
            RBM(below, hidden=above.dim, num_chains=num_chains, num_temperatures=num_temperatures)
            for below, above in pairwise(layer_specs)
        )

    @property
    def rbms(self) -> list[RBM]:
        """The layers from the data up."""
        return [layer for layer in self.layers if isinstance(layer, RBM)]

    # --- greedy training stages -------------------------------------------------------------------

    @property
    def stage_modules(self) -> dict[str, nn.Module]:
        """The module that each training stage trains, by name."""
        return {f"layer{i}": layer for i, layer in enumerate(self.layers, 1)}

    def propagate_up(self, x: Tensor, stage: int) -> Tensor:
        """Draw the units (B, D') that a stage's layer is trained on from q(h | x)."""
        v = x.flatten(1)
        for layer in self.rbms[:stage]:
            v = sample_bernoulli(layer.hidden_probs(v))
        return v

    @torch.no_grad()
    def init_stage(self, stage: int) -> None:
        """Initialize a layer as the transpose of the layer below, if it has enough units.

        Then it defines the same p(h) as the layer below, so the bound starts at that RBM's log p(x)
        (section 4 of the paper), and the chains of the layer below are valid for it. Additional
        units are on with probability 1/2.
        """
        if stage == 0:
            return
        below, layer = self.rbms[stage - 1], self.rbms[stage]
        n = len(below.b)
        if len(layer.c) >= n:
            layer.W[:n], layer.c[:n] = below.W.T, below.b
            # additional units are on with probability 1/2: remove their mean input
            layer.b.copy_(below.c - 0.5 * layer.W[n:].sum(0))
            layer.chains.copy_(sample_bernoulli(below.hidden_probs(below.chains)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the layers' losses, each with one Gibbs step from its data (CD-1)."""
        parts = {}
        for stage, layer in enumerate(self.rbms):
            data = Batch(self.propagate_up(batch.x, stage))
            parts[f"layer{stage + 1}"] = layer.loss(data)["loss"]
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    # --- bounds -----------------------------------------------------------------------------------

    # Salakhutdinov & Murray 2008, section 6:
    # log p(x) ≥ E_q[log p(x | h¹) + ⋯ − F(hᴸ⁻¹) − log q(h | x)] − log Z
    @torch.no_grad()
    @in_full_precision
    def log_importance_weights(self, x: Tensor) -> Tensor:
        """Return log p*(x, h) − log q(h | x) (B,) in nats for one sample of h from q.

        p* is p without the 1/Z of the top RBM.
        """
        v = x.flatten(1)
        log_w = torch.zeros(len(v), dtype=v.dtype, device=v.device)
        for layer in self.rbms[:-1]:
            up = linear(v, layer.W, layer.c)  # (B, H), the logits of q(h | v)
            h = sample_bernoulli(up.sigmoid())
            down = torch.addmm(layer.b, h, layer.W)  # (B, D), the logits of p(v | h)
            log_w = log_w + bernoulli_log_prob(v, down) - bernoulli_log_prob(h, up)
            v = h
        return log_w - self.rbms[-1].free_energy(v)

    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return the variational bound (B,) of log p(x) in nats with one sample of h."""
        check_sampling_arguments(self, y)
        return self.log_importance_weights(x) - self.log_partition().value

    def iwae(self, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) of log p(x) in nats."""
        reject_labels(self, y)
        bound = importance_weighted_bound(self.log_importance_weights, x, num_samples)
        return bound - self.log_partition().value

    def log_partition(self) -> Estimate:
        """Return log Z of the top RBM in nats: exact or an estimate, as in `RBM`."""
        return self.rbms[-1].log_partition()

    # --- other abilities --------------------------------------------------------------------------

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the means of the top units (B, H) for x (B, *shape), propagated up."""
        v = x.flatten(1)
        for layer in self.rbms:
            v = layer.hidden_probs(v)
        return v

    def decode(self, z: Tensor) -> Tensor:
        """Return the pixel means (B, *shape) for top units z (B, H), propagated down."""
        return self.propagate_down(self.rbms[-1].visible_probs(z))

    def denoise(self, x: Tensor, *, sigma: float | None = None) -> Tensor:
        """Return x (B, *shape) propagated up to the top and down again."""
        return self.decode(self.encode(x))

    def propagate_down(self, h: Tensor) -> Tensor:
        """Return the pixel means (B, *shape) for the visible units h (B, H) of the top RBM."""
        for layer in reversed(self.rbms[:-1]):
            h = layer.visible_probs(h)
        return h.unflatten(1, self.spec.shape)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str = "gibbs",
        steps: Positive | None = None,
    ) -> Tensor:
        """Return pixel means (n, *shape) below the ends of n Gibbs chains of the top RBM.

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
        """Draw n items as `sample` does, and report the pixel means of the top RBM's chains."""
        check_sampling_arguments(self, y, sampler)
        steps = steps or DEFAULT_GIBBS_STEPS
        report_step = make_step_report(report, self.propagate_down)
        h = self.rbms[-1].sample_initial_states(n)
        report_step(h, None)
        h = self.rbms[-1].gibbs(h, steps - 1, report_step)
        h = self.rbms[-1].gibbs(h, 1)
        for layer in reversed(self.rbms[1:-1]):
            h = layer.sample_visible(h)
        means = self.rbms[0].visible_probs(h).unflatten(1, self.spec.shape)
        if report is not None:
            report(TrajectoryState(steps, f"step {steps:,}", means))
        return means

    @torch.no_grad()
    def gibbs_chain(self, x: Tensor, num_steps: int, report: Report | None = None) -> Tensor:
        """Return the pixels (B, *shape) of top-RBM chains from x, after num_steps Gibbs steps.

        Args:
            report: receives x, and the pixel means given the units of the top RBM after each step.
        """
        if report is not None:
            report(TrajectoryState(0, "step 0", x))
        report_step = make_step_report(report, self.propagate_down, first=1)
        h = self.propagate_up(x, len(self.rbms) - 1)
        h = self.rbms[-1].gibbs(h, num_steps, report_step)
        for layer in reversed(self.rbms[:-1]):
            h = layer.sample_visible(h)
        return h.unflatten(1, self.spec.shape)

    def filters(self) -> Tensor:
        """Return the weights of each first-layer unit (H, *shape)."""
        return self.rbms[0].W.unflatten(1, self.spec.shape)
