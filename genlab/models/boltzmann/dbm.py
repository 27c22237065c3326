"""DBM: Salakhutdinov & Hinton 2009, Deep Boltzmann machines, https://proceedings.mlr.press/v5/salakhutdinov09a.html."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate
from genlab.models.boltzmann.ais import ais, enumerated, kept
from genlab.models.boltzmann.binary_units import ENUMERABLE, check, flip, refuse
from genlab.models.boltzmann.bounds import entropy, importance_weighted, log_bernoulli
from genlab.models.boltzmann.rbm import RBM
from genlab.spec import Batch, Positive, Spec

CONVERGED = 50  # mean-field updates of a bound that is reported


class DBM(nn.Module):
    """A deep Boltzmann machine of two hidden layers: p(v, h, g) = exp(vᵀb + hᵀc + gᵀa + hᵀWv + gᵀUh) / Z.

    No unit of v and g is coupled to another of them: (v, g) and h are the two sides of an RBM half of whose visible side
    is missing, which is what its Gibbs steps, its free energy and its log Z use. The data-dependent statistics fill the
    missing half in by mean field. The first stage trains the RBM (v, h) alone, with g still idle; the second all of it.

    Args:
        hidden: numbers of units of h and g.
        updates: mean-field updates that a training step takes.
        chains: number of persistent Gibbs chains.
        temperatures: of the annealed importance sampling of log Z.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samplers = ("gibbs",)

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: tuple[Positive, Positive] = (500, 1000),
        updates: Positive = 10,
        chains: Positive = 100,
        temperatures: Positive = 14_500,
    ) -> None:
        super().__init__()
        check(spec, "DBM")
        self.spec, self.updates, self.temperatures = spec, updates, temperatures
        visible = Spec((spec.dim,), kind="points", levels=2, range=(0.0, 1.0))
        self.first = RBM(visible, hidden=hidden[0], chains=chains)
        self.U = nn.Parameter(0.01 * torch.randn(hidden[1], hidden[0]))
        self.a = nn.Parameter(torch.zeros(hidden[1]))
        self.register_buffer("chains", torch.randint(2, (chains, spec.dim + hidden[1])).to(self.U))

    # --- the RBM whose visible side is s = (v, g) (B, D + G) and whose hidden side is h (B, H) -------------------------

    def split(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return v (B, D) and g (B, G) of s (B, D + G)."""
        return s[:, : self.spec.dim], s[:, self.spec.dim :]

    def logits(self, v: Tensor, g: Tensor) -> Tensor:
        """Return the logits (B, H) of p(h = 1 | v, g) = σ(c + Wv + Uᵀg)."""
        return torch.addmm(linear(v, self.first.W, self.first.c), g, self.U)

    def p_top(self, h: Tensor) -> Tensor:
        """Return p(g = 1 | h) = σ(a + Uh) (B, G)."""
        return linear(h, self.U, self.a).sigmoid()

    def free_energy(self, s: Tensor) -> Tensor:
        """Return −log Σ_h exp(−E(v, h, g)) (B,) in nats of s = (v, g)."""
        v, g = self.split(s)
        return -(v @ self.first.b) - g @ self.a - softplus(self.logits(v, g)).sum(1)

    @torch.no_grad()
    def gibbs(self, s: Tensor, k: int) -> Tensor:
        """Return s (B, D + G) after k steps: h ~ p(h | v, g), then v ~ p(v | h) and g ~ p(g | h)."""
        for _ in range(k):
            h = flip(self.logits(*self.split(s)).sigmoid())
            s = torch.cat([self.first.draw_visible(h), flip(self.p_top(h))], 1)
        return s

    # --- the posterior --------------------------------------------------------------------------------------------------

    # Equations 6 and 7 of the paper: μ ← σ(c + Wv + Uᵀν), ν ← σ(a + Uμ), from the RBM's posterior and idle g
    @torch.no_grad()
    def mean_field(self, v: Tensor, updates: int) -> tuple[Tensor, Tensor]:
        """Return the means μ (B, H) and ν (B, G) of the factorial q(h, g | v) of v (B, D)."""
        from_below = linear(v, self.first.W, self.first.c)  # (B, H), the same in every update
        nu = from_below.new_full((len(v), len(self.a)), 0.5)
        for _ in range(updates):
            mu = torch.addmm(from_below, nu, self.U).sigmoid()
            nu = self.p_top(mu)
        return torch.addmm(from_below, nu, self.U).sigmoid(), nu

    # The gradient of F(v, ν) with ν held fixed is that of E_q[E(v, h, g)] at μ = σ(c + Wv + Uᵀν): the data-dependent
    # statistics v μᵀ and μ νᵀ of the paper's algorithm; F at the chains' states gives the model's.
    def loss(self, batch: Batch, s_model: Tensor | None = None) -> dict[str, Tensor]:
        """Return the contrast of the data, g filled in, with s_model (·, D + G), or with one Gibbs step from the data."""
        s_model = self.gibbs(self.clamped(batch.x), 1) if s_model is None else s_model
        v = batch.x.flatten(1)
        s = torch.cat([v, self.mean_field(v, self.updates)[1]], 1)
        energy = self.free_energy(torch.cat([s, s_model]))
        data, model = energy[: len(v)].mean(), energy[len(v) :].mean()
        return {"loss": data - model, "energy/data": data, "energy/model": model}

    # --- what the trainer asks ------------------------------------------------------------------------------------------

    @property
    def machines(self) -> dict[str, nn.Module]:
        """What is trained in each stage."""
        return {"first": self.first, "both": self}

    def rise(self, x: Tensor, stage: int) -> Tensor:
        """Return what a stage is trained on: the data, in both."""
        return x

    @torch.no_grad()
    def begin(self, stage: int) -> None:
        """Start the whole machine from the first RBM's chains, with g idle."""
        if stage == 1:
            self.first.c -= 0.5 * self.U.sum(
                0
            )  # an idle unit is on half of the time: take its push back
            idle = self.a.new_full((len(self.chains), len(self.a)), 0.5)
            self.chains.copy_(torch.cat([self.first.chains, flip(idle)], 1))

    def clamped(self, x: Tensor) -> Tensor:
        """Return the state (B, D + G) from which a chain leaves the data x (B, *shape): g drawn by mean field."""
        v = x.flatten(1)
        return torch.cat([v, flip(self.mean_field(v, self.updates)[1])], 1)

    def statistics(self, x: Tensor) -> Tensor:
        """Return what `watch` wants to know of x (B, *shape): the units' means (D,)."""
        return self.first.statistics(x)

    @torch.no_grad()
    def watch(self, mean: Tensor, *, at: int, batch_size: int) -> None:
        """Keep the mean (D,) of the data; the biases have learnt it in the first stage."""
        self.first.base_rate.lerp_(mean, 1 / (at + 2))

    # --- the bound ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean-field bound (B,) of log p(x) in nats (equation 5 of the paper): −E_q[E] + H(q) − log Z."""
        refuse(self, y)
        v = x.flatten(1)
        mu, nu = self.mean_field(v, CONVERGED)
        minus_energy = v @ self.first.b + (mu * self.logits(v, nu)).sum(1) + nu @ self.a
        return minus_energy + entropy(mu) + entropy(nu) - self.log_partition().value

    def iwae(self, x: Tensor, k: int) -> Tensor:
        """Return the importance-weighted bound (B,) with k draws of h from mean field, g summed over, in nats."""
        q = torch.logit(self.mean_field(x.flatten(1), CONVERGED)[0], eps=1e-6)  # (B, H)

        @torch.no_grad()
        def log_weights(x: Tensor) -> Tensor:
            up = q.repeat(len(x) // len(q), 1)
            v, h = x.flatten(1), flip(up.sigmoid())
            # log Σ_g exp(−E(v, h, g)) = vᵀb + hᵀ(c + Wv) + Σ_k log(1 + exp(a_k + U_k h))
            top = softplus(linear(h, self.U, self.a)).sum(1)
            below = v @ self.first.b + (h * linear(v, self.first.W, self.first.c)).sum(1)
            return below + top - log_bernoulli(h, up)

        return importance_weighted(log_weights, x, k) - self.log_partition().value

    @kept
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact where a side, h or (v, g), has at most 20 units, else estimated by `ais`."""
        W, b, c = self.joined()
        if min(W.shape) <= ENUMERABLE:
            sides = (W, b, c) if len(c) <= len(b) else (W.T, c, b)
            return Estimate(enumerated(*sides), None, "exact")
        return self.ais()

    def ais(self, *, chains: int = 100, temperatures: int | None = None) -> Estimate:
        """Return log Z in nats, estimated by annealed importance sampling from the data's base rates and idle g."""
        W, b, c = self.joined()
        b_base = torch.cat(
            [self.first.base_rate.clamp(0.01, 0.99).logit(), torch.zeros_like(self.a)]
        )
        return ais(
            W, b, c, b_base=b_base, chains=chains, temperatures=temperatures or self.temperatures
        )

    @torch.no_grad()
    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights (H, D + G) and biases (D + G,), (H,) of the RBM of (v, g) and h."""
        return (
            torch.cat([self.first.W, self.U.T], 1),
            torch.cat([self.first.b, self.a]),
            self.first.c,
        )

    # --- the other abilities --------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean-field means of h (B, H) of x (B, *shape)."""
        return self.mean_field(x.flatten(1), CONVERGED)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return p(x = 1 | h) (B, *shape) of units z (B, H) of the first layer."""
        return self.first.p_visible(z).unflatten(1, self.spec.shape)

    def denoise(self, x: Tensor) -> Tensor:
        """Return p(x' = 1 | h) (B, *shape) at the mean-field means h of x."""
        return self.decode(self.encode(x))

    def draw_base(self, n: int) -> Tensor:
        """Draw (v, g) (n, D + G) with independent units: where a chain starts."""
        return torch.cat([self.first.draw_base(n), flip(self.a.new_full((n, len(self.a)), 0.5))], 1)

    def means(self, s: Tensor) -> Tensor:
        """Return p(x = 1 | h) (B, *shape) of one draw of h from p(h | s)."""
        return self.decode(flip(self.logits(*self.split(s)).sigmoid()))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str = "gibbs",
        steps: Positive | None = None,
    ) -> Tensor:
        """Return the means of p(x | h) (n, *shape) at the end of n Gibbs chains of `steps` steps (1,000 if None).

        Raises:
            UserError: y is given, or another sampler than "gibbs".
        """
        refuse(self, y, sampler)
        return self.means(self.gibbs(self.draw_base(n), (steps or 1000) - 1))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, steps: Positive = 1000) -> Tensor:
        """Return x (B, *shape) with unknown values at their means given h, after Gibbs steps in which the known stay."""
        data, keep = x.flatten(1), known.expand_as(x).flatten(1)
        s = self.draw_base(len(x))
        for _ in range(steps):
            v, g = self.split(s)
            clamped = torch.cat([torch.where(keep, data, v), g], 1)
            s = self.gibbs(clamped, 1)
        return torch.where(known, x, self.means(clamped))

    @torch.no_grad()
    def walk(self, x: Tensor, k: int) -> Tensor:
        """Return the pixels (B, *shape) of the chains that left x (B, *shape) k Gibbs steps ago."""
        return self.split(self.gibbs(self.clamped(x), k))[0].unflatten(1, self.spec.shape)

    def filters(self) -> Tensor:
        """Return each first-layer unit's weights (H, *shape)."""
        return self.first.W.unflatten(1, self.spec.shape)
