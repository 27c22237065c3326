"""MADE: Germain, Gregor, Murray & Larochelle 2015, https://arxiv.org/abs/1502.03509."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.abilities import Report, TrajectoryState
from genlab.console import track
from genlab.errors import UserError
from genlab.models.autoregressive.base import AutoregressiveImageModel
from genlab.models.autoregressive.likelihoods import make_likelihood
from genlab.nn.mlp import ACTIVATIONS, Activation
from genlab.spec import Batch, DataSpec, Positive

# Values times levels up to which the output layers of a softmax stay small.
MAX_CATEGORICAL_OUTPUTS = 2**16


class MADE(AutoregressiveImageModel):
    """An autoencoder with masked weights: an output only depends on the values before it.

    Each training step uses one of `num_masks` sets of masks; the model is their even mixture
    (section 4.2).

    Args:
        likelihood: "bernoulli" for binary data, "categorical" for a softmax over any number of
            levels.
        hidden: widths of the hidden layers; without any, the model is a logistic regression on
            earlier values, the fully visible belief net.
        num_masks: number of sets of masks.
        order_agnostic: each set has a random order of the values; otherwise all have the data's
            order.
        connectivity_agnostic: each set has random connections of the hidden units; otherwise all
            have those of the first set.
        direct_connections: also connect values directly to later outputs (section 4, equation 11).
        conditional: learn p(x | y) with a class bias in the first layer.

    Raises:
        UserError: the data is continuous, or several sets of masks would all be equal.
    """

    degrees_0: Tensor  # (num_masks, D)

    gray_level_recipe = "pixelcnn"

    @classmethod
    def gray_level_options(cls, spec: DataSpec, options: dict[str, Any]) -> dict[str, Any]:
        if spec.dim * spec.levels > MAX_CATEGORICAL_OUTPUTS:
            return {}
        return {"model.likelihood": "categorical", "preprocess.binarize": "none"}

    def __init__(
        self,
        spec: DataSpec,
        *,
        likelihood: Literal["bernoulli", "categorical"] = "bernoulli",
        hidden: tuple[Positive, ...] = (500,),
        activation: Activation = "relu",
        num_masks: Positive = 1,
        order_agnostic: bool = False,
        connectivity_agnostic: bool = False,
        direct_connections: bool = True,
        conditional: bool = False,
    ) -> None:
        super().__init__(spec, make_likelihood(likelihood, spec), conditional=conditional)
        if num_masks > 1 and not order_agnostic and not (connectivity_agnostic and hidden):
            raise UserError(
                f"the model.num_masks={num_masks} sets of masks would all be equal: set "
                "model.order_agnostic=true, or model.connectivity_agnostic=true with hidden "
                "layers, or model.num_masks=1"
            )
        sizes = [spec.dim, *hidden, spec.dim * self.likelihood.num_params]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.direct = None
        if direct_connections and hidden:
            self.direct = nn.Linear(spec.dim, sizes[-1], bias=False)  # A
            # hundreds of values reach an output, so random weights would dominate the first steps
            nn.init.zeros_(self.direct.weight)
        self.activation = ACTIVATIONS[activation]()
        self.classes = nn.Embedding(spec.num_classes, sizes[1]) if conditional else None
        # Section 4.1: m⁰ is the position of each value in the order, 1 … D; m¹ … are the numbers of
        # values that each hidden unit may depend on.
        orders = [
            torch.randperm(spec.dim) if order_agnostic else torch.arange(spec.dim)
            for _ in range(num_masks)
        ]
        num_draws = num_masks if connectivity_agnostic else 1
        degrees = [draw_hidden_degrees(spec.dim, hidden) for _ in range(num_draws)]
        self.register_buffer("degrees_0", torch.stack(orders) + 1)
        for i, layer in enumerate(zip(*degrees, strict=True), 1):
            layer_degrees = torch.stack(layer).expand(num_masks, -1).clone()  # (num_masks, hidden)
            self.register_buffer(f"degrees_{i}", layer_degrees)

    def scale_inputs(self, x: Tensor) -> Tensor:
        """Return x mapped from the data's range to [0, 1], so that a black background is 0."""
        low, high = self.spec.range
        return (x - low) / (high - low)

    def masked_weights(self, k: int) -> list[Tensor]:
        """Return each layer's weights under the k-th set of masks; direct connections last."""
        last = len(self.layers) - 1
        m = [getattr(self, f"degrees_{i}")[k] for i in range(last + 1)]
        masks = [m[i + 1][:, None] >= m[i] for i in range(last)]  # equation 12
        num_params = self.likelihood.num_params
        masks.append((m[0][:, None] > m[last]).repeat(num_params, 1))  # equation 13
        layers = [*self.layers]
        if self.direct is not None:
            masks.append((m[0][:, None] > m[0]).repeat(num_params, 1))
            layers.append(self.direct)
        return [layer.weight * mask for layer, mask in zip(layers, masks, strict=True)]

    def masked_forward(self, x: Tensor, y: Tensor | None, weights: list[Tensor]) -> Tensor:
        """Return the likelihood's parameters (B, P, *shape) of x, with masked weights."""
        h = v = self.scale_inputs(x).flatten(1)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            h = F.linear(self.activation(h) if i else h, weights[i], layer.bias)
            if i == 0 and self.classes is not None:
                h = h + self.classes(y)
        if self.direct is not None:
            h = h + F.linear(v, weights[-1])
        return h.unflatten(1, (-1, *self.spec.shape))

    def likelihood_params(self, x: Tensor, y: Tensor | None, k: int = 0) -> Tensor:
        """Return the likelihood's parameters (B, P, *shape) of x under the k-th set of masks."""
        return self.masked_forward(x, y, self.masked_weights(k))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p_k(x), or −log p_k(x | y), in nats per image.

        k is a random set of masks.
        """
        y = batch.y if self.conditional else None
        params = self.likelihood_params(batch.x, y, int(torch.randint(len(self.degrees_0), ())))
        return {"loss": -self.likelihood.log_prob(params, batch.x).mean()}

    def conditional_log_prob(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return log (1/K) Σ_k p_k(x | y) (B,) in nats, over the K sets of masks."""
        num_masks = len(self.degrees_0)
        by_mask = [
            self.likelihood.log_prob(self.likelihood_params(x, y, k), x) for k in range(num_masks)
        ]
        return torch.stack(by_mask).logsumexp(0) - math.log(num_masks)

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | None = None,
        *,
        steps: int | None = None,
        report: Report | None = None,
    ) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn in order.

        Each image draws a set of masks and follows its order: a value is drawn given all values
        before it and none after it. With one set, and if `known` is a prefix of the order, this is
        the model's conditional distribution. Without y (B,) a conditional model draws random
        classes.
        """
        self.refuse_labels_if_unconditional(y)
        known = known.expand_as(x)
        x = torch.where(known, x, self.spec.range[0])
        if self.conditional and y is None:
            y = torch.randint(self.spec.num_classes, (len(x),), device=x.device)
        mask_index = torch.randint(len(self.degrees_0), (len(x),), device=x.device)
        # the states of the images that share a set of masks, with their rows
        parts: list[tuple[Tensor, list[TrajectoryState]]] = []
        for k in mask_index.unique().tolist():
            rows = mask_index == k
            classes = y[rows] if y is not None else None
            states: list[TrajectoryState] = []
            keep = None if report is None else states.append
            x[rows] = self.inpaint_in_order(x[rows], known[rows], classes, k, keep)
            parts.append((rows, states))
        if report is not None:
            for merged in merge_states(parts):
                report(merged)
        return x

    def inpaint_in_order(
        self, x: Tensor, known: Tensor, y: Tensor | None, k: int, report: Report | None = None
    ) -> Tensor:
        """Draw the unknown values of x (B, *shape) in the k-th order, one pass per value."""
        weights, x, known = self.masked_weights(k), x.flatten(1), known.flatten(1)
        drawn, number = known.clone(), 0
        for i in track(self.degrees_0[k].argsort().tolist(), "sampling", unit="values"):
            if not known[:, i].all():
                params = self.masked_forward(x.unflatten(1, self.spec.shape), y, weights)
                params = params.flatten(2)[:, :, i]
                if report is not None:
                    now, known_now = (t.unflatten(1, self.spec.shape).clone() for t in (x, drawn))
                    report(self.state_before_draw(number, now, known_now, params))
                    number += 1
                    drawn[:, i] = True
                x[:, i] = self.likelihood.sample_unknown_values(params, x[:, i], known[:, i])
        return x.unflatten(1, self.spec.shape)


def merge_states(
    parts: Sequence[tuple[Tensor, Sequence[TrajectoryState]]],
) -> Iterator[TrajectoryState]:
    """Yield the states of all items, from those of the rows (bool (n,)) of each part."""

    def merge(values: Sequence[Tensor | None]) -> Tensor | None:
        found = [(rows, v) for (rows, _), v in zip(parts, values, strict=True) if v is not None]
        if not found:
            return None
        merged = found[0][1].new_empty(len(found[0][0]), *found[0][1].shape[1:])
        for rows, value in found:
            merged[rows] = value
        return merged

    for states in zip(*(states for _, states in parts), strict=True):
        x, known, next_probs = (
            merge([getattr(state, name) for state in states])
            for name in ("x", "known", "next_probs")
        )
        assert x is not None
        yield replace(states[0], x=x, known=known, next_probs=next_probs)


def draw_hidden_degrees(dim: int, hidden: tuple[int, ...]) -> list[Tensor]:
    """Draw how many values each hidden unit may depend on (width,), for each layer.

    Degrees lie between the smallest degree of the layer before and D − 1.
    """
    degrees, smallest = [], 1
    for width in hidden:
        degrees.append(torch.randint(smallest, max(dim, smallest + 1), (width,)))
        smallest = int(degrees[-1].min())
    return degrees
