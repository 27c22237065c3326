"""Auxiliary classifier GAN: Odena, Olah & Shlens 2017, https://arxiv.org/abs/1610.09585."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from genlab.errors import UserError
from genlab.models.gan.base import GANBase, ScaledTanh
from genlab.models.gan.dcgan import initialize_weights
from genlab.models.gan.discriminator import Condition
from genlab.spec import DataSpec, Decay, Positive


class ACGAN(GANBase):
    """A GAN whose D also predicts the class, with the paper's networks for CIFAR-10 (table 2).

    Both networks minimize the cross-entropy of the class on their samples. G doubles the side three
    times with 5×5 kernels; D has six 3×3 convolutions, of which every other one halves the side.

    Args:
        channels: G's channels at 1/8, 1/4 and 1/2 of the side.
        discriminator_channels: the channels of D's six convolutions.
        dropout: fraction of D's units dropped in training.

    Raises:
        UserError: the data is not images with sides divisible by 8, or lacks labels.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: tuple[Positive, Positive, Positive] = (384, 192, 96),
        discriminator_channels: tuple[Positive, ...] = (16, 32, 64, 128, 256, 512),
        dropout: Decay = 0.5,
        conditional: bool = True,
        condition: Condition = "auxiliary",
        **options: Any,
    ) -> None:
        if spec.kind != "image" or any(side % 8 for side in spec.shape[1:]):
            raise UserError(
                "ACGAN needs images with sides divisible by 8, and this dataset gives "
                f"{spec.kind} data of shape {spec.shape}; set preprocess.size=32"
            )
        if len(discriminator_channels) != 6:
            raise UserError(
                f"model.discriminator_channels={list(discriminator_channels)}: D has six "
                "convolutions, so give six numbers"
            )
        super().__init__(spec, conditional=conditional, condition=condition, **options)
        size = (spec.shape[1] // 8, spec.shape[2] // 8)

        def upsample(i: int, o: int) -> nn.Module:
            return nn.ConvTranspose2d(i, o, 5, stride=2, padding=2, output_padding=1)

        self.generator = nn.Sequential(
            nn.Linear(self.code_dim, channels[0] * size[0] * size[1]),
            nn.ReLU(),
            nn.Unflatten(1, (channels[0], *size)),
            upsample(channels[0], channels[1]),
            nn.BatchNorm2d(channels[1]),
            nn.ReLU(),
            upsample(channels[1], channels[2]),
            nn.BatchNorm2d(channels[2]),
            nn.ReLU(),
            upsample(channels[2], spec.shape[0]),
            ScaledTanh(*spec.range),
        ).apply(initialize_weights)

        layers: list[nn.Module] = []
        widths = (self.discriminator_shape[0], *discriminator_channels)
        for n, (i, o) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(i, o, 3, stride=2 if n % 2 == 0 else 1, padding=1))
            if n:
                layers.append(nn.BatchNorm2d(o))
            layers += [nn.LeakyReLU(0.2), nn.Dropout(dropout)]
        self.discriminator = self.make_discriminator(
            nn.Sequential(*layers),
            (discriminator_channels[-1], *size),
            initialize=initialize_weights,
        )
