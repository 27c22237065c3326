"""MADE: Germain, Gregor, Murray & Larochelle 2015, https://arxiv.org/abs/1502.03509."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.autoregressive.base import Autoregressive
from genlab.models.autoregressive.likelihoods import make
from genlab.nn.mlp import ACTIVATIONS, Activation
from genlab.spec import Batch, Positive, Spec


class MADE(Autoregressive):
    """An autoencoder whose weights are masked, so that an output depends on the values before it in an order only.

    Training takes one of `masks` sets of masks at each step; the model is their even mixture (section 4.2).

    Args:
        likelihood: "bernoulli" for binary data, "categorical" for a softmax over any number of levels.
        hidden: widths of the hidden layers; none: a logistic regression on the values before, the fully visible belief net.
        masks: how many sets of masks there are.
        order_agnostic: each set has a random order of the values; otherwise all have the data's own.
        connectivity_agnostic: each set draws anew what the hidden units may see; otherwise all have the first one's.
        direct: also connect the values straight to the outputs after them (section 4, equation 11).
        conditional: learn p(x | y), the class adding a bias to the first layer.

    Raises:
        UserError: the data is not made of discrete levels, or several sets of masks would all be the same.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        likelihood: Literal["bernoulli", "categorical"] = "bernoulli",
        hidden: tuple[Positive, ...] = (500,),
        activation: Activation = "relu",
        masks: Positive = 1,
        order_agnostic: bool = False,
        connectivity_agnostic: bool = False,
        direct: bool = True,
        conditional: bool = False,
    ) -> None:
        super().__init__(spec, make(likelihood, spec), conditional=conditional)
        if masks > 1 and not order_agnostic and not (connectivity_agnostic and hidden):
            raise UserError(
                f"model.masks={masks} sets of masks would all be the same: set model.order_agnostic=true, or "
                "model.connectivity_agnostic=true with hidden layers, or model.masks=1"
            )
        sizes = [spec.dim, *hidden, spec.dim * self.likelihood.params]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.direct = None
        if direct and hidden:
            self.direct = nn.Linear(spec.dim, sizes[-1], bias=False)  # A
            nn.init.zeros_(
                self.direct.weight
            )  # hundreds of values reach an output: small random weights drown the first steps
        self.activation = ACTIVATIONS[activation]()
        self.classes = nn.Embedding(spec.classes, sizes[1]) if conditional else None
        # m⁰: the place of each value in the order, 1 … D, and m¹ …: how many values a hidden unit may see (section 4.1)
        orders = [
            torch.randperm(spec.dim) if order_agnostic else torch.arange(spec.dim)
            for _ in range(masks)
        ]
        degrees = [
            draw_degrees(spec.dim, hidden) for _ in range(masks if connectivity_agnostic else 1)
        ]
        self.register_buffer("degrees_0", torch.stack(orders) + 1)  # (masks, D)
        for i, layer in enumerate(zip(*degrees, strict=True), 1):
            self.register_buffer(
                f"degrees_{i}", torch.stack(layer).expand(masks, -1).clone()
            )  # (masks, hidden)

    def scaled(self, x: Tensor) -> Tensor:
        """Return x mapped from the data's range onto [0, 1], where a picture's ground is 0 and asks nothing of the weights."""
        low, high = self.spec.range
        return (x - low) / (high - low)

    def weights(self, k: int) -> list[Tensor]:
        """Return each layer's weights under the k-th set of masks, and last those of the direct connections, if there are."""
        last = len(self.layers) - 1
        m = [getattr(self, f"degrees_{i}")[k] for i in range(last + 1)]
        masks = [m[i + 1][:, None] >= m[i] for i in range(last)]  # equation 12
        masks.append((m[0][:, None] > m[last]).repeat(self.likelihood.params, 1))  # equation 13
        layers = [*self.layers]
        if self.direct is not None:
            masks.append((m[0][:, None] > m[0]).repeat(self.likelihood.params, 1))
            layers.append(self.direct)
        return [layer.weight * mask for layer, mask in zip(layers, masks, strict=True)]

    def network(self, x: Tensor, y: Tensor | None, weights: list[Tensor]) -> Tensor:
        """Return the likelihood's params (B, P, *shape) of x (B, *shape) with masked weights."""
        h = v = self.scaled(x).flatten(1)
        for i, layer in enumerate(self.layers):
            h = F.linear(self.activation(h) if i else h, weights[i], layer.bias)
            if i == 0 and self.classes is not None:
                h = h + self.classes(y)
        if self.direct is not None:
            h = h + F.linear(v, weights[-1])
        return h.unflatten(1, (-1, *self.spec.shape))

    def outputs(self, x: Tensor, y: Tensor | None, k: int = 0) -> Tensor:
        """Return the likelihood's params (B, P, *shape) of x (B, *shape) under the k-th set of masks."""
        return self.network(x, y, self.weights(k))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p_k(x), or −log p_k(x | y), in nats a picture, k a random set of masks."""
        y = batch.y if self.conditional else None
        out = self.outputs(batch.x, y, int(torch.randint(len(self.degrees_0), ())))
        return {"loss": -self.likelihood.log_prob(out, batch.x).mean()}

    def score(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return log (1/K) Σ_k p_k(x), or that of p_k(x | y), (B,) in nats, over the K sets of masks."""
        masks = len(self.degrees_0)
        each = [self.likelihood.log_prob(self.outputs(x, y, k), x) for k in range(masks)]
        return torch.stack(each).logsumexp(0) - math.log(masks)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, y: Tensor | None = None) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn in order, the others kept.

        Each picture draws a set of masks evenly and follows its order: a value is drawn given all values before it and none
        after it. With one set, where `known` is a prefix of the order, this is the model's conditional distribution. A
        conditional model draws a class evenly where y (B,) is not given.
        """
        self.check(y)
        known = known.expand_as(x)
        x = torch.where(known, x, self.spec.range[0])
        if self.conditional and y is None:
            y = torch.randint(self.spec.classes, (len(x),), device=x.device)
        which = torch.randint(len(self.degrees_0), (len(x),), device=x.device)
        for k in which.unique().tolist():
            mine = which == k
            x[mine] = self.follow(x[mine], known[mine], y[mine] if self.conditional else None, k)
        return x

    def follow(self, x: Tensor, known: Tensor, y: Tensor | None, k: int) -> Tensor:
        """Draw the unknown values of x (B, *shape) in the k-th order: a pass of the network for each."""
        weights, x, known = self.weights(k), x.flatten(1), known.flatten(1)
        for i in self.degrees_0[k].argsort().tolist():
            if not known[:, i].all():
                out = self.network(x.unflatten(1, self.spec.shape), y, weights).flatten(2)[:, :, i]
                x[:, i] = self.likelihood.complete(out, x[:, i], known[:, i])
        return x.unflatten(1, self.spec.shape)


def draw_degrees(dim: int, hidden: tuple[int, ...]) -> list[Tensor]:
    """Draw how many values each hidden unit may see (width,), layer by layer, from the least of the layer before to D − 1."""
    degrees, least = [], 1
    for width in hidden:
        degrees.append(torch.randint(least, max(dim, least + 1), (width,)))
        least = int(degrees[-1].min())
    return degrees
