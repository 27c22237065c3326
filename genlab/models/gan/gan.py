"""GAN: Goodfellow et al. 2014, Generative Adversarial Nets, https://arxiv.org/abs/1406.2661."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from genlab.models.gan.base import Game, ToRange
from genlab.spec import Decay, NonNegative, Positive, Spec


class GAN(Game):
    """Two multilayer perceptrons, on images or points of any shape.

    Args:
        hidden: widths of G's layers, with ReLU; its output is a tanh over the range of images, linear for points.
        discriminator_hidden: widths of D's layers, with leaky ReLU of `slope` (0: ReLU).
        dropout: share of D's units that a training pass leaves out.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: tuple[Positive, ...] = (1200, 1200),
        discriminator_hidden: tuple[Positive, ...] = (240, 240),
        slope: NonNegative = 0.2,
        dropout: Decay = 0.0,
        **options,
    ) -> None:
        super().__init__(spec, **options)
        out: list[nn.Module] = [] if spec.kind == "points" else [ToRange(*spec.range)]
        widths = (self.code, *hidden)
        self.generator = nn.Sequential(
            *(layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())),
            nn.Linear(widths[-1], spec.dim),
            *out,
            nn.Unflatten(1, spec.shape),
        )
        widths = (math.prod(self.seen), *discriminator_hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.LeakyReLU(slope)] + (
                [nn.Dropout(dropout)] if dropout else []
            )
        self.discriminator = self.critic(nn.Sequential(*layers), widths[-1:])
