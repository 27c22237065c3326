"""GAN: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import nn

from genlab.models.gan.base import GANBase, ScaledTanh
from genlab.spec import DataSpec, Decay, NonNegative, Positive


class GAN(GANBase):
    """Two multilayer perceptrons, for images or points of any shape.

    Args:
        hidden: widths of G's layers, with ReLU. G's output is a tanh scaled to the range of images,
            and linear for points.
        discriminator_hidden: widths of D's layers, with leaky ReLU.
        negative_slope: of D's leaky ReLU; 0 makes it a ReLU.
        dropout: fraction of D's units dropped in training.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: tuple[Positive, ...] = (1200, 1200),
        discriminator_hidden: tuple[Positive, ...] = (240, 240),
        negative_slope: NonNegative = 0.2,
        dropout: Decay = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        layers: list[nn.Module] = []
        widths = (self.code_dim, *hidden)
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.ReLU()]
        layers.append(nn.Linear(widths[-1], spec.dim))
        if spec.kind != "points":
            layers.append(ScaledTanh(*spec.range))
        self.generator = nn.Sequential(*layers, nn.Unflatten(1, spec.shape))

        layers = [nn.Flatten()]
        widths = (math.prod(self.discriminator_shape), *discriminator_hidden)
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.LeakyReLU(negative_slope)]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.discriminator = self.make_discriminator(nn.Sequential(*layers), widths[-1:])
