"""UNIT: Liu, Breuel & Kautz 2017, https://arxiv.org/abs/1703.00848.

Unsupervised Image-to-Image Translation Networks: two VAEs that share their latent space.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import ScaledTanh
from genlab.models.gan.dcgan import initialize_weights
from genlab.models.gan.losses import LossName
from genlab.models.gan.regularizers import sum_losses
from genlab.models.gan.translation_base import (
    UnpairedTranslationModel,
    diversity_ratio_logs_by_domain,
    images_by_domain,
    require_same_size_source_spec,
)
from genlab.nn.residual_generator import ReflectionResidualBlock, instance_norm_relu
from genlab.spec import Batch, Count, DataSpec, NonNegative, Positive

OTHER_DOMAIN = {"source": "target", "target": "source"}
MAX_DISCRIMINATOR_LAYERS = 5  # of stride 2, as in the paper
SIDE_MULTIPLE = 4  # the encoders halve an image twice


class UNIT(UnpairedTranslationModel):
    """An encoder and a decoder for each of two domains, with one latent space.

    An image of either domain has a code z (B, 4·width, H/4, W/4), from which each domain's decoder
    makes its own image: z = E₁(x₁) gives the reconstruction G₁(z) and the translation G₂(z). The
    last block of the encoders and the first block of the decoders are shared. The source and the
    target of a batch need not be pairs.

    `encode` and `decode` are those of the targets.

    Args:
        width: maps of the first layer of all networks.
        num_blocks: residual blocks of each encoder and decoder beside the shared one.
        kl_weight: λ₁ of the KL divergence of an image's code from N(0, I).
        reconstruction_weight: λ₂ of the L1 distance of an image's reconstruction.
        cycle_kl_weight: λ₃ of the KL divergences in the cycle.
        cycle_weight: λ₄ of the L1 distance after both translations.
        adversarial_weight: λ₀ of the GAN losses.
        regularization: of both discriminators; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks sources, or they are not images of the targets' size with sides
            that are multiples of 4.
    """

    size_multiple = SIDE_MULTIPLE

    generator: SharedLatentNetworks

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: Positive = 64,
        num_blocks: Count = 3,
        kl_weight: NonNegative = 0.1,
        reconstruction_weight: NonNegative = 100.0,
        cycle_kl_weight: NonNegative = 0.1,
        cycle_weight: NonNegative = 100.0,
        adversarial_weight: NonNegative = 10.0,
        loss: LossName = "non_saturating",
        **regularization: Any,
    ) -> None:
        source = require_same_size_source_spec(spec, type(self).__name__)
        size = spec.shape[1:]
        if any(side % SIDE_MULTIPLE for side in size):
            fit = -(-max(size) // SIDE_MULTIPLE) * SIDE_MULTIPLE
            raise UserError(
                f"UNIT halves images twice, and these have {size[1]}×{size[0]} pixels; "
                f"set preprocess.size={fit}"
            )
        super().__init__(spec, loss=loss, adversarial_weight=adversarial_weight, **regularization)
        self.kl_weight, self.cycle_kl_weight = kl_weight, cycle_kl_weight
        self.reconstruction_weight, self.cycle_weight = reconstruction_weight, cycle_weight
        domains = {"source": source, "target": spec}
        self.generator = SharedLatentNetworks(domains, width, num_blocks)
        self.discriminator = nn.ModuleDict(
            {name: Discriminator(of.shape, width) for name, of in domains.items()}
        )
        self.apply(initialize_weights)
        self.apply_spectral_norm_if_enabled(self.discriminator)

    # --- the latent space -------------------------------------------------------------------------

    def encode_domain(self, x: Tensor, domain: str) -> Tensor:
        """Return the mean (B, 4·width, H/4, W/4) of q(z|x) = N(mean, I) of a domain's images x."""
        return self.generator.shared_encoder(self.generator.encoder[domain](x))

    def decode_domain(self, z: Tensor, domain: str) -> Tensor:
        """Return a domain's images (B, C, H, W) of codes z."""
        return self.generator.decoder[domain](self.generator.shared_decoder(z))

    def encode_both(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean of each domain's codes."""
        return {name: self.encode_domain(x, name) for name, x in images_by_domain(batch).items()}

    def translate_codes(self, codes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the images that each domain's decoder makes of the other domain's codes."""
        return {name: self.decode_domain(codes[OTHER_DOMAIN[name]], name) for name in codes}

    def translate_both_ways(self, batch: Batch) -> dict[str, Tensor]:
        return self.translate_codes(draw_codes(self.encode_both(batch)))

    # --- losses -----------------------------------------------------------------------------------

    # eq. 3: L_VAE₁ + L_GAN₁ + L_CC₁ + L_VAE₂ + L_GAN₂ + L_CC₂
    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return what both VAEs minimize; the discriminators are left untouched."""
        losses, fakes = self.vae_and_cycle_losses(batch)
        # eqs. 6 and 7: only translations, since reconstructions have their own loss
        losses = {"adversarial": self.adversarial_loss(batch, fakes), **losses}
        diversity = diversity_ratio_logs_by_domain(batch, fakes)
        return {"loss": sum_losses(losses.values()), **losses, **diversity}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return what both VAEs minimize without discriminators."""
        losses, _ = self.vae_and_cycle_losses(batch)
        return {"loss": sum_losses(losses.values()), **losses}

    # eqs. 4 and 5: L_VAE₁ = λ₁ KL(q₁(z₁|x₁) ‖ N(0, I)) − λ₂ E log p_G₁(x₁|z₁)
    # eqs. 8 and 9: L_CC₁ = λ₃ KL(q₁(z₁|x₁) ‖ N(0, I)) + λ₃ KL(q₂(z₂|x₁→₂) ‖ N(0, I))
    #                       − λ₄ E log p_G₁(x₁|z₂)
    # p_G is a Laplace distribution, so −log p is the L1 distance.
    def vae_and_cycle_losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted losses by name, and the translations by their domain."""
        images, means = images_by_domain(batch), self.encode_both(batch)
        codes = draw_codes(means)
        fakes = self.translate_codes(codes)
        back = {name: self.encode_domain(x, name) for name, x in fakes.items()}
        cycled = self.translate_codes(draw_codes(back))
        reconstructed = {name: self.decode_domain(z, name) for name, z in codes.items()}
        kl = (self.kl_weight + self.cycle_kl_weight) * sum_losses(map(kl_per_value, means.values()))
        cycle_kl = self.cycle_kl_weight * sum_losses(map(kl_per_value, back.values()))
        losses = {
            "kl": kl + cycle_kl,
            "reconstruction": self.reconstruction_weight * l1_distances(images, reconstructed),
            "cycle": self.cycle_weight * l1_distances(images, cycled),
        }
        return losses, fakes

    def suggest_against_collapse(self) -> list[str]:
        """Suggest a larger cycle weight: identical images cannot be translated back."""
        return [f"++model.cycle_weight={2 * self.cycle_weight or 10:g}"]

    # --- abilities --------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, cond: Tensor, *, backward: bool = False) -> Tensor:
        """Return the target of each source (B, …), or with `backward` the source of each target."""
        domain = "target" if backward else "source"
        return self.decode_domain(self.encode_domain(cond, domain), OTHER_DOMAIN[domain])

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the code (B, 4·width, H/4, W/4) of targets x (B, C, H, W), without noise."""
        return self.encode_domain(x, "target")

    def decode(self, z: Tensor) -> Tensor:
        """Return the targets (B, C, H, W) of codes z."""
        return self.decode_domain(z, "target")


def draw_codes(means: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draw codes from N(mean, I) for each domain: z = μ + η, η ~ N(0, I)."""
    return {name: mean + torch.randn_like(mean) for name, mean in means.items()}


def kl_per_value(mean: Tensor) -> Tensor:
    """Return KL(N(mean, I) ‖ N(0, I)) in nats per value of the code (scalar): ½ mean²."""
    return mean.square().mean() / 2


def l1_distances(x: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    """Return the sum over the domains of the mean absolute difference (scalar)."""
    return sum_losses((image - other[name]).abs().mean() for name, image in x.items())


class SharedLatentNetworks(nn.Module):
    """The encoders and decoders of all domains, with the blocks that they share."""

    def __init__(self, domains: dict[str, DataSpec], width: int, num_blocks: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {name: Encoder(spec.shape[0], width, num_blocks) for name, spec in domains.items()}
        )
        self.shared_encoder = ReflectionResidualBlock(4 * width)
        self.shared_decoder = ReflectionResidualBlock(4 * width)
        self.decoder = nn.ModuleDict(
            {name: Decoder(spec, width, num_blocks) for name, spec in domains.items()}
        )


class Encoder(nn.Sequential):
    """A domain's images (B, C, H, W) to features (B, 4·width, H/4, W/4)."""

    def __init__(self, in_channels: int, width: int, num_blocks: int) -> None:
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, width, 7, bias=False),
            *instance_norm_relu(width),
        ]
        for w in (width, 2 * width):
            layers.append(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False))
            layers += instance_norm_relu(2 * w)
        super().__init__(*layers, *(ReflectionResidualBlock(4 * width) for _ in range(num_blocks)))


class Decoder(nn.Sequential):
    """Features (B, 4·width, H/4, W/4) to a domain's images (B, C, H, W) in their range."""

    def __init__(self, spec: DataSpec, width: int, num_blocks: int) -> None:
        layers: list[nn.Module] = [ReflectionResidualBlock(4 * width) for _ in range(num_blocks)]
        for w in (4 * width, 2 * width):
            layers.append(nn.ConvTranspose2d(w, w // 2, 4, stride=2, padding=1, bias=False))
            layers += instance_norm_relu(w // 2)
        super().__init__(*layers, nn.Conv2d(width, spec.shape[0], 1), ScaledTanh(*spec.range))


class Discriminator(nn.Sequential):
    """Images (B, C, H, W) to a logit for each patch (B, 1, h, w): convolutions of stride 2."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        in_channels, *size = shape
        num_layers = min(MAX_DISCRIMINATOR_LAYERS, min(size).bit_length() - 2)
        channels = [in_channels, *(width << i for i in range(num_layers))]
        layers: list[nn.Module] = []
        for i, o in pairwise(channels):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 2))
