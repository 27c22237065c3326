"""SRResNet and SRGAN: Ledig et al. 2017, https://arxiv.org/abs/1609.04802."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.losses import LossName
from genlab.models.gan.translation_base import PairedTranslationModel, require_source_spec
from genlab.nn.srresnet import SRResNet
from genlab.spec import DataSpec, NonNegative, Positive


class SRGAN(PairedTranslationModel):
    """Super-resolution with a residual network: SRResNet with a pixel loss, SRGAN as a GAN.

    The factor is the ratio of the targets' size to the sources' in the data. Once trained, the
    model takes sources of any size.

    Args:
        width: maps of the generator; `discriminator_width`: maps of the discriminator's first
            layer.
        num_blocks, batch_norm, kernel_size, staged_upsampling, bicubic_residual: of the generator;
            see `SRResNet`.
        pixel_loss: the mean squared error (the paper's) or the mean absolute error.
        content_features: maps images in [0, 1] to features; their squared error takes the place of
            the pixel loss in the adversarial stage. None keeps the pixel loss (SRGAN-MSE in the
            paper).
        adversarial_weight: weight of the GAN loss. 0 makes the model SRResNet.
        regularization: of the discriminator; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks sources, or its targets are not an integer multiple of their
            size, with the same channels.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: Positive = 64,
        num_blocks: Positive = 16,
        batch_norm: bool = True,
        kernel_size: Literal[3, 5, 7, 9] = 9,
        staged_upsampling: bool = True,
        bicubic_residual: bool = False,
        discriminator_width: Positive = 64,
        pixel_loss: Literal["mse", "l1"] = "mse",
        content_features: Callable[[Tensor], Tensor] | None = None,
        adversarial_weight: NonNegative = 1e-3,
        loss: LossName = "non_saturating",
        **regularization: Any,
    ) -> None:
        super().__init__(spec, loss=loss, adversarial_weight=adversarial_weight, **regularization)
        self.factor = upscaling_factor(spec, type(self).__name__)
        self.content_features, self.pixel_loss = content_features, pixel_loss
        channels = spec.shape[0]  # of the sources too
        self.generator = SRResNet(
            channels,
            channels,
            self.factor,
            width=width,
            num_blocks=num_blocks,
            batch_norm=batch_norm,
            kernel_size=kernel_size,
            staged_upsampling=staged_upsampling,
            bicubic_residual=bicubic_residual,
        )
        if self.is_adversarial:
            self.discriminator = SRGANDiscriminator(spec.shape, discriminator_width)
            self.apply_spectral_norm_if_enabled(self.discriminator)

    # eq. 4: l_MSE = 1/(r²WH) Σ (I_HR − G(I_LR))²
    def reconstruction_losses(self, fake: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.pixel_loss == "mse":
            return {"mse": (target - fake).square().mean()}
        return {"l1": (target - fake).abs().mean()}

    # eqs. 3 and 5: l_SR = l_X + 10⁻³ l_Gen,
    # with l_VGG/i,j = 1/(WH) Σ (φ_ij(I_HR) − φ_ij(G(I_LR)))²
    def non_adversarial_losses(self, fake: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.content_features is None:
            return self.reconstruction_losses(fake, target)
        low, high = self.spec.range
        phi = self.content_features((target - low) / (high - low))
        phi_fake = self.content_features((fake - low) / (high - low))
        return {"content": (phi - phi_fake).square().mean()}


class SRGANDiscriminator(nn.Module):
    """D: images (B, C, H, W) of one size to logits (B,), without looking at the source.

    It has eight convolutions, of which four halve the side, and two dense layers (figure 4).
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        in_channels, h, w = shape
        # 64 64 128 128 256 256 512 512; every other layer halves the side
        channels = [width << (i // 2) for i in range(8)]
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels[0], 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for n, (i, o) in enumerate(pairwise(channels), 1):
            stride = 2 if n % 2 else 1
            layers += [
                nn.Conv2d(i, o, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(o),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        num_values = channels[-1] * -(-h // 16) * -(-w // 16)  # halving rounds up
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(num_values, 16 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(16 * width, 1),
        )

    def forward(self, cond: Tensor, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


def upscaling_factor(spec: DataSpec, name: str) -> int:
    """Return how many times as high and wide as their sources the targets are.

    Raises:
        UserError: it is not an integer of at least 2, or the channels differ.
    """
    source, target = require_source_spec(spec, name).shape, spec.shape
    are_images = len(source) == len(target) == 3 and source[0] == target[0]
    factor = target[-1] // source[-1]
    if not are_images or factor < 2 or target[1:] != (factor * source[1], factor * source[2]):
        raise UserError(
            f"{name} needs targets that are an integer multiple of their sources' size, and this "
            f"dataset gives {source} and {target}; choose dataset=superres"
        )
    return factor
