"""The residual networks of WGAN-GP, SNGAN and the projection GAN.

Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028; Miyato et al. 2018,
https://arxiv.org/abs/1802.05957. Both use the same blocks; they differ in the loss, the
normalization and the pooling of D's maps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from genlab.errors import UserError
from genlab.models.gan.base import GANBase, ScaledTanh
from genlab.models.gan.discriminator import Condition, Discriminator
from genlab.nn.conditional_batch_norm import ConditionalBatchNorm
from genlab.nn.conv import UpConv2d, upsample_nearest
from genlab.spec import Count, DataSpec, Positive

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear, UpConv2d)


class ResNetGAN(GANBase):
    """Two residual networks for square images of side 4·2^k.

    G projects z to 4×4 maps and doubles their side in k blocks; a conditional G uses conditional
    batch normalization (Miyato & Koyama 2018, https://arxiv.org/abs/1802.05637). The first blocks
    of D halve the side; D then pools over the positions.

    Args:
        channels: G's channels at sides 4, 8, … up to the image's: k + 1 numbers.
        discriminator_channels: the output channels of D's blocks.
        num_downsamples: how many of D's blocks, from the first, halve the side.
        pool: how D's maps become a vector: their sum (Miyato) or their mean (Gulrajani).

    Raises:
        UserError: the data is not square images of the side that `channels` makes.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: Positive = 128,
        channels: tuple[Positive, ...] = (256, 256, 256, 256),
        discriminator_channels: tuple[Positive, ...] = (128, 128, 128, 128),
        num_downsamples: Count = 2,
        pool: Literal["sum", "mean"] = "sum",
        condition: Condition = "projection",
        **options: Any,
    ) -> None:
        validate_network_sizes(spec, channels, discriminator_channels, num_downsamples)
        super().__init__(spec, latent=latent, condition=condition, **options)
        num_classes = spec.num_classes if self.conditional else 0
        self.generator = Generator(spec, latent, channels, num_classes)
        features = DiscriminatorFeatures(
            self.discriminator_shape[0], discriminator_channels, num_downsamples, pool
        )
        self.discriminator = self.make_discriminator(
            features, (discriminator_channels[-1],), initialize=xavier_init_heads
        )


