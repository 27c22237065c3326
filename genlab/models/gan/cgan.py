"""Conditional GAN: Mirza & Osindero 2014, https://arxiv.org/abs/1411.1784."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from genlab.models.gan.base import Game, Noise, ToRange
from genlab.models.gan.discriminator import OneHot
from genlab.spec import Decay, Positive, Spec


class CGAN(Game):
    """Two multilayer perceptrons that are told the class, on images or points: the paper's networks for digits (section 4.1).

    G maps noise and class each to ReLU units of their own, then both to joint ones. D does so with maxout units, each
    the largest of some linear pieces (Goodfellow et al. 2013, https://arxiv.org/abs/1302.4389).

    Args:
        noise_hidden, class_hidden, joint_hidden: G's units on the noise, on the class, and on both.
        item_maxout, class_maxout, joint_maxout: D's (units, pieces) on the item, on the class, and on both.
        dropout: share of the hidden units of both players that a training pass leaves out.

    Raises:
        UserError: the data has no labels.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        noise: Noise = "uniform",
        noise_hidden: Positive = 200,
        class_hidden: Positive = 1000,
        joint_hidden: Positive = 1200,
        item_maxout: tuple[Positive, Positive] = (240, 5),
        class_maxout: tuple[Positive, Positive] = (50, 5),
        joint_maxout: tuple[Positive, Positive] = (240, 4),
        dropout: Decay = 0.5,
        conditional: Literal[True] = True,
        condition: Literal["concat"] = "concat",
        **options,
    ) -> None:
        super().__init__(spec, noise=noise, conditional=conditional, condition=condition, **options)
        out: list[nn.Module] = [] if spec.kind == "points" else [ToRange(*spec.range)]
        rectified = lambda i, o: nn.Sequential(nn.Linear(i, o), nn.ReLU())  # noqa: E731
        self.generator = nn.Sequential(
            Apart((self.latent, spec.classes), (noise_hidden, class_hidden), rectified),
            nn.Dropout(dropout),
            rectified(noise_hidden + class_hidden, joint_hidden),
            nn.Dropout(dropout),
            nn.Linear(joint_hidden, spec.dim),
            *out,
            nn.Unflatten(1, spec.shape),
        )
        features = nn.Sequential(
            Apart((spec.dim, spec.classes), (item_maxout, class_maxout), Maxout),
            nn.Dropout(dropout),
            Maxout(item_maxout[0] + class_maxout[0], joint_maxout),
            nn.Dropout(dropout),
        )
        self.discriminator = self.critic(features, (joint_maxout[0],), join=OneHot(spec.classes))


class Apart(nn.Module):
    """The parts of a vector (B, Σ inputs), each through a layer of its own, side by side again."""

    def __init__(self, inputs: tuple[int, int], outputs: tuple, layer) -> None:
        super().__init__()
        self.inputs = inputs
        self.layers = nn.ModuleList(layer(i, o) for i, o in zip(inputs, outputs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.inputs, 1)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], 1)


class Maxout(nn.Module):
    """(B, inputs) to (B, units): each unit is the largest of its linear pieces."""

    def __init__(self, inputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(inputs, size[0] * size[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, self.size).amax(2)
