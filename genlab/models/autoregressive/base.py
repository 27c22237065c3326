"""The base class of autoregressive image models: p(x) = Π_i p(x_i | x_<i).

Pixels come in raster order, and channel after channel within a pixel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import Report, TrajectoryState
from genlab.console import track
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.autoregressive.likelihoods import Likelihood
from genlab.spec import Batch, DataSpec


class AutoregressiveImageModel(GenerativeModel, ABC):
    """A network with a pixel likelihood.

    A subclass implements `likelihood_params`, whose values at a pixel depend only on earlier
    pixels.

    Raises:
        UserError: a conditional model needs labels, which the data does not have.
    """

    inpaints_in_steps = False

    def __init__(
        self, spec: DataSpec, likelihood: Likelihood, *, conditional: bool = False
    ) -> None:
        super().__init__()
        if conditional and not spec.num_classes:
            raise UserError(
                "model.conditional=true requires labels, but this dataset has none; "
                "set model.conditional=false"
            )
        self.spec, self.likelihood, self.conditional = spec, likelihood, conditional

    @abstractmethod
    def likelihood_params(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the parameters of the likelihood of images x (B, C, H, W).

        They are (B, P, C, H, W), or (B, P, H, W) if the likelihood is joint over channels.
        """

    def scale_inputs(self, x: Tensor) -> Tensor:
        """Return x mapped from the data's range to [−1, 1], the range of the networks' inputs."""
        low, high = self.spec.range
        return (x - low) * (2 / (high - low)) - 1

    def conditional_log_prob(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return log p(x | y) (B,) in nats; of an unconditional model log p(x)."""
        return self.likelihood.log_prob(self.likelihood_params(x, y), x)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x), or −log p(x | y), in nats per image."""
        return {
            "loss": -self.conditional_log_prob(
                batch.x, batch.y if self.conditional else None
            ).mean()
        }

    # --- abilities --------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,), or log p(x | y), in nats.

        Without y a conditional model sums over equally likely classes.
        """
        self.refuse_labels_if_unconditional(y)
        if y is not None or not self.conditional:
            return self.conditional_log_prob(x, y)
        by_class = [
            self.conditional_log_prob(x, torch.full((len(x),), k, device=x.device))
            for k in range(self.spec.num_classes)
        ]
        return torch.stack(by_class).logsumexp(0) - math.log(self.spec.num_classes)

    def sample(self, n: int, y: Tensor | None = None, **sampler: Any) -> Tensor:
        """Draw n images (n, C, H, W), of the classes y (n,) if given or of random ones."""
        return self.trajectory(None, n, y)

    def trajectory(
        self,
        report: Report | None,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        **sampler: Any,
    ) -> Tensor:
        """Draw n images as `sample` does, and report them before each value is drawn."""
        like = next(self.parameters())
        x = torch.zeros(n, *self.spec.shape, dtype=like.dtype, device=like.device)
        x = self.inpaint(x, torch.zeros_like(x, dtype=torch.bool), y, report=report)
        if report is not None:
            report(TrajectoryState(self.num_draws, "all pixels", x))
        return x

    @property
    def num_draws(self) -> int:
        """The number of draws for an image: its values, or its pixels if they are drawn jointly."""
        return self.spec.dim // (self.spec.shape[0] if self.likelihood.is_joint else 1)

    def state_before_draw(
        self, number: int, x: Tensor, known: Tensor, params: Tensor
    ) -> TrajectoryState:
        """Return the state of images x (B, C, H, W) before a value is drawn.

        Args:
            number: of values, or pixels, that are drawn already.
            known: which values are drawn, bool (B, C, H, W).
            params: parameters (B, P) of the likelihood of the next value.
        """
        unit = "pixels" if self.num_draws * self.spec.shape[0] == self.spec.dim else "values"
        return TrajectoryState(
            number,
            f"{number:,} {unit}",
            x,
            known=known,
            next_probs=self.likelihood.level_probs(params),
        )

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
        """Return x (B, C, H, W) with the values where `known` is False drawn in raster order.

        A value is drawn given all values before it and none after it. If `known` is a prefix of the
        order, this is the model's conditional distribution; otherwise known values only affect
        those after them. Without y (B,) a conditional model draws random classes.

        Args:
            report: receives the images before each draw.
        """
        self.refuse_labels_if_unconditional(y)
        known = known.expand_as(x)
        x = torch.where(known, x, self.spec.range[0])
        if self.conditional and y is None:
            y = torch.randint(self.spec.num_classes, (len(x),), device=x.device)
        channels, height, width = self.spec.shape
        drawn = known.clone()
        is_joint = self.likelihood.is_joint
        number = 0
        for i in track(range(height), "sampling", unit="rows"):
            for j in range(width):
                for c in [slice(None)] if is_joint else range(channels):
                    if known[:, c, i, j].all():
                        continue
                    # the rows below do not affect this one
                    params = self.likelihood_params(x[:, :, : i + 1], y)
                    params = params[:, :, i, j] if is_joint else params[:, :, c, i, j]
                    if report is not None:
                        report(self.state_before_draw(number, x, drawn, params))
                        number += 1
                        drawn[:, c, i, j] = True
                    x[:, c, i, j] = self.likelihood.sample_unknown_values(
                        params, x[:, c, i, j], known[:, c, i, j]
                    )
        return x

    def refuse_labels_if_unconditional(self, y: Tensor | None) -> None:
        """Raise an error if labels are given to an unconditional model."""
        if y is not None and not self.conditional:
            raise UserError(
                "this model was trained without labels, but labels were given; "
                "train it with model.conditional=true"
            )
