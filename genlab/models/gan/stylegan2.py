"""StyleGAN2: Karras et al. 2020, Analyzing and improving the image quality of StyleGAN, https://arxiv.org/abs/1912.04958."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from genlab.models.gan.base import Game
from genlab.models.gan.progan import clamped, equalised, powers
from genlab.nn.minibatch_stddev import MinibatchDeviation
from genlab.nn.stylegan_layers import (
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    PixelNorm,
    blur,
    downsampled,
    upsampled,
)
from genlab.spec import Batch, Decay, Fraction, NonNegative, Positive, Spec

GAIN = math.sqrt(
    2
)  # of the weights before a leaky ReLU, which keeps a signal's size (it could as well follow it)


class StyleGAN2(Game):
    """A mapping network z → w, and a synthesis network whose every convolution a style w modulates (figures 2 and 7).

    Args:
        latent: dimension of z, and of w.
        layers: of the mapping network, whose learning rate is `mapping_rate` of the others'.
        base: a level of side s has min(maps, base / s) maps.
        mixing: share of the images in training whose coarse and fine styles come from two codes.
        path_length: weight of the path length regulariser (section 3.2), 0: none.
        w_decay: of the running mean of w, about which `truncation` draws styles together.

    Raises:
        UserError: the images are not square with a side that is a power of two, of at least 8.
    """

    equalised_rate = True

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive = 512,
        layers: Positive = 8,
        mapping_rate: Fraction = 0.01,
        maps: Positive = 512,
        base: Positive = 32768,
        mixing: Fraction = 0.9,
        path_length: NonNegative = 2.0,
        w_decay: Decay = 0.995,
        condition: Literal["projection", "auxiliary"] = "projection",
        **options,
    ) -> None:
        sides = powers(spec, type(self).__name__)
        super().__init__(spec, latent=latent, condition=condition, **options)
        widths = [max(1, min(maps, base // s)) for s in sides]  # of the sides 4, 8, …, S
        mapping = Mapping(latent, spec.classes * self.conditional, layers, mapping_rate)
        self.generator = Generator(mapping, Synthesis(widths, latent, spec), mixing)
        self.discriminator = equalised(self.critic(Features(widths, spec.shape[0]), (widths[0],)))
        self.path_length, self.w_decay = path_length, w_decay
        self.register_buffer("running_w", torch.zeros(latent))
        self.register_buffer("running_length", torch.zeros(()))

    # --- the game -------------------------------------------------------------------------------------------------

    def generator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        losses = super().generator_loss(batch, penalty)
        y = batch.y if self.conditional else None
        with torch.no_grad():
            w = self.generator.mapping(self.prior(len(batch), y)).mean(0)  # (dim,)
            self.running_w.lerp_(w.to(self.running_w), 1 - self.w_decay)
        if self.path_length and penalty:
            few = (
                None if y is None else y[: (len(batch) + 1) // 2]
            )  # half a batch is enough (appendix B)
            losses["path_length"] = self.path_penalty(self.prior((len(batch) + 1) // 2, few))
            losses["loss"] = losses["loss"] + self.path_length * penalty * losses["path_length"]
        return losses

    # eq. 4: E_{w, y ~ N(0, I)} (|J_wᵀ y| − a)², J_w = ∂g(w)/∂w, a the running mean of the lengths: a step in w of one size then
    # changes the image by one size. As the authors compute it, y is divided by the side and a length is the layers' mean.
    def path_penalty(self, z: Tensor) -> Tensor:
        """Return the path length penalty (scalar) of the codes z (B, code), and move the mean length towards theirs."""
        w = self.generator.styles(z)  # (B, L, dim)
        x = self.generator.synthesis(w)
        y = torch.randn_like(x) / math.prod(x.shape[2:]) ** 0.5
        (slope,) = torch.autograd.grad((x * y).sum(), w, create_graph=True)  # J_wᵀ y (B, L, dim)
        lengths = slope.square().sum(2).mean(1).sqrt()  # (B,)
        self.running_length.lerp_(lengths.detach().mean().to(self.running_length), 0.01)
        return (lengths - self.running_length).square().mean()

    # --- abilities ------------------------------------------------------------------------------------------------

    def styles(self, z: Tensor, *, truncation: Fraction = 1.0) -> Tensor:
        """Return the styles w (B, layers, dim) of codes z (B, code): the same w for every layer.

        Args:
            truncation: ψ: w̄ + ψ (w − w̄), which gives up variety for quality (Karras et al. 2019, appendix B).
        """
        w = self.generator.mapping(z)
        w = self.running_w + truncation * (w - self.running_w) if truncation < 1 else w
        return w[:, None].expand(-1, self.generator.synthesis.layers, -1)

    def synthesise(self, w: Tensor) -> Tensor:
        """Return the images (B, *shape) of styles w (B, layers, dim) or (B, 1, dim), with the noise that stays the same."""
        w = w.expand(-1, self.generator.synthesis.layers, -1)
        return clamped(self.generator.synthesis(w, fixed=True), self.spec)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, *shape) of codes z (B, code), with the noise that stays the same."""
        return self.synthesise(self.styles(z))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, truncation: Fraction = 1.0) -> Tensor:
        """Draw n images (n, *shape), of the classes y (n,) if given, with noise of their own.

        Raises:
            UserError: y is given and the model is not conditional.
        """
        w = self.styles(self.prior(n, y), truncation=truncation)
        return clamped(self.generator.synthesis(w), self.spec)


