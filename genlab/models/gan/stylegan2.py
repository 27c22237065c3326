"""StyleGAN2: Analyzing and improving the image quality of StyleGAN.

Karras et al. 2020, https://arxiv.org/abs/1912.04958
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from genlab.abilities import Report, TrajectoryState
from genlab.models.gan.base import GANBase
from genlab.models.gan.progan import (
    LEAKY_RELU_GAIN,
    equalize_heads,
    resolution_sides,
    straight_through_clamp,
)
from genlab.nn.minibatch_stddev import MinibatchStddev
from genlab.nn.stylegan_layers import (
    EqualizedConv2d,
    EqualizedLinear,
    ModulatedConv2d,
    PixelNorm,
    blur,
    downsample_filtered,
    upsample_filtered,
)
from genlab.spec import Batch, DataSpec, Decay, Fraction, NonNegative, Positive

PATH_LENGTH_STEP = 0.01  # of the running mean of the path lengths


class StyleGAN2(GANBase):
    """A mapping network z → w, and a synthesis network modulated by w (figure 2).

    Args:
        latent: dimension of z and of w.
        num_mapping_layers: layers of the mapping network.
        mapping_lr_mult: learning rate of the mapping network relative to the others'.
        channel_max, channel_base: the layers at side s have min(channel_max, channel_base / s)
            channels.
        style_mixing_prob: fraction of the training images whose coarse and fine styles come from
            two codes.
        path_length_weight: weight of the path length regularizer (section 3.2); 0 disables it.
        w_avg_decay: decay of the running mean of w, toward which `truncation` moves the styles.

    Raises:
        UserError: the images are not square with a side that is a power of two, of at least 8.
    """

    has_equalized_lr = True

    generator: Generator
    running_w: Tensor  # (latent,)
    running_length: Tensor  # ()

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: Positive = 512,
        num_mapping_layers: Positive = 8,
        mapping_lr_mult: Fraction = 0.01,
        channel_max: Positive = 512,
        channel_base: Positive = 32768,
        style_mixing_prob: Fraction = 0.9,
        path_length_weight: NonNegative = 2.0,
        w_avg_decay: Decay = 0.995,
        condition: Literal["projection", "auxiliary"] = "projection",
        **options: Any,
    ) -> None:
        sides = resolution_sides(spec, type(self).__name__)
        super().__init__(spec, latent=latent, condition=condition, **options)
        widths = [max(1, min(channel_max, channel_base // side)) for side in sides]
        num_classes = spec.num_classes if self.conditional else 0
        mapping = MappingNetwork(latent, num_classes, num_mapping_layers, mapping_lr_mult)
        synthesis = SynthesisNetwork(widths, latent, spec)
        self.generator = Generator(mapping, synthesis, style_mixing_prob)
        features = DiscriminatorFeatures(widths, spec.shape[0])
        self.discriminator = self.make_discriminator(features, (widths[0],))
        equalize_heads(self.discriminator)
        self.path_length_weight, self.w_avg_decay = path_length_weight, w_avg_decay
        self.has_generator_penalty = path_length_weight > 0
        self.register_buffer("running_w", torch.zeros(latent))
        self.register_buffer("running_length", torch.zeros(()))

    # --- losses -----------------------------------------------------------------------------------

    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        losses = super().generator_loss(batch, penalty_scale)
        y = batch.y if self.conditional else None
        with torch.no_grad():
            w = self.generator.mapping(self.prior(len(batch), y)).mean(0)  # (latent,)
            self.running_w.lerp_(w.to(self.running_w), 1 - self.w_avg_decay)
        if self.path_length_weight and penalty_scale:
            n = (len(batch) + 1) // 2  # half a batch is enough (appendix B)
            z = self.prior(n, None if y is None else y[:n])
            losses["path_length"] = self.path_length_penalty(z)
            weight = self.path_length_weight * penalty_scale
            losses["loss"] = losses["loss"] + weight * losses["path_length"]
        return losses

    # eq. 4: E_{w, y ~ N(0, I)} (|J_wᵀ y| − a)², J_w = ∂g(w)/∂w, a the running mean of the lengths:
    # steps in w of the same size then change the image by the same size. As in the authors' code,
    # y is divided by the side, and a length is the mean over the layers.
    def path_length_penalty(self, z: Tensor) -> Tensor:
        """Return the path length penalty (scalar) of codes z (B, code_dim).

        The running mean of the lengths is updated.
        """
        w = self.generator.styles(z)  # (B, L, latent)
        x = self.generator.synthesis(w)
        y = torch.randn_like(x) / math.prod(x.shape[2:]) ** 0.5
        (gradient,) = torch.autograd.grad((x * y).sum(), w, create_graph=True)  # J_wᵀ y
        lengths = gradient.square().sum(2).mean(1).sqrt()  # (B,)
        mean = lengths.detach().mean().to(self.running_length)
        self.running_length.lerp_(mean, PATH_LENGTH_STEP)
        return (lengths - self.running_length).square().mean()

    # --- abilities --------------------------------------------------------------------------------

    def styles(self, z: Tensor, *, truncation: Fraction = 1.0) -> Tensor:
        """Return the styles w (B, layers, latent) of codes z (B, code_dim), equal for all layers.

        Args:
            truncation: ψ of w̄ + ψ (w − w̄), which trades variety for quality (Karras et al. 2019,
                appendix B).
        """
        w = self.generator.mapping(z)
        w = self.running_w + truncation * (w - self.running_w) if truncation < 1 else w
        return w[:, None].expand(-1, self.generator.synthesis.num_layers, -1)

    def synthesize(self, w: Tensor) -> Tensor:
        """Return the images (B, *shape) of styles w, with constant noise.

        Args:
            w: (B, layers, latent), or (B, 1, latent) for the same style in all layers.
        """
        w = w.expand(-1, self.generator.synthesis.num_layers, -1)
        return straight_through_clamp(self.generator.synthesis(w, constant_noise=True), self.spec)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, *shape) of codes z (B, code_dim), with constant noise."""
        return self.synthesize(self.styles(z))

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, truncation: Fraction = 1.0, **sampler: Any
    ) -> Tensor:
        """Draw n images (n, *shape), of the classes y (n,) if given, with random noise.

        Raises:
            UserError: y is given and the model is not conditional.
        """
        return self.trajectory(None, n, y, truncation=truncation)

    @torch.no_grad()
    def trajectory(
        self,
        report: Report | None,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        truncation: Fraction = 1.0,
        **sampler: Any,
    ) -> Tensor:
        """Draw n images as `sample` does, and report the sum up to each resolution, enlarged."""
        z = self.prior(n, y) if start is None else start

        def report_sum(level: int, images: Tensor) -> None:
            if report is not None:
                side = images.shape[-1]
                large = straight_through_clamp(interpolate(images, self.spec.shape[1:]), self.spec)
                report(TrajectoryState(level, f"{side}×{side}", large))

        w = self.styles(z, truncation=truncation)
        report_image = None if report is None else report_sum
        return straight_through_clamp(
            self.generator.synthesis(w, report_image=report_image), self.spec
        )


