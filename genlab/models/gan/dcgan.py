"""DCGAN: Radford, Metz & Chintala 2016, https://arxiv.org/abs/1511.06434."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import GANBase, Noise, ScaledTanh
from genlab.spec import DataSpec, Positive

MIN_SIDE = 16  # pixels


class DCGAN(GANBase):
    """Two all-convolutional networks for square images.

    The side is a power of two of at least 16. G projects z to width·2^(k−1) maps of 4×4 and doubles
    the side k = log2(side) − 2 times by transposed convolutions, each halving the number of maps; D
    is its mirror image. There is batch normalization everywhere except in G's output and D's input;
    ReLU in G, leaky ReLU in D. The weights are drawn from N(0, 0.02²). Kernels are 4×4, which
    stride 2 covers evenly.

    Args:
        width: number of maps at half the image's side; the paper's is 128, which makes 1024 maps at
            4×4 for 64×64 images.

    Raises:
        UserError: the data is not square images of such a side, or `conditional` needs labels that
            the data does not have.
    """

    def __init__(
        self, spec: DataSpec, *, width: Positive = 128, noise: Noise = "uniform", **options: Any
    ) -> None:
        require_square_power_of_two_images(spec, "DCGAN")
        super().__init__(spec, noise=noise, **options)
        channels = halved_side_channels(spec, width)
        generator = Generator(spec, self.code_dim, channels[::-1])
        self.generator = generator.apply(initialize_weights)
        self.discriminator = self.make_discriminator(
            DiscriminatorFeatures(self.discriminator_shape[0], channels),
            (channels[-1], 4, 4),
            initialize=initialize_weights,
        )


def require_square_power_of_two_images(spec: DataSpec, name: str) -> None:
    """Refuse data that the networks do not fit.

    Raises:
        UserError: the data is not square images whose side is a power of two of at least 16.
    """
    side = spec.shape[-1]
    is_square = spec.kind == "image" and spec.shape[-2] == side
    if is_square and side >= MIN_SIDE and not side & (side - 1):
        return
    fix = "choose a dataset of images, such as dataset=digits"
    if spec.kind == "image":
        power = max(MIN_SIDE, 1 << (max(spec.shape[-2:]) - 1).bit_length())
        fix = f"set dataset.size={power}"
    raise UserError(
        f"{name} needs square images whose side is a power of two of at least {MIN_SIDE}, "
        f"and this dataset gives {spec.shape}; {fix}"
    )


def halved_side_channels(spec: DataSpec, width: int) -> list[int]:
    """Return the numbers of maps at sides S/2, S/4, …, 4 of images with side S."""
    return [width << i for i in range(spec.shape[-1].bit_length() - 3)]


class Generator(nn.Module):
    """G: codes (B, code_dim) to images (B, C, S, S) in the data's range."""

    def __init__(self, spec: DataSpec, code_dim: int, channels: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(code_dim, channels[0], 4, bias=False),  # 4×4
            *batch_norm_relu(channels[0]),
        ]
        for i, o in pairwise(channels):
            layers.append(nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False))
            layers += batch_norm_relu(o)
        layers += [
            nn.ConvTranspose2d(channels[-1], spec.shape[0], 4, stride=2, padding=1),
            ScaledTanh(*spec.range),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class DiscriminatorFeatures(nn.Sequential):
    """D without its last layer: images (B, C, S, S) to maps (B, channels[-1], 4, 4)."""

    def __init__(self, in_channels: int, channels: list[int]) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for i, o in pairwise(channels):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(o)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers)


def batch_norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def initialize_weights(module: nn.Module) -> None:
    """Draw the weights as in section 4: N(0, 0.02²), and N(1, 0.02²) for batch norm scales."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
