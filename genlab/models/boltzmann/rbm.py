"""RBM: Smolensky 1986; Hinton 2002, https://doi.org/10.1162/089976602760128018; Tieleman 2008 (persistent chains)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from genlab.abilities import Estimate
from genlab.errors import UserError
from genlab.models.boltzmann.ais import ais
from genlab.spec import Batch, Positive, Spec

ENUMERABLE = 20  # units of the smaller side up to which log Z is a sum over all of its states


class RBM(nn.Module):
    """A restricted Boltzmann machine of binary units: p(v, h) = exp(vᵀb + hᵀc + hᵀWv) / Z.

    Args:
        hidden: number of hidden units.
        chains: number of persistent Gibbs chains, which the trainer runs on for the negative statistics.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samplers = ("gibbs",)

    def __init__(self, spec: Spec, *, hidden: Positive = 500, chains: Positive = 100) -> None:
        super().__init__()
        if spec.levels != 2 or tuple(spec.range) != (0, 1):
            raise UserError("RBM needs binary values 0 and 1, and this dataset gives "
                            f"{spec.levels or 'real'} levels in {list(spec.range)}; "
                            "set dataset.binarize=dynamic dataset.range=[0,1]")  # fmt: skip
        self.spec = spec
        # Hinton 2010, A practical guide to training RBMs, section 8: small weights, hidden biases 0
        self.W = nn.Parameter(0.01 * torch.randn(hidden, spec.dim))
        self.b = nn.Parameter(torch.zeros(spec.dim))
        self.c = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base_rate", torch.full((spec.dim,), 0.5))  # the data's mean, as the trainer has seen it
        self.register_buffer("chains", torch.randint(2, (chains, spec.dim)).to(self.W))

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

    @torch.no_grad()
    def gibbs(self, v: Tensor, k: int) -> Tensor:
        """Return v (B, D) after k steps of block Gibbs sampling: h ~ p(h | v), then v ~ p(v | h)."""
        for _ in range(k):
            h = flip(self.p_hidden(v))
            v = flip(self.p_visible(h))
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

    # --- abilities ------------------------------------------------------------------------------------------------

    def energy(self, x: Tensor) -> Tensor:
        """Return the free energy (B,) in nats of x (B, *shape): log p(x) = −energy(x) − log Z."""
        return self.free_energy(x.flatten(1))

    def encode(self, x: Tensor) -> Tensor:
        """Return p(h = 1 | x) (B, H) of x (B, *shape)."""
        return self.p_hidden(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        """Return p(x = 1 | h) (B, *shape) of hidden units z (B, H)."""
        return self.p_visible(z).unflatten(1, self.spec.shape)

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, sampler: str = "gibbs", steps: Positive | None = None
    ) -> Tensor:
        """Return the probabilities p(x | h) (n, *shape) at the end of n Gibbs chains of `steps` steps (1,000 if None).

        Each chain starts from pixels drawn independently at the data's base rates, so that samples are independent.

        Raises:
            UserError: y is given, or another sampler than "gibbs".
        """
        if y is not None:
            raise UserError("RBM has no classes: it cannot draw a given one; leave the class out")
        if sampler not in self.samplers:
            raise UserError(f"RBM has no sampler '{sampler}'; it has {', '.join(self.samplers)}")
        v = self.gibbs(flip(self.base_rate.expand(n, -1)), (steps or 1000) - 1)
        return self.decode(flip(self.p_hidden(v)))

    def log_partition(self) -> Estimate:
        """Return log Z in nats: exact where a side has at most 20 units, else estimated by `ais` with its defaults."""
        if min(self.W.shape) <= ENUMERABLE:
            return Estimate(self.enumerate_log_partition(), None, "exact")
        return self.ais()

    def ais(self, *, chains: int = 100, temperatures: int = 14_500) -> Estimate:
        """Return log Z in nats, estimated by annealed importance sampling from the data's base rates."""
        rate = self.base_rate.clamp(0.01, 0.99)
        return ais(self.W, self.b, self.c, b_base=rate.logit(), chains=chains, temperatures=temperatures)

    @torch.no_grad()
    def enumerate_log_partition(self, *, over: str | None = None) -> float:
        """Return log Z in nats by a sum over all states of one side, "hidden" or "visible"; the smaller one if None."""
        W, b, c = self.W.double(), self.b.double(), self.c.double()
        if over == "visible" or (over is None and len(b) < len(c)):
            W, b, c = W.T, c, b  # the sides are symmetric
        # Z = Σ_h exp(hᵀc) Π_i (1 + exp(b_i + hᵀW_i)); in parts, to bound the memory
        bits = torch.arange(len(c), device=W.device)
        parts = []
        for states in torch.arange(2 ** len(c), device=W.device).split(4096):
            h = (states[:, None] >> bits & 1).to(W)  # (4096, H)
            parts.append((h @ c + softplus(torch.addmm(b, h, W)).sum(1)).logsumexp(0))
        return torch.stack(parts).logsumexp(0).item()


def flip(p: Tensor) -> Tensor:
    """Draw binary values, 1 with probability p; the coin is at least of single precision."""
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    return (torch.rand(p.shape, dtype=dtype, device=p.device) < p).to(dtype)