# --- G --------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """G: codes (B, code_dim) to images (B, C, S, S), with style mixing in training."""

    def __init__(
        self, mapping: MappingNetwork, synthesis: SynthesisNetwork, style_mixing_prob: float
    ) -> None:
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis
        self.style_mixing_prob = style_mixing_prob

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesis(self.styles(z))

    # Karras et al. 2019, https://arxiv.org/abs/1812.04948, section 3.1
    def styles(self, z: Tensor) -> Tensor:
        """Return the styles w (B, L, latent) of codes z.

        In training some images take the styles from a random layer on from a second code of the
        same class.
        """
        num_layers = self.synthesis.num_layers
        w = self.mapping(z)[:, None].expand(-1, num_layers, -1)
        if not (self.training and self.style_mixing_prob):
            return w
        d = self.mapping.latent
        other = self.mapping(torch.cat([torch.randn_like(z[:, :d]), z[:, d:]], 1))
        crossover = torch.randint(1, num_layers, (len(z),), device=z.device)
        is_mixed = torch.rand(len(z), device=z.device) < self.style_mixing_prob
        crossover = torch.where(is_mixed, crossover, num_layers)
        return mix_styles(w, other[:, None].expand_as(w), crossover)


def mix_styles(w: Tensor, other: Tensor, crossover: Tensor) -> Tensor:
    """Return w (B, L, dim) with the layers from `crossover` (B,) on taken from `other`."""
    layer = torch.arange(w.shape[1], device=w.device)
    return torch.where((layer >= crossover[:, None])[:, :, None], other, w)


class MappingNetwork(nn.Module):
    """f: codes (B, latent + num_classes) to w (B, latent).

    Noise and class embedding are normalized first.
    """

    def __init__(self, latent: int, num_classes: int, num_layers: int, lr_mult: float) -> None:
        super().__init__()
        self.latent = latent
        self.embedding = EqualizedLinear(num_classes, latent) if num_classes else None
        self.norm = PixelNorm()
        layers: list[nn.Module] = []
        widths = [2 * latent if num_classes else latent, *[latent] * num_layers]
        for i, o in pairwise(widths):
            layers.append(EqualizedLinear(i, o, gain=LEAKY_RELU_GAIN, lr_mult=lr_mult))
            layers.append(make_leaky_relu())
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        h = self.norm(z[:, : self.latent])
        if self.embedding is not None:
            h = torch.cat([h, self.norm(self.embedding(z[:, self.latent :]))], 1)
        return self.layers(h)


