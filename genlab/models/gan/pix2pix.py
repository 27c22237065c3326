"""pix2pix: Isola et al. 2017, Image-to-Image Translation with Conditional Adversarial Networks, https://arxiv.org/abs/1611.07004."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.models.gan.base import ToRange
from genlab.models.gan.dcgan import initialise
from genlab.models.gan.losses import Name
from genlab.models.gan.translation import Translation, same_size
from genlab.nn.patchgan import PatchGAN, halvings
from genlab.nn.pix2pix_unet import SkipUNet
from genlab.spec import Decay, NonNegative, Positive, Spec

LEVELS = 8  # halvings of the paper's generator: 256×256 pixels to one


class Pix2Pix(Translation):
    """A U-Net from the source to the target, the L1 distance, and a discriminator of patches of both side by side.

    G's noise is dropout, in training and in use: `translate` draws. Sides below 256 have fewer levels, those below 24
    smaller patches.

    Args:
        width: maps of the first level of both networks.
        dropout: share of the units left out in the three deepest levels; 0: G is a function of its source.
        l1: λ of the distance.
        restraints: what holds the discriminator smooth, see `Restrained`.

    Raises:
        UserError: the data has no sources, or they are no images of the targets' size.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Positive = 64,
        dropout: Decay = 0.5,
        l1: NonNegative = 100.0,
        adversarial: NonNegative = 1.0,
        loss: Name = "non_saturating",
        **restraints,
    ) -> None:
        same_size(spec, type(self).__name__)
        super().__init__(spec, loss=loss, adversarial=adversarial, **restraints)
        self.l1 = l1
        size, sources, targets = spec.shape[1:], spec.source.shape[0], spec.shape[0]
        unet = SkipUNet(
            sources,
            targets,
            width=width,
            levels=min(LEVELS, min(size).bit_length() - 1),
            dropout=dropout,
        )
        self.multiple = unet.multiple
        self.generator = nn.Sequential(unet, ToRange(*spec.range))
        if adversarial:
            self.discriminator = Beside(
                PatchGAN(sources + targets, width=width, halvings=halvings(size))
            )
        self.apply(initialise)
        if adversarial:
            self.restrained(self.discriminator)

    # eqs. 3 and 4: L_L1(G) = E‖y − G(x, z)‖₁, arg min_G max_D L_cGAN(G, D) + λ L_L1(G)
    def errors(self, made: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"l1": self.l1 * (truth - made).abs().mean()}


class Beside(nn.Module):
    """D(cond, x): the source and the target as one image of more channels."""

    def __init__(self, patches: nn.Module) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, cond: Tensor, x: Tensor) -> Tensor:
        return self.patches(torch.cat([cond, x], 1))  # (B, 1, h, w)
