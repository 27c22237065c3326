"""The residual networks of Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, and Miyato et al. 2018,
https://arxiv.org/abs/1802.05957: the same blocks; loss, normalisation and the pooling of D's maps tell them apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from genlab.errors import UserError
from genlab.models.gan.base import Game, ToRange
from genlab.models.gan.discriminator import Condition, Critic
from genlab.nn.conditional_norm import ConditionalBatchNorm
from genlab.nn.conv import UpConv2d, doubled
from genlab.spec import Count, Positive, Spec


class ResNetGAN(Game):
    """Two residual nets on square images of side 4·2^k.

    G projects z to 4×4 maps and doubles their side in k blocks; told a class, it normalises by it (Miyato & Koyama 2018,
    https://arxiv.org/abs/1802.05637). D is blocks of which the first ones halve the side, and pools over the places.

    Args:
        maps: G's channels at sides 4, 8, …, the image's: k + 1 numbers.
        discriminator_maps: the channels that D's blocks give.
        halvings: how many of D's blocks, from the first, halve the side.
        pool: how D's maps become a vector: their sum (Miyato) or their mean (Gulrajani) over the places.

    Raises:
        UserError: the items are no square images of the side that `maps` makes.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive = 128,
        maps: tuple[Positive, ...] = (256, 256, 256, 256),
        discriminator_maps: tuple[Positive, ...] = (128, 128, 128, 128),
        halvings: Count = 2,
        pool: Literal["sum", "mean"] = "sum",
        condition: Condition = "projection",
        **options,
    ) -> None:
        check(spec, maps, discriminator_maps, halvings)
        super().__init__(spec, latent=latent, condition=condition, **options)
        self.generator = Generator(spec, latent, maps, spec.classes * self.conditional)
        features = Features(self.seen[0], discriminator_maps, halvings, pool)
        self.discriminator = self.critic(features, (discriminator_maps[-1],), initialise=heads)


def check(
    spec: Spec, maps: tuple[int, ...], discriminator_maps: tuple[int, ...], halvings: int
) -> None:
    """Refuse items that the networks do not fit."""
    if spec.kind != "image":
        raise UserError(
            f"ResNetGAN needs images, and this dataset has {spec.kind}; choose such as dataset=digits"
        )
    if not maps or not discriminator_maps:
        raise UserError("model.maps and model.discriminator_maps need a number at least")
    side = 4 << (len(maps) - 1)
    if spec.shape[1:] != (side, side):
        raise UserError(f"ResNetGAN with {len(maps)} numbers in model.maps makes images of {side}×{side}, and this dataset "
                        f"gives {spec.shape}; set prepare.size={side}, or another model.maps")  # fmt: skip
    if halvings > len(discriminator_maps) or side >> halvings < 1:
        raise UserError(
            f"model.halvings={halvings}: D has {len(discriminator_maps)} blocks for {side}×{side} images"
        )


class Generator(nn.Module):
    """G: codes (B, latent), with the classes' weights behind them (B, latent + classes), to images (B, C, S, S)."""

    def __init__(self, spec: Spec, latent: int, maps: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.latent = latent
        self.project = nn.Sequential(
            nn.Linear(latent, maps[0] * 16), nn.Unflatten(1, (maps[0], 4, 4))
        )
        self.blocks = nn.ModuleList(UpBlock(i, o, classes) for i, o in pairwise(maps))
        self.norm = nn.BatchNorm2d(maps[-1])
        self.out = nn.Sequential(
            nn.Conv2d(maps[-1], spec.shape[0], 3, padding=1), ToRange(*spec.range)
        )
        for linear in (self.project[0], self.out[0]):
            initialise(linear)

    def forward(self, z: Tensor) -> Tensor:
        z, y = z[:, : self.latent], z[:, self.latent :]
        h = self.project(z)  # (B, maps[0], 4, 4)
        for block in self.blocks:
            h = block(h, y)
        return self.out(relu(self.norm(h)))


class UpBlock(nn.Module):
    """(B, inputs, H, W) to (B, outputs, 2H, 2W): norm, ReLU, doubled side, 3×3, norm, ReLU, 3×3; beside it 1×1."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (
            ConditionalBatchNorm(inputs, classes),
            ConditionalBatchNorm(outputs, classes),
        )
        self.conv1 = initialise(UpConv2d(inputs, outputs), gain=2**0.5)
        self.conv2 = initialise(nn.Conv2d(outputs, outputs, 3, padding=1), gain=2**0.5)
        self.shortcut = initialise(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(relu(self.norm1(x, y)))
        h = self.conv2(relu(self.norm2(h, y)))
        return h + doubled(self.shortcut(x))  # a 1×1 convolution and a doubled side exchange


class Features(nn.Module):
    """φ: images (B, C, S, S) to a vector (B, F)."""

    def __init__(self, channels: int, maps: tuple[int, ...], halvings: int, pool: str) -> None:
        super().__init__()
        widths = pairwise((channels, *maps))
        blocks = (
            DownBlock(i, o, halve=n < halvings, first=n == 0) for n, (i, o) in enumerate(widths)
        )
        self.blocks = nn.Sequential(*blocks)
        self.pool = torch.sum if pool == "sum" else torch.mean

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(relu(self.blocks(x)), (2, 3))


class DownBlock(nn.Module):
    """(B, inputs, H, W) to (B, outputs, H/2, W/2): ReLU, 3×3, ReLU, 3×3, mean of 2×2; beside it 1×1.

    The first block's input is the image, which no ReLU cuts off. Without `halve` the side stays.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool, first: bool) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        hidden = outputs if first else inputs
        self.conv1 = initialise(nn.Conv2d(inputs, hidden, 3, padding=1), gain=2**0.5)
        self.conv2 = initialise(nn.Conv2d(hidden, outputs, 3, padding=1), gain=2**0.5)
        same = inputs == outputs and not halve
        self.shortcut = nn.Identity() if same else initialise(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(relu(self.conv1(x if self.first else relu(x))))
        if not self.halve:
            return h + self.shortcut(x)
        return avg_pool2d(h, 2) + self.shortcut(avg_pool2d(x, 2))


def initialise(layer: nn.Conv2d | nn.Linear, *, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Draw the weight evenly with variance 2 gain² / (inputs + outputs) (Glorot & Bengio 2010); a bias is 0."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def heads(module: nn.Module) -> None:
    """Draw the weights of D's heads so, the classes' vectors included; its blocks have theirs already."""
    if isinstance(module, nn.Linear):
        initialise(module)
    if isinstance(module, Critic) and module.embedding is not None:
        nn.init.xavier_uniform_(module.embedding.weight)
