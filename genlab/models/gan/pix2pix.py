"""pix2pix: Isola et al. 2017, https://arxiv.org/abs/1611.07004.

Image-to-Image Translation with Conditional Adversarial Networks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genlab.models.gan.base import ScaledTanh
from genlab.models.gan.dcgan import initialize_weights
from genlab.models.gan.losses import LossName
from genlab.models.gan.translation_base import PairedTranslationModel, require_same_size_source_spec
from genlab.nn.patchgan import PatchGAN, max_num_downsamples
from genlab.nn.pix2pix_unet import Pix2PixUNet
from genlab.spec import DataSpec, Decay, NonNegative, Positive

MAX_LEVELS = 8  # of the paper's generator, which halves 256×256 pixels to one


class Pix2Pix(PairedTranslationModel):
    """A U-Net from the source to the target, trained with the L1 distance and a PatchGAN.

    G's noise is dropout, in training and in sampling, so `translate` is random. Images with sides
    below 256 have fewer levels, those below 24 smaller patches.

    Args:
        width: maps of the first level of both networks.
        dropout: fraction of the units dropped in the three deepest levels. 0 makes G deterministic.
        l1_weight: λ of the L1 distance.
        regularization: of the discriminator; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks sources, or they are not images of the targets' size.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: Positive = 64,
        dropout: Decay = 0.5,
        l1_weight: NonNegative = 100.0,
        adversarial_weight: NonNegative = 1.0,
        loss: LossName = "non_saturating",
        **regularization: Any,
    ) -> None:
        source = require_same_size_source_spec(spec, type(self).__name__)
        super().__init__(spec, loss=loss, adversarial_weight=adversarial_weight, **regularization)
        self.l1_weight = l1_weight
        height, width_px = spec.shape[1:]
        unet = Pix2PixUNet(
            source.shape[0],
            spec.shape[0],
            width=width,
            num_levels=min(MAX_LEVELS, min(height, width_px).bit_length() - 1),
            dropout=dropout,
        )
        self.size_multiple = unet.size_multiple
        self.generator = nn.Sequential(unet, ScaledTanh(*spec.range))
        if self.is_adversarial:
            patchgan = PatchGAN(
                source.shape[0] + spec.shape[0],
                width=width,
                num_downsamples=max_num_downsamples((height, width_px)),
            )
            self.discriminator = ConcatDiscriminator(patchgan)
        self.apply(initialize_weights)
        if self.is_adversarial:
            self.apply_spectral_norm_if_enabled(self.discriminator)

    # eqs. 3 and 4: L_L1(G) = E‖y − G(x, z)‖₁, arg min_G max_D L_cGAN(G, D) + λ L_L1(G)
    def reconstruction_losses(self, fake: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"l1": self.l1_weight * (target - fake).abs().mean()}


class ConcatDiscriminator(nn.Module):
    """D(cond, x): a PatchGAN on the source and the target, concatenated along the channels."""

    def __init__(self, patches: nn.Module) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, cond: Tensor, x: Tensor) -> Tensor:
        return self.patches(torch.cat([cond, x], 1))  # (B, 1, h, w)
