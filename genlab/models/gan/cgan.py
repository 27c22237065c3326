"""Conditional GAN: Mirza & Osindero 2014, https://arxiv.org/abs/1411.1784."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genlab.models.gan.base import GANBase, Noise, ScaledTanh
from genlab.models.gan.discriminator import OneHotConcat
from genlab.spec import DataSpec, Decay, Positive


class CGAN(GANBase):
    """Two multilayer perceptrons conditioned on the class, for images or points.

    These are the paper's networks for digits (section 4.1). G maps noise and class to ReLU units of
    their own, then both to joint units. D does the same with maxout units, each the maximum of
    several linear pieces (Goodfellow et al. 2013, https://arxiv.org/abs/1302.4389).

    Args:
        noise_hidden, class_hidden, joint_hidden: number of G's units for the noise, for the class,
            and for both.
        item_maxout, class_maxout, joint_maxout: D's (units, pieces) for the sample, for the class,
            and for both.
        dropout: fraction of the hidden units of both networks dropped in training.

    Raises:
        UserError: the data lacks labels.
    """

    def __init__(
        self,
        spec: DataSpec,
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
        **options: Any,
    ) -> None:
        super().__init__(spec, noise=noise, conditional=conditional, condition=condition, **options)
        output: list[nn.Module] = [] if spec.kind == "points" else [ScaledTanh(*spec.range)]
        hidden = (noise_hidden, class_hidden)
        self.generator = nn.Sequential(
            ParallelLayers((self.latent, spec.num_classes), hidden, linear_relu),
            nn.Dropout(dropout),
            linear_relu(noise_hidden + class_hidden, joint_hidden),
            nn.Dropout(dropout),
            nn.Linear(joint_hidden, spec.dim),
            *output,
            nn.Unflatten(1, spec.shape),
        )
        features = nn.Sequential(
            ParallelLayers((spec.dim, spec.num_classes), (item_maxout, class_maxout), Maxout),
            nn.Dropout(dropout),
            Maxout(item_maxout[0] + class_maxout[0], joint_maxout),
            nn.Dropout(dropout),
        )
        self.discriminator = self.make_discriminator(
            features, (joint_maxout[0],), join=OneHotConcat(spec.num_classes)
        )


class ParallelLayers(nn.Module):
    """Split a vector (B, Σ inputs), apply a layer to each part, and concatenate the results.

    Args:
        inputs: dimension of each part.
        outputs: size of each layer's output.
        make_layer: (input, output) -> layer.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[Any, ...],
        make_layer: Callable[[int, Any], nn.Module],
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.layers = nn.ModuleList(make_layer(i, o) for i, o in zip(inputs, outputs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.inputs, 1)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], 1)


class Maxout(nn.Module):
    """(B, inputs) to (B, units): each unit is the maximum of its linear pieces.

    Args:
        size: (units, pieces).
    """

    def __init__(self, inputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(inputs, size[0] * size[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, self.size).amax(2)


def linear_relu(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())
