"""DBN: Hinton, Osindero & Teh 2006, https://doi.org/10.1162/neco.2006.18.7.1527; its bound: Salakhutdinov & Murray 2008."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn.functional import linear

from genlab.abilities import Estimate
from genlab.models.boltzmann.binary_units import check, flip, refuse
from genlab.models.boltzmann.bounds import importance_weighted, log_bernoulli
from genlab.models.boltzmann.rbm import RBM
from genlab.spec import Batch, Positive, Spec


class DBN(nn.Module):
    """A deep belief net: p(x, h¹, …, hᴸ) = p(x | h¹) ⋯ p(hᴸ⁻² | hᴸ⁻¹) p(hᴸ⁻¹, hᴸ), the last factor an RBM.

    Each layer is an RBM that is trained on the hidden units of the one below, which from then on stays as it is: upwards
    its p(h | v) approximates the posterior, downwards its p(v | h) is the model.

    Args:
        hidden: number of units of each hidden layer, from the data up.
        chains: number of persistent Gibbs chains of each layer.
        temperatures: of the annealed importance sampling of the top RBM's log Z.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    samplers = ("gibbs",)

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: Annotated[tuple[Positive, ...], MinLen(2)] = (500, 2000),
        chains: Positive = 100,
        temperatures: Positive = 14_500,
    ) -> None:
        super().__init__()
        check(spec, "DBN")
        self.spec = spec
        units = [Spec((n,), kind="points", levels=2, range=(0.0, 1.0)) for n in (spec.dim, *hidden)]
        self.layers = nn.ModuleList(
            RBM(below, hidden=above.dim, chains=chains, temperatures=temperatures)
            for below, above in pairwise(units)
        )

    # --- the greedy stages --------------------------------------------------------------------------------------------

    @property
    def machines(self) -> dict[str, nn.Module]:
        """What is trained in each stage."""
        return {f"layer{i}": layer for i, layer in enumerate(self.layers, 1)}

    def rise(self, x: Tensor, stage: int) -> Tensor:
        """Draw the units (B, D') that the layer of a stage is trained on from q(h | x), of x (B, *shape)."""
        v = x.flatten(1)
        for layer in self.layers[:stage]:
            v = flip(layer.p_hidden(v))
        return v

    @torch.no_grad()
    def begin(self, stage: int) -> None:
        """Start a layer as the one below turned upside down, where it has units enough, its other units idle.

        Then it defines the very p(h) that the one below does, the bound starts at that RBM's log p(x) (section 4 of the
        paper), and the chains of the one below are its own.
        """
        if stage == 0:
            return
        below, layer = self.layers[stage - 1], self.layers[stage]
        n = len(below.b)
        if len(layer.c) >= n:
            layer.W[:n], layer.c[:n] = below.W.T, below.b
            layer.b.copy_(
                below.c - 0.5 * layer.W[n:].sum(0)
            )  # an idle unit is on half of the time: take its push back
            layer.chains.copy_(flip(below.p_hidden(below.chains)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the layers' contrasts, each with one Gibbs step from its data (CD-1)."""
        parts = {}
        for stage, (name, layer) in enumerate(self.machines.items()):
            parts[name] = layer.loss(Batch(self.rise(batch.x, stage)))["loss"]
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    # --- the bound ------------------------------------------------------------------------------------------------------

    # Salakhutdinov & Murray 2008, section 6: log p(x) ≥ E_q[log p(x | h¹) + ⋯ − F(hᴸ⁻¹) − log q(h | x)] − log Z
    @torch.no_grad()
    def log_weights(self, x: Tensor) -> Tensor:
        """Return log p*(x, h) − log q(h | x) (B,) of one draw of h from q, in nats; p* lacks the top RBM's 1/Z."""
        v, log_w = x.flatten(1), 0.0
        for layer in self.layers[:-1]:
            up = linear(v, layer.W, layer.c)  # (B, H), the logits of q(h | v)
            h = flip(up.sigmoid())
            down = torch.addmm(layer.b, h, layer.W)  # (B, D), the logits of p(v | h)
            log_w = log_w + log_bernoulli(v, down) - log_bernoulli(h, up)
            v = h
        return log_w - self.layers[-1].free_energy(v)

    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the variational bound (B,) of log p(x) with one draw of the hidden units, in nats."""
        refuse(self, y)
        return self.log_weights(x) - self.log_partition().value

    def iwae(self, x: Tensor, k: int) -> Tensor:
        """Return the importance-weighted bound (B,) with k draws of the hidden units, in nats."""
        return importance_weighted(self.log_weights, x, k) - self.log_partition().value

    def log_partition(self) -> Estimate:
        """Return the top RBM's log Z in nats, exact where a side of it has at most 20 units, else an estimate."""
        return self.layers[-1].log_partition()

    # --- the other abilities --------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Return the means of the top units (B, H) of x (B, *shape), passed up."""
        v = x.flatten(1)
        for layer in self.layers:
            v = layer.p_hidden(v)
        return v

    def decode(self, z: Tensor) -> Tensor:
        """Return the means of the pixels (B, *shape) of top units z (B, H), passed down."""
        return self.fall(self.layers[-1].p_visible(z))

    def denoise(self, x: Tensor) -> Tensor:
        """Return x (B, *shape) passed up to the top and down again."""
        return self.decode(self.encode(x))

    def fall(self, h: Tensor) -> Tensor:
        """Return the means of the pixels (B, *shape) below the units h (B, H) that the top RBM sees."""
        for layer in reversed(self.layers[:-1]):
            h = layer.p_visible(h)
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
        """Return the means of p(x | h) (n, *shape) below the ends of n Gibbs chains of the top RBM (1,000 steps if None).

        Raises:
            UserError: y is given, or another sampler than "gibbs".
        """
        refuse(self, y, sampler)
        h = flip(self.layers[-1].sample(n, steps=steps))
        for layer in reversed(self.layers[1:-1]):
            h = layer.draw_visible(h)
        return self.layers[0].p_visible(h).unflatten(1, self.spec.shape)

    @torch.no_grad()
    def walk(self, x: Tensor, k: int) -> Tensor:
        """Return the pixels (B, *shape) below the top RBM's chains that left x (B, *shape) k Gibbs steps ago."""
        h = self.layers[-1].gibbs(self.rise(x, len(self.layers) - 1), k)
        for layer in reversed(self.layers[:-1]):
            h = layer.draw_visible(h)
        return h.unflatten(1, self.spec.shape)

    def filters(self) -> Tensor:
        """Return each first-layer unit's weights (H, *shape)."""
        return self.layers[0].W.unflatten(1, self.spec.shape)
