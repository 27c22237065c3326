"""What autoregressive models of pictures share: p(x) = Π_i p(x_i | x_<i), in raster order, channel after channel."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.autoregressive.likelihoods import Likelihood
from genlab.spec import Batch, Spec


class Autoregressive(nn.Module, ABC):
    """A network | likelihood: a subclass has `outputs`, whose values at a pixel depend on earlier pixels only.

    Raises:
        UserError: classes are wanted that the data does not have.
    """

    def __init__(self, spec: Spec, likelihood: Likelihood, *, conditional: bool = False) -> None:
        super().__init__()
        if conditional and not spec.classes:
            raise UserError(
                "model.conditional=true needs labels, which this data has not; set model.conditional=false"
            )
        self.spec, self.likelihood, self.conditional = spec, likelihood, conditional

    @abstractmethod
    def outputs(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the likelihood's params (B, P, C, H, W), or (B, P, H, W) if it is joint, of x (B, C, H, W)."""

    def scaled(self, x: Tensor) -> Tensor:
        """Return x mapped from the data's range onto [−1, 1], which the networks read."""
        low, high = self.spec.range
        return (x - low) * (2 / (high - low)) - 1

    def score(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return log p(x), or log p(x | y), (B,) in nats."""
        return self.likelihood.log_prob(self.outputs(x, y), x)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x), or −log p(x | y), in nats a picture."""
        return {"loss": -self.score(batch.x, batch.y if self.conditional else None).mean()}

    # --- abilities --------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,), or log p(x | y), in nats; without y a conditional model sums over evenly likely classes."""
        self.check(y)
        if y is not None or not self.conditional:
            return self.score(x, y)
        each = [
            self.score(x, torch.full((len(x),), k, device=x.device))
            for k in range(self.spec.classes)
        ]
        return torch.stack(each).logsumexp(0) - math.log(self.spec.classes)

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n pictures (n, C, H, W), of the classes y (n,) if given; a conditional model draws classes evenly otherwise."""
        like = next(self.parameters())
        x = torch.zeros(n, *self.spec.shape, dtype=like.dtype, device=like.device)
        return self.complete(x, torch.zeros_like(x, dtype=torch.bool), y)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, y: Tensor | None = None) -> Tensor:
        """Return x (B, C, H, W) with the values where `known` is False drawn in raster order, the others kept.

        A value is drawn given all values before it and none after it: where `known` is a prefix of the order this is the
        model's conditional distribution, elsewhere known values bear only on those that follow them. A conditional model
        draws a class evenly where y (B,) is not given.
        """
        self.check(y)
        known = known.expand_as(x)
        x = torch.where(known, x, self.spec.range[0])
        if self.conditional and y is None:
            y = torch.randint(self.spec.classes, (len(x),), device=x.device)
        channels, height, width = self.spec.shape
        for i in range(height):
            for j in range(width):
                for c in [slice(None)] if self.likelihood.joint else range(channels):
                    if known[:, c, i, j].all():
                        continue
                    out = self.outputs(
                        x[:, :, : i + 1], y
                    )  # the rows below say nothing about this one
                    out = out[:, :, i, j] if self.likelihood.joint else out[:, :, c, i, j]
                    x[:, c, i, j] = self.likelihood.complete(out, x[:, c, i, j], known[:, c, i, j])
        return x

    def check(self, y: Tensor | None) -> None:
        """Refuse labels where there is no p(x|y)."""
        if y is not None and not self.conditional:
            raise UserError(
                "this model knows no classes, and classes were given; train it with model.conditional=true"
            )
