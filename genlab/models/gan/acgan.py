"""Auxiliary classifier GAN: Odena, Olah & Shlens 2017, https://arxiv.org/abs/1610.09585."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from genlab.errors import UserError
from genlab.models.gan.base import Game, ToRange
from genlab.models.gan.dcgan import initialise
from genlab.models.gan.discriminator import Condition
from genlab.spec import Decay, Positive, Spec


class ACGAN(Game):
    """A game in which D also names the class, and G is paid for samples of it, with the paper's networks for CIFAR-10 (table 2).

    G doubles a side three times by 5×5 kernels; D has six convolutions of 3×3, of which every second one keeps the side.

    Args:
        maps: G's channels at an eighth, a quarter and half of the side.
        discriminator_maps: the channels of D's six convolutions.
        dropout: share of D's units that a training pass leaves out.

    Raises:
        UserError: the items are no images whose sides 8 divides, or the data has no labels.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        maps: tuple[Positive, Positive, Positive] = (384, 192, 96),
        discriminator_maps: tuple[Positive, ...] = (16, 32, 64, 128, 256, 512),
        dropout: Decay = 0.5,
        conditional: bool = True,
        condition: Condition = "auxiliary",
        **options,
    ) -> None:
        if spec.kind != "image" or any(side % 8 for side in spec.shape[1:]):
            raise UserError("ACGAN needs images whose sides 8 divides, "
                            f"and this dataset gives {spec.kind}s of shape {spec.shape}; set prepare.size=32")  # fmt: skip
        if len(discriminator_maps) != 6:
            raise UserError(
                f"model.discriminator_maps={list(discriminator_maps)}: D has six convolutions"
            )
        super().__init__(spec, conditional=conditional, condition=condition, **options)
        size = (spec.shape[1] // 8, spec.shape[2] // 8)
        up = {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1}
        self.generator = nn.Sequential(
            nn.Linear(self.code, maps[0] * size[0] * size[1]), nn.ReLU(), nn.Unflatten(1, (maps[0], *size)),
            nn.ConvTranspose2d(maps[0], maps[1], **up), nn.BatchNorm2d(maps[1]), nn.ReLU(),
            nn.ConvTranspose2d(maps[1], maps[2], **up), nn.BatchNorm2d(maps[2]), nn.ReLU(),
            nn.ConvTranspose2d(maps[2], spec.shape[0], **up), ToRange(*spec.range),
        ).apply(initialise)  # fmt: skip
        layers: list[nn.Module] = []
        for n, (i, o) in enumerate(pairwise((self.seen[0], *discriminator_maps))):
            layers += [nn.Conv2d(i, o, 3, stride=1 + (n + 1) % 2, padding=1)]
            layers += [nn.BatchNorm2d(o)] if n else []
            layers += [nn.LeakyReLU(0.2), nn.Dropout(dropout)]
        shape = (discriminator_maps[-1], *size)
        self.discriminator = self.critic(nn.Sequential(*layers), shape, initialise=initialise)
