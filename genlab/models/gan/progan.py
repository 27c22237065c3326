"""ProGAN, progressive growing: Karras et al. 2018, https://arxiv.org/abs/1710.10196."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.abilities import Report, TrajectoryState
from genlab.errors import UserError
from genlab.models.gan.base import GANBase
from genlab.models.gan.discriminator import Discriminator
from genlab.nn.conv import upsample_nearest
from genlab.nn.minibatch_stddev import MinibatchStddev
from genlab.nn.stylegan_layers import EqualizedConv2d, EqualizedLinear, PixelNorm
from genlab.spec import Batch, DataSpec, NonNegative, Positive

LEAKY_RELU_GAIN = math.sqrt(2)  # of a layer before a leaky ReLU, as in He et al. 2015
MIN_SIDE = 8  # pixels


class ProGAN(GANBase):
    """G and D grow from 4×4 to the data's side, one doubling at a time (section 2, table 2).

    The buffer `level` of G and D is the number of doublings. At 2.3 images have 4·2³ pixels a side,
    and the newest blocks of G and D are blended with the skip connection around them with α = 0.3;
    at a whole number they count fully. The trainer raises the level with the steps.

    Args:
        channel_max, channel_base: the layers at side s have min(channel_max, channel_base / s)
            channels.
        drift_weight: ε of ε E[D(x)²], which keeps the critic's values near 0 (appendix A.1).

    Raises:
        UserError: the images are not square with a side that is a power of two, of at least 8.
    """

    has_equalized_lr = True

    generator: Generator

    def __init__(
        self,
        spec: DataSpec,
        *,
        channel_max: Positive = 512,
        channel_base: Positive = 16384,
        drift_weight: NonNegative = 0.001,
        condition: Literal["projection", "auxiliary"] = "projection",
        **options: Any,
    ) -> None:
        sides = resolution_sides(spec, type(self).__name__)
        super().__init__(spec, condition=condition, **options)
        widths = [max(1, min(channel_max, channel_base // side)) for side in sides]
        self.generator = Generator(self.code_dim, widths, spec)
        features = DiscriminatorFeatures(widths, spec.shape[0])
        self.discriminator = self.make_discriminator(features, (widths[0],))
        equalize_heads(self.discriminator)
        loss = self.objective

        def discriminator_loss_with_drift(real: Tensor, fake: Tensor) -> Tensor:
            return loss.discriminator(real, fake) + drift_weight * real.square().mean()

        self.objective = loss._replace(discriminator=discriminator_loss_with_drift)
        self.num_levels = len(sides) - 1

    def set_growth_level(self, level: float) -> None:
        """Set the number of doublings, from 0 (4×4) to `num_levels` (the data's side)."""
        features = self.discriminator.features
        assert isinstance(features, DiscriminatorFeatures)
        self.generator.level.fill_(level)
        features.level.fill_(level)

    def discriminator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        return super().discriminator_loss(self.downscale_batch(batch), penalty_scale)

    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        return super().generator_loss(self.downscale_batch(batch), penalty_scale)

    def downscale_batch(self, batch: Batch) -> Batch:
        """Return the batch at the current side, faded in as G's images are."""
        num_doublings, alpha = growth_doublings_and_alpha(self.generator.level)
        x = F.adaptive_avg_pool2d(batch.x, 4 << num_doublings)
        if alpha < 1:
            x = torch.lerp(upsample_nearest(F.avg_pool2d(x, 2)), x, alpha)
        return Batch(x, batch.y, batch.cond)

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) (B, *shape) of codes z (B, code_dim), clamped to the data's range.

        Before G has grown to the data's side, pixels are repeated.
        """
        return self.enlarge_to_data(self.generator(z))

    def enlarge_to_data(self, images: Tensor) -> Tensor:
        """Return G's images (B, C, s, s) at the data's side, clamped to the data's range."""
        return straight_through_clamp(F.interpolate(images, self.spec.shape[1:]), self.spec)

    @torch.no_grad()
    def trajectory(
        self,
        report: Report,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        **sampler: Any,
    ) -> Tensor:
        """Draw n images as `sample` does, and report G's image of each resolution."""
        z = self.prior(n, y) if start is None else start

        def report_image(level: int, images: Tensor) -> None:
            side = images.shape[-1]
            report(TrajectoryState(level, f"{side}×{side}", self.enlarge_to_data(images)))

        return self.enlarge_to_data(self.generator(z, report_image))