# --- G --------------------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """G: codes (B, code) to images (B, C, S, S); in training some take their fine styles from another code."""

    def __init__(self, mapping: Mapping, synthesis: Synthesis, mixing: float) -> None:
        super().__init__()
        self.mapping, self.synthesis, self.mixing = mapping, synthesis, mixing

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesis(self.styles(z))

    # Karras et al. 2019, https://arxiv.org/abs/1812.04948, section 3.1
    def styles(self, z: Tensor) -> Tensor:
        """Return the styles w (B, L, dim) of codes z, in training mixed from a layer on that is drawn for each image."""
        layers = self.synthesis.layers
        w = self.mapping(z)[:, None].expand(-1, layers, -1)
        if not (self.training and self.mixing):
            return w
        d = self.mapping.latent
        other = self.mapping(
            torch.cat([torch.randn_like(z[:, :d]), z[:, d:]], 1)
        )  # of the same class
        first = torch.randint(1, layers, (len(z),), device=z.device)
        first = torch.where(torch.rand(len(z), device=z.device) < self.mixing, first, layers)
        return mixed(w, other[:, None].expand_as(w), first)


def mixed(w: Tensor, other: Tensor, first: Tensor) -> Tensor:
    """Return w (B, L, dim) with the layers from `first` (B,) on taken from `other` (B, L, dim)."""
    layer = torch.arange(w.shape[1], device=w.device)
    return torch.where((layer >= first[:, None])[:, :, None], other, w)


class Mapping(nn.Module):
    """f: codes (B, latent + classes) to w (B, latent); noise and class are normalised, each by itself."""

    def __init__(self, latent: int, classes: int, layers: int, rate: float) -> None:
        super().__init__()
        self.latent = latent
        self.embedding = EqualLinear(classes, latent) if classes else None
        self.norm = PixelNorm()
        widths = [latent + latent * bool(classes), *[latent] * layers]
        self.layers = nn.Sequential(
            *(
                part
                for i, o in pairwise(widths)
                for part in (EqualLinear(i, o, gain=GAIN, rate=rate), leaky())
            )
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.norm(z[:, : self.latent])
        if self.embedding is not None:
            h = torch.cat([h, self.norm(self.embedding(z[:, self.latent :]))], 1)
        return self.layers(h)


class Synthesis(nn.Module):
    """g: styles w (B, L, dim), coarse to fine, to images (B, C, S, S): the sum of an image from each side (figure 7b)."""

    def __init__(self, widths: list[int], style: int, spec: Spec) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.first = Layer(widths[0], widths[0], style, side=4)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [Layer(i, o, style, side=8 << k, up=True), Layer(o, o, style, side=8 << k)]
            )
            for k, (i, o) in enumerate(pairwise(widths))
        )
        self.to_image = nn.ModuleList(
            ModulatedConv2d(w, spec.shape[0], 1, style, demodulate=False) for w in widths
        )
        self.layers = 2 * len(widths)
        self.middle, self.half = sum(spec.range) / 2, (spec.range[1] - spec.range[0]) / 2

    def forward(self, w: Tensor, *, fixed: bool = False) -> Tensor:
        """Return the images; `fixed`: with the noise that stays the same, else with noise drawn anew."""
        w = w.unbind(1)
        h = self.first(self.start.expand(len(w[0]), -1, -1, -1), w[0], fixed)
        x = self.to_image[0](h, w[1])
        for k, (up, conv) in enumerate(self.blocks, 1):
            h = conv(up(h, w[2 * k - 1], fixed), w[2 * k], fixed)
            x = upsampled(x) + self.to_image[k](
                h, w[2 * k + 1]
            )  # its style is the next block's first too
        return self.middle + self.half * x


class Layer(nn.Module):
    """A modulated convolution, noise of a learned strength, a bias and a leaky ReLU (figure 2c)."""

    def __init__(self, in_: int, out: int, style: int, *, side: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_, out, 3, style, up=up, gain=GAIN)  # with its bias
        self.strength = nn.Parameter(torch.zeros(()))
        self.act = leaky()
        self.register_buffer("noise", torch.randn(1, 1, side, side))

    def forward(self, h: Tensor, w: Tensor, fixed: bool) -> Tensor:
        h = self.conv(h, w)
        noise = self.noise if fixed else torch.randn_like(h[:, :1])
        return self.act(h + self.strength * noise)


# --- D --------------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """φ of D: images (B, C, S, S) to features (B, F), by residual blocks (figure 7c)."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        first, *_, last = widths
        self.layers = nn.Sequential(
            EqualConv2d(channels, last, 1, gain=GAIN), leaky(),
            *(Residual(o, i) for i, o in reversed(list(pairwise(widths)))),
            MinibatchDeviation(), EqualConv2d(first + 1, first, 3, gain=GAIN, padding=1), leaky(),
            nn.Flatten(), EqualLinear(16 * first, first, gain=GAIN), leaky(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(nn.Module):
    """Maps (B, in, H, W) to (B, out, H/2, W/2); the sum of the two ways is divided by √2, to keep its size."""

    def __init__(self, in_: int, out: int) -> None:
        super().__init__()
        self.first = EqualConv2d(in_, in_, 3, gain=GAIN, padding=1)
        self.second = EqualConv2d(in_, out, 3, gain=GAIN, stride=2)
        self.skip = EqualConv2d(in_, out, 1, bias=False)
        self.act = leaky()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        h = self.act(self.second(blur(h, padding=2)))
        return (h + self.skip(downsampled(x))) / math.sqrt(2)


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)