def other_channels(spec: DataSpec, channels: tuple[int, ...]) -> str:
    """Return the option with which the generator makes images of the data's side, if any does."""
    _, height, width = spec.shape
    doublings = (height // 4).bit_length() - 1
    if height != width or height < 4 or height != 4 << doublings:
        return ""
    widths = [*channels, *[channels[-1]] * (doublings + 1 - len(channels))][: doublings + 1]
    return f" or model.channels={widths}".replace(" ", "").replace("ormodel", " or model")


def validate_network_sizes(
    spec: DataSpec,
    channels: tuple[int, ...],
    discriminator_channels: tuple[int, ...],
    num_downsamples: int,
) -> None:
    """Refuse data that the networks do not fit.

    Raises:
        UserError: says what to change.
    """
    if spec.kind != "image":
        raise UserError(
            f"ResNetGAN needs images, and this dataset has {spec.kind}; "
            "choose images, such as dataset=digits"
        )
    if not channels or not discriminator_channels:
        raise UserError(
            "model.channels and model.discriminator_channels need at least one number each"
        )
    side = 4 << (len(channels) - 1)
    if spec.shape[1:] != (side, side):
        raise UserError(
            f"ResNetGAN with {len(channels)} numbers in model.channels makes images of "
            f"{side}×{side}, and this dataset gives {spec.shape}; set preprocess.size={side}"
            f"{other_channels(spec, channels)}"
        )
    num_blocks = len(discriminator_channels)
    if num_downsamples > num_blocks or side >> num_downsamples < 1:
        raise UserError(
            f"model.num_downsamples={num_downsamples}: D has {num_blocks} blocks for "
            f"{side}×{side} images"
        )


class Generator(nn.Module):
    """G: codes (B, latent + num_classes) to images (B, C, S, S).

    The last `num_classes` numbers of a code are the weights of the classes.
    """

    def __init__(
        self, spec: DataSpec, latent: int, channels: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        self.latent = latent
        project = nn.Linear(latent, channels[0] * 16)
        self.project = nn.Sequential(project, nn.Unflatten(1, (channels[0], 4, 4)))
        self.blocks = nn.ModuleList(UpBlock(i, o, num_classes) for i, o in pairwise(channels))
        self.norm = nn.BatchNorm2d(channels[-1])
        to_image = nn.Conv2d(channels[-1], spec.shape[0], 3, padding=1)
        self.out = nn.Sequential(to_image, ScaledTanh(*spec.range))
        xavier_init(project)
        xavier_init(to_image)

    def forward(self, z: Tensor) -> Tensor:
        z, y = z[:, : self.latent], z[:, self.latent :]
        h = self.project(z)  # (B, channels[0], 4, 4)
        for block in self.blocks:
            h = block(h, y)
        return self.out(relu(self.norm(h)))


class UpBlock(nn.Module):
    """(B, inputs, H, W) to (B, outputs, 2H, 2W).

    Norm, ReLU, upsampling, 3×3 convolution, norm, ReLU, 3×3 convolution; the shortcut is a 1×1
    convolution and upsampling.
    """

    def __init__(self, inputs: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, num_classes)
        self.norm2 = ConditionalBatchNorm(outputs, num_classes)
        self.conv1 = xavier_init(UpConv2d(inputs, outputs), gain=2**0.5)
        self.conv2 = xavier_init(nn.Conv2d(outputs, outputs, 3, padding=1), gain=2**0.5)
        self.shortcut = xavier_init(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(relu(self.norm1(x, y)))
        h = self.conv2(relu(self.norm2(h, y)))
        # a 1×1 convolution commutes with upsampling, and is cheaper before it
        return h + upsample_nearest(self.shortcut(x))


class DiscriminatorFeatures(nn.Module):
    """φ: images (B, C, S, S) to a vector (B, F)."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], num_downsamples: int, pool: str
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                DownBlock(i, o, downsample=n < num_downsamples, is_first=n == 0)
                for n, (i, o) in enumerate(pairwise((in_channels, *channels)))
            )
        )
        self.pool = torch.sum if pool == "sum" else torch.mean

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(relu(self.blocks(x)), (2, 3))


class DownBlock(nn.Module):
    """(B, inputs, H, W) to (B, outputs, H/2, W/2), or (B, outputs, H, W) without `downsample`.

    ReLU, 3×3 convolution, ReLU, 3×3 convolution, 2×2 mean pooling; the shortcut is a 1×1
    convolution. The first block does not apply ReLU to its input, the image.
    """

    def __init__(self, inputs: int, outputs: int, *, downsample: bool, is_first: bool) -> None:
        super().__init__()
        self.downsample, self.is_first = downsample, is_first
        hidden = outputs if is_first else inputs
        self.conv1 = xavier_init(nn.Conv2d(inputs, hidden, 3, padding=1), gain=2**0.5)
        self.conv2 = xavier_init(nn.Conv2d(hidden, outputs, 3, padding=1), gain=2**0.5)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or downsample:
            self.shortcut = xavier_init(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(relu(self.conv1(x if self.is_first else relu(x))))
        if not self.downsample:
            return h + self.shortcut(x)
        return avg_pool2d(h, 2) + self.shortcut(avg_pool2d(x, 2))


def xavier_init(layer: Layer, *, gain: float = 1.0) -> Layer:
    """Draw a uniform weight of variance 2 gain² / (fan in + fan out) (Glorot & Bengio 2010)."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier_init_heads(module: nn.Module) -> None:
    """Draw the weights of D's heads and class vectors; its blocks have drawn theirs already."""
    if isinstance(module, nn.Linear):
        xavier_init(module)
    if isinstance(module, Discriminator) and module.embedding is not None:
        nn.init.xavier_uniform_(module.embedding.weight)
