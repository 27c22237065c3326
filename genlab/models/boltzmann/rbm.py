"""RBM: Smolensky 1986; Hinton 2002, https://doi.org/10.1162/089976602760128018; Tieleman 2008 (persistent chains)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate
from genlab.models.boltzmann.ais import ais, enumerated, kept
from genlab.models.boltzmann.binary_units import ENUMERABLE, check, flip, refuse
from genlab.spec import Batch, Positive, Spec


class RBM(nn.Module):
    """A restricted Boltzmann machine of binary units: p(v, h) = exp(vᵀb + hᵀc + hᵀWv) / Z.

    Args:
        hidden: number of hidden units.
        chains: number of persistent Gibbs chains, which the trainer runs on for the negative statistics.
        temperatures: of annealed importance sampling, where log Z is too large a sum.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samplers = ("gibbs",)

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: Positive = 500,
        chains: Positive = 100,
        temperatures: Positive = 14_500,
    ) -> None:
        super().__init__()
        self.check(spec)
        self.spec, self.temperatures = spec, temperatures
        # Hinton 2010, A practical guide to training RBMs, section 8: small weights, hidden biases 0
        self.W = nn.Parameter(0.01 * torch.randn(hidden, spec.dim))
        self.b = nn.Parameter(torch.zeros(spec.dim))
        self.c = nn.Parameter(torch.zeros(hidden))
        self.register_buffer(
            "base_rate", torch.full((spec.dim,), 0.5)
        )  # the data's mean, as the trainer has seen it
        self.register_buffer("chains", torch.randint(2, (chains, spec.dim)).to(self.W))

    def check(self, spec: Spec) -> None:
        """Refuse data that p(v | h) is no law of."""
        check(spec, "RBM")

    # --- the mathematics, on flat visible units v (B, D) and hidden units h (B, H) ------------------------------------

    # Hinton 2010, eq. 25: F(v) = −vᵀb − Σ_j log(1 + exp(c_j + W_j v)), so that p(v) = exp(−F(v)) / Z
    def free_energy(self, v: Tensor) -> Tensor:
        """Return F(v) (B,) in nats of v (B, D)."""
        return -(v @ self.b) - softplus(linear(v, self.W, self.c)).sum(1)

    def p_hidden(self, v: Tensor) -> Tensor:
        """Return p(h_j = 1 | v) = σ(c_j + W_j v) (B, H)."""
        return linear(v, self.W, self.c).sigmoid()

    def p_visible(self, h: Tensor) -> Tensor:
        """Return p(v_i = 1 | h) = σ(b_i + hᵀW_i) (B, D)."""
        return torch.addmm(self.b, h, self.W).sigmoid()

    def draw_visible(self, h: Tensor) -> Tensor:
        """Draw v (B, D) from p(v | h)."""
        return flip(self.p_visible(h))

    def draw_base(self, n: int) -> Tensor:
        """Draw v (n, D) with independent units, as frequent as in the data: where a chain starts."""
        return flip(self.base_rate.expand(n, -1))

    @torch.no_grad()
    def gibbs(self, v: Tensor, k: int) -> Tensor:
        """Return v (B, D) after k steps of block Gibbs sampling: h ~ p(h | v), then v ~ p(v | h)."""
        for _ in range(k):
            h = flip(self.p_hidden(v))
            v = self.draw_visible(h)
        return v

    # The gradient of F(v) − F(v_model), v_model held fixed, is the negative of the contrastive statistic
    # ⟨h v⟩_data − ⟨h v⟩_model with h at its mean (Hinton 2002, eq. 5; Hinton 2010, eq. 9).
    def loss(self, batch: Batch, v_model: Tensor | None = None) -> dict[str, Tensor]:
        """Return the contrast of the data with v_model (·, D), or with one Gibbs step from the data (CD-1)."""
        v = batch.x.flatten(1)  # (B, D)
        v_model = self.gibbs(v, 1) if v_model is None else v_model.detach()
        energy = self.free_energy(torch.cat([v, v_model]))  # one product with W for both
        data, model = energy[: len(v)].mean(), energy[len(v) :].mean()
        return {"loss": data - model, "energy/data": data, "energy/model": model}

    # --- what the trainer asks ------------------------------------------------------------------------------------------

    def clamped(self, x: Tensor) -> Tensor:
        """Return the state (B, D) from which a chain leaves the data x (B, *shape)."""
        return x.flatten(1)

    def statistics(self, x: Tensor) -> Tensor:
        """Return what `watch` wants to know of x (B, *shape): the units' means (D,)."""
        return x.flatten(1).mean(0)

    @torch.no_grad()
    def watch(self, mean: Tensor, *, at: int, batch_size: int) -> None:
        """Keep the mean (D,) of the data seen so far, and start the visible biases from it."""
        self.base_rate.lerp_(mean, 1 / (at + 1))
        if at == 0:
            # Hinton 2010, section 8.1: b_i = log(p_i / (1 − p_i)); one batch knows p_i to about one part in its size
            self.b.copy_(self.base_rate.clamp(1 / batch_size, 1 - 1 / batch_size).logit())

    # --- abilities ------------------------------------------------------------------------------------------------

    def energy(self, x: Tensor) -> Tensor:
        """Return the free energy (B,) in nats of x (B, *shape): log p(x) = −energy(x) − log Z."""
        return self.free_energy(x.flatten(1))

    def encode(self, x: Tensor) -> Tensor:
        """Return p(h = 1 | x) (B, H) of x (B, *shape)."""
        return self.p_hidden(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | h) (B, *shape) of hidden units z (B, H)."""
        return self.p_visible(z).unflatten(1, self.spec.shape)

    def denoise(self, x: Tensor) -> Tensor:
        """Return the mean of p(x' | h) at the mean h of p(h | x), (B, *shape): one step up and down."""
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
        """Return the means of p(x | h) (n, *shape) at the end of n Gibbs chains of `steps` steps (1,000 if None).

        Each chain starts from pixels drawn independently at the data's base rates, so that samples are independent.

        Raises:
            UserError: y is given, or another sampler than "gibbs".
        """
        refuse(self, y, sampler)
        v = self.gibbs(self.draw_base(n), (steps or 1000) - 1)
        return self.decode(flip(self.p_hidden(v)))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, steps: Positive = 1000) -> Tensor:
        """Return x (B, *shape) with unknown values at their means given h, after Gibbs steps in which the known stay."""
        data, keep = x.flatten(1), known.expand_as(x).flatten(1)
        v = torch.where(keep, data, self.draw_base(len(x)))
        for _ in range(steps - 1):
            v = torch.where(keep, data, self.gibbs(v, 1))
        return torch.where(known, x, self.decode(flip(self.p_hidden(v))))

    def walk(self, x: Tensor, k: int) -> Tensor:
        """Return the state (B, *shape) of the chains that left x (B, *shape) k Gibbs steps ago."""
        return self.gibbs(x.flatten(1), k).unflatten(1, self.spec.shape)

    def filters(self) -> Tensor:
        """Return each hidden unit's weights (H, *shape)."""
        return self.W.unflatten(1, self.spec.shape)

    @kept
    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact where a side has at most 20 units, else estimated by `ais`."""
        if min(self.W.shape) <= ENUMERABLE:
            return Estimate(self.enumerate_log_partition(), None, "exact")
        return self.ais()

    def ais(self, *, chains: int = 100, temperatures: int | None = None) -> Estimate:
        """Return log Z in nats, estimated by annealed importance sampling from the data's base rates."""
        b_base = self.base_rate.clamp(0.01, 0.99).logit()
        return ais(
            self.W,
            self.b,
            self.c,
            b_base=b_base,
            chains=chains,
            temperatures=temperatures or self.temperatures,
        )

    def enumerate_log_partition(self, *, over: str | None = None) -> float:
        """Return log Z in nats by a sum over all states of one side, "hidden" or "visible"; the smaller one if None."""
        if over == "visible" or (over is None and len(self.b) < len(self.c)):
            return enumerated(self.W.T, self.c, self.b)  # the sides are symmetric
        return enumerated(self.W, self.b, self.c)
