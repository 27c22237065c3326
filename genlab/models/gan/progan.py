"""ProGAN: Karras et al. 2018, Progressive growing of GANs, https://arxiv.org/abs/1710.10196."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import Game
from genlab.nn.conv import doubled
from genlab.nn.minibatch_stddev import MinibatchDeviation
from genlab.nn.stylegan_layers import EqualConv2d, EqualLinear, PixelNorm
from genlab.spec import Batch, NonNegative, Positive, Spec

HE = math.sqrt(2)  # gain of a layer before a leaky ReLU


class ProGAN(Game):
    """G and D that grow from 4×4 to the data's side, a doubling at a time (section 2, table 2).

    G's and D's buffer `level` says how far: at 2.3 images have 4·2³ pixels a side, and the newest blocks of G and D count
    for α = 0.3 against the way around them; at a whole number they count fully. A trainer raises it with the steps.

    Args:
        base: a level of side s has min(maps, base / s) maps.
        drift: ε of ε E[D(x)²], which keeps the critic's values near 0 (appendix A.1).

    Raises:
        UserError: the images are not square with a side that is a power of two, of at least 8.
    """

    equalised_rate = True

    def __init__(
        self,
        spec: Spec,
        *,
        maps: Positive = 512,
        base: Positive = 16384,
        drift: NonNegative = 0.001,
        condition: Literal["projection", "auxiliary"] = "projection",
        **options,
    ) -> None:
        sides = powers(spec, type(self).__name__)
        super().__init__(spec, condition=condition, **options)
        widths = [max(1, min(maps, base // s)) for s in sides]  # of the sides 4, 8, …, S
        self.generator = Generator(self.code, widths, spec)
        self.discriminator = equalised(self.critic(Features(widths, spec.shape[0]), (widths[0],)))
        loss = self.objective
        self.objective = loss._replace(
            discriminator=lambda real, fake: (
                loss.discriminator(real, fake) + drift * real.square().mean()
            )
        )
        self.levels = len(sides) - 1

    def grow(self, level: float) -> None:
        """Set how far G and D have grown, from 0 (4×4) to `levels` (the data's side)."""
        self.generator.level.fill_(level)
        self.discriminator.features.level.fill_(level)

    def discriminator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        return super().discriminator_loss(self.shrunk(batch), penalty)

    def generator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        return super().generator_loss(self.shrunk(batch), penalty)

    def shrunk(self, batch: Batch) -> Batch:
        """Return the batch at the side that has been reached, faded in as G's images are."""
        top, alpha = stage(self.generator.level)
        x = F.adaptive_avg_pool2d(batch.x, 4 << top)
        if alpha < 1:
            x = torch.lerp(doubled(F.avg_pool2d(x, 2)), x, alpha)
        return Batch(x, batch.y, batch.cond)

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) (B, *shape) of codes (B, code), cut to the data's range; a G that still grows repeats its pixels."""
        return clamped(F.interpolate(self.generator(z), self.spec.shape[1:]), self.spec)


class Generator(nn.Module):
    """G: codes (B, code) to images (B, C, s, s), s = 4·2^⌈level⌉."""

    def __init__(self, code: int, widths: list[int], spec: Spec) -> None:
        super().__init__()
        first = widths[0]
        self.start = nn.Sequential(  # the code lies on a sphere (section A.1); a dense layer makes 4×4 maps of it
            PixelNorm(), EqualLinear(code, 16 * first, gain=HE / 4), nn.Unflatten(1, (first, 4, 4)),
            nn.LeakyReLU(0.2, inplace=True), PixelNorm(), *conv_norm(first, first),
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            nn.Sequential(*conv_norm(i, o, up=True), *conv_norm(o, o)) for i, o in pairwise(widths)
        )
        self.to_image = nn.ModuleList(EqualConv2d(w, spec.shape[0], 1) for w in widths)
        self.middle, self.half = sum(spec.range) / 2, (spec.range[1] - spec.range[0]) / 2
        self.register_buffer("level", torch.tensor(len(widths) - 1.0))

    def forward(self, z: Tensor) -> Tensor:
        top, alpha = stage(self.level)
        h = self.start(z)
        for block in self.blocks[:top]:
            before, h = h, block(h)
        x = self.to_image[top](h)
        if alpha < 1:  # figure 2: (1 − α) · the old image, doubled, + α · the new one
            x = torch.lerp(doubled(self.to_image[top - 1](before)), x, alpha)
        return self.middle + self.half * x


class Features(nn.Module):
    """φ of D: images (B, C, s, s), s = 4·2^⌈level⌉, to features (B, F)."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        first = widths[0]
        self.from_image = nn.ModuleList(
            nn.Sequential(EqualConv2d(channels, w, 1, gain=HE), nn.LeakyReLU(0.2, inplace=True))
            for w in widths
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*conv(o, o), *conv(o, i), nn.AvgPool2d(2)) for i, o in pairwise(widths)
        )
        self.end = nn.Sequential(
            MinibatchDeviation(), *conv(first + 1, first),
            EqualConv2d(first, first, 4, gain=HE), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(),
        )  # fmt: skip
        self.register_buffer("level", torch.tensor(len(widths) - 1.0))

    def forward(self, x: Tensor) -> Tensor:
        top, alpha = stage(self.level)
        h = self.from_image[top](x)
        for i in reversed(range(top)):
            h = self.blocks[i](h)
            if i == top - 1 and alpha < 1:
                h = torch.lerp(self.from_image[i](F.avg_pool2d(x, 2)), h, alpha)
        return self.end(h)  # (B, F)


def stage(level: Tensor) -> tuple[int, float]:
    """Return the number of doublings that have begun, and α of the newest."""
    top = math.ceil(level.item())
    return top, 1 - (top - level.item())


def conv(in_: int, out: int, *, up: bool = False) -> tuple[nn.Module, ...]:
    return EqualConv2d(in_, out, 3, gain=HE, padding=1, up=up), nn.LeakyReLU(0.2, inplace=True)


def conv_norm(in_: int, out: int, *, up: bool = False) -> tuple[nn.Module, ...]:
    return *conv(in_, out, up=up), PixelNorm()


def clamped(x: Tensor, spec: Spec) -> Tensor:
    """Return x cut to the data's range, with the gradient of x itself: a search can come back from beyond."""
    return x + (x.clamp(*spec.range) - x).detach()


def powers(spec: Spec, name: str) -> list[int]:
    """Return the sides 4, 8, … up to the data's.

    Raises:
        UserError: the data is no square image whose side is a power of two, of at least 8.
    """
    side = spec.shape[-1]
    if (
        spec.kind == "image"
        and spec.shape[1:] == (side, side)
        and side >= 8
        and side & (side - 1) == 0
    ):
        return [1 << k for k in range(2, side.bit_length())]
    mend = "choose images, such as dataset=digits"
    if spec.kind == "image":
        mend = f"set dataset.size={max(8, 1 << (max(spec.shape[1:]) - 1).bit_length())}"
    raise UserError(f"{name} needs square images whose side is a power of two of at least 8, and this dataset gives "
                    f"{spec.shape}; {mend}")  # fmt: skip


def equalised(critic: nn.Module) -> nn.Module:
    """Give a critic's linear heads an equalised learning rate, and its classes' directions a length of 1."""
    critic.head = EqualLinear(critic.head.in_features, 1)
    if critic.class_head is not None:
        critic.class_head = EqualLinear(
            critic.class_head.in_features, critic.class_head.out_features
        )
    if critic.embedding is not None:
        nn.init.normal_(critic.embedding.weight, std=critic.embedding.embedding_dim**-0.5)
    return critic