class Generator(nn.Module):
    """G: codes (B, code_dim) to images (B, C, s, s), s = 4·2^⌈level⌉."""

    level: Tensor  # ()

    def __init__(self, code_dim: int, widths: list[int], spec: DataSpec) -> None:
        super().__init__()
        first = widths[0]
        # the code is normalized to a sphere (section A.1); a dense layer makes 4×4 maps of it
        self.start = nn.Sequential(
            PixelNorm(),
            EqualizedLinear(code_dim, 16 * first, gain=LEAKY_RELU_GAIN / 4),
            nn.Unflatten(1, (first, 4, 4)),
            nn.LeakyReLU(0.2, inplace=True),
            PixelNorm(),
            *conv_leaky_relu(first, first),
            PixelNorm(),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *conv_leaky_relu(i, o, upsample=True),
                PixelNorm(),
                *conv_leaky_relu(o, o),
                PixelNorm(),
            )
            for i, o in pairwise(widths)
        )
        self.to_image = nn.ModuleList(EqualizedConv2d(w, spec.shape[0], 1) for w in widths)
        low, high = spec.range
        self.center, self.half_range = (low + high) / 2, (high - low) / 2
        self.register_buffer("level", torch.tensor(len(widths) - 1.0))

    def forward(
        self, z: Tensor, report_image: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """Return the images of codes z (B, code_dim).

        Args:
            report_image: receives the number of doublings, and the image at each resolution.
        """
        num_doublings, alpha = growth_doublings_and_alpha(self.level)
        previous = h = self.start(z)
        for i in range(num_doublings):
            if report_image is not None:
                report_image(i, self.center + self.half_range * self.to_image[i](h))
            previous, h = h, self.blocks[i](h)
        x = self.to_image[num_doublings](h)
        if alpha < 1:  # figure 2: (1 − α) · the old image, doubled, + α · the new one
            old = upsample_nearest(self.to_image[num_doublings - 1](previous))
            x = torch.lerp(old, x, alpha)
        x = self.center + self.half_range * x
        if report_image is not None:
            report_image(num_doublings, x)
        return x


class DiscriminatorFeatures(nn.Module):
    """φ of D: images (B, C, s, s), s = 4·2^⌈level⌉, to features (B, F)."""

    level: Tensor  # ()

    def __init__(self, widths: list[int], in_channels: int) -> None:
        super().__init__()
        first = widths[0]
        self.from_image = nn.ModuleList(
            nn.Sequential(
                EqualizedConv2d(in_channels, w, 1, gain=LEAKY_RELU_GAIN),
                nn.LeakyReLU(0.2, inplace=True),
            )
            for w in widths
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*conv_leaky_relu(o, o), *conv_leaky_relu(o, i), nn.AvgPool2d(2))
            for i, o in pairwise(widths)
        )
        self.end = nn.Sequential(
            MinibatchStddev(),
            *conv_leaky_relu(first + 1, first),
            EqualizedConv2d(first, first, 4, gain=LEAKY_RELU_GAIN),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
        )
        self.register_buffer("level", torch.tensor(len(widths) - 1.0))

    def forward(self, x: Tensor) -> Tensor:
        num_doublings, alpha = growth_doublings_and_alpha(self.level)
        h = self.from_image[num_doublings](x)
        for i in reversed(range(num_doublings)):
            h = self.blocks[i](h)
            if i == num_doublings - 1 and alpha < 1:
                h = torch.lerp(self.from_image[i](F.avg_pool2d(x, 2)), h, alpha)
        return self.end(h)  # (B, F)


def growth_doublings_and_alpha(level: Tensor) -> tuple[int, float]:
    """Return the number of doublings that have begun, and α of the newest."""
    num_doublings = math.ceil(level.item())
    return num_doublings, 1 - (num_doublings - level.item())


def conv_leaky_relu(in_: int, out: int, *, upsample: bool = False) -> list[nn.Module]:
    """Return a 3×3 convolution with an equalized learning rate, and a leaky ReLU."""
    conv = EqualizedConv2d(in_, out, 3, gain=LEAKY_RELU_GAIN, padding=1, upsample=upsample)
    return [conv, nn.LeakyReLU(0.2, inplace=True)]


def straight_through_clamp(x: Tensor, spec: DataSpec) -> Tensor:
    """Return x clamped to the data's range, with the gradient of the identity.

    So an optimization of codes can return from outside the range.
    """
    return x + (x.clamp(*spec.range) - x).detach()


def resolution_sides(spec: DataSpec, name: str) -> list[int]:
    """Return the sides 4, 8, … up to the data's.

    Raises:
        UserError: the data is not square images with a side that is a power of two, of at least 8.
    """
    side = spec.shape[-1]
    is_square = spec.kind == "image" and spec.shape[1:] == (side, side)
    if is_square and side >= MIN_SIDE and side & (side - 1) == 0:
        return [1 << k for k in range(2, side.bit_length())]
    fix = "choose images, such as dataset=digits"
    if spec.kind == "image":
        fix = f"set dataset.size={max(MIN_SIDE, 1 << (max(spec.shape[1:]) - 1).bit_length())}"
    raise UserError(
        f"{name} needs square images whose side is a power of two of at least {MIN_SIDE}, and "
        f"this dataset gives {spec.shape}; {fix}"
    )


def equalize_heads(discriminator: Discriminator) -> None:
    """Give D's linear heads an equalized learning rate, and the class vectors a length of 1."""
    head, class_head = discriminator.head, discriminator.class_head
    assert isinstance(head, nn.Linear)
    discriminator.head = EqualizedLinear(head.in_features, 1)
    if class_head is not None:
        assert isinstance(class_head, nn.Linear)
        discriminator.class_head = EqualizedLinear(class_head.in_features, class_head.out_features)
    embedding = discriminator.embedding
    if embedding is not None:
        nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