class SynthesisNetwork(nn.Module):
    """g: styles w (B, L, latent), coarse to fine, to images (B, C, S, S).

    An image is the sum of one image from each resolution (figure 7b).
    """

    def __init__(self, widths: list[int], latent: int, spec: DataSpec) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.first = SynthesisLayer(widths[0], widths[0], latent, side=4)
        self.blocks = nn.ModuleList()
        for k, (i, o) in enumerate(pairwise(widths)):
            up = SynthesisLayer(i, o, latent, side=8 << k, upsample=True)
            conv = SynthesisLayer(o, o, latent, side=8 << k)
            self.blocks.append(nn.ModuleList([up, conv]))
        self.to_image = nn.ModuleList(
            ModulatedConv2d(w, spec.shape[0], 1, latent, demodulate=False) for w in widths
        )
        self.num_layers = 2 * len(widths)
        low, high = spec.range
        self.center, self.half_range = (low + high) / 2, (high - low) / 2

    def forward(
        self,
        w: Tensor,
        *,
        constant_noise: bool = False,
        report_image: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return the images, with the same noise for all of them or with random noise.

        Args:
            report_image: receives the number of doublings, and the sum of the images up to this
                resolution.
        """
        styles = w.unbind(1)
        start = self.start.expand(len(w), -1, -1, -1)
        h = self.first(start, styles[0], constant_noise)
        x = self.to_image[0](h, styles[1])
        for k, block in enumerate(self.blocks, 1):
            if report_image is not None:
                report_image(k - 1, self.center + self.half_range * x)
            assert isinstance(block, nn.ModuleList)
            up, conv = block
            h = up(h, styles[2 * k - 1], constant_noise)
            h = conv(h, styles[2 * k], constant_noise)
            # the style of the image layer is also that of the next block's first layer
            x = upsample_filtered(x) + self.to_image[k](h, styles[2 * k + 1])
        x = self.center + self.half_range * x
        if report_image is not None:
            report_image(len(self.blocks), x)
        return x


class SynthesisLayer(nn.Module):
    """A modulated convolution, scaled noise, a bias and a leaky ReLU (figure 2c)."""

    noise: Tensor  # (1, 1, side, side), the constant noise

    def __init__(
        self, in_: int, out: int, latent: int, *, side: int, upsample: bool = False
    ) -> None:
        super().__init__()
        # the convolution has the bias
        self.conv = ModulatedConv2d(in_, out, 3, latent, upsample=upsample, gain=LEAKY_RELU_GAIN)
        self.strength = nn.Parameter(torch.zeros(()))
        self.act = make_leaky_relu()
        self.register_buffer("noise", torch.randn(1, 1, side, side))

    def forward(self, h: Tensor, w: Tensor, constant_noise: bool) -> Tensor:
        h = self.conv(h, w)
        noise = self.noise if constant_noise else torch.randn_like(h[:, :1])
        return self.act(h + self.strength * noise)


# --- D --------------------------------------------------------------------------------------------


class DiscriminatorFeatures(nn.Module):
    """φ of D: images (B, C, S, S) to features (B, F), by residual blocks (figure 7c)."""

    def __init__(self, widths: list[int], in_channels: int) -> None:
        super().__init__()
        first, *_, last = widths
        blocks = (ResidualDownBlock(o, i) for i, o in reversed(list(pairwise(widths))))
        self.layers = nn.Sequential(
            EqualizedConv2d(in_channels, last, 1, gain=LEAKY_RELU_GAIN),
            make_leaky_relu(),
            *blocks,
            MinibatchStddev(),
            EqualizedConv2d(first + 1, first, 3, gain=LEAKY_RELU_GAIN, padding=1),
            make_leaky_relu(),
            nn.Flatten(),
            EqualizedLinear(16 * first, first, gain=LEAKY_RELU_GAIN),
            make_leaky_relu(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualDownBlock(nn.Module):
    """Maps (B, in, H, W) to (B, out, H/2, W/2); the sum of both paths is divided by √2."""

    def __init__(self, in_: int, out: int) -> None:
        super().__init__()
        self.first = EqualizedConv2d(in_, in_, 3, gain=LEAKY_RELU_GAIN, padding=1)
        self.second = EqualizedConv2d(in_, out, 3, gain=LEAKY_RELU_GAIN, stride=2)
        self.skip = EqualizedConv2d(in_, out, 1, bias=False)
        self.act = make_leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        h = self.act(self.second(blur(h, padding=2)))
        return (h + self.skip(downsample_filtered(x))) / math.sqrt(2)


def make_leaky_relu() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)
