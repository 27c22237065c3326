"""CycleGAN: Zhu et al. 2017, https://arxiv.org/abs/1703.10593.

Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genlab.distributed.batch_shard_buffers import PerShardModule
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
from genlab.nn.patchgan import PatchGAN, max_num_downsamples
from genlab.nn.residual_generator import ResidualGenerator
from genlab.spec import Batch, Count, DataSpec, NonNegative, Positive


class CycleGAN(UnpairedTranslationModel):
    """Generators G and F between two domains, and a discriminator for each domain.

    G translates sources to targets, F targets to sources. They are trained to be inverses: F(G(x))
    ≈ x and G(F(y)) ≈ y. The source and the target of a batch need not be pairs.

    Args:
        width: maps of the first layer of all four networks.
        num_blocks: residual blocks of G and F. None takes 9 for sides of at least 256 pixels, and 6
            for smaller images (appendix 7.2).
        cycle_weight: λ of the L1 distance after both translations.
        identity_weight: λ of ‖G(y) − y‖₁ + ‖F(x) − x‖₁, which preserves colors; 0 disables it.
        history_size: number of images in each discriminator's history (Shrivastava et al. 2017).
        regularization: of both discriminators; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks sources, they are not images of the targets' size, or
            `identity_weight` is set and they have other channels.
    """

    size_multiple = ResidualGenerator.size_multiple

    generator: nn.ModuleDict

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: Positive = 64,
        num_blocks: Positive | None = None,
        cycle_weight: NonNegative = 10.0,
        identity_weight: NonNegative = 5.0,
        adversarial_weight: NonNegative = 2.0,
        history_size: Count = 50,
        loss: LossName = "least_squares",
        **regularization: Any,
    ) -> None:
        source = require_same_size_source_spec(spec, type(self).__name__)
        if identity_weight and source.shape[0] != spec.shape[0]:
            raise UserError(
                "CycleGAN's identity loss needs sources and targets with the same channels, and "
                f"these have {source.shape[0]} and {spec.shape[0]}; set model.identity_weight=0"
            )
        super().__init__(spec, loss=loss, adversarial_weight=adversarial_weight, **regularization)
        self.cycle_weight, self.identity_weight = cycle_weight, identity_weight
        height, width_px = spec.shape[1:]
        num_blocks = num_blocks or (9 if min(height, width_px) >= 256 else 6)

        def make_generator(inputs: DataSpec, outputs: DataSpec) -> nn.Module:
            net = ResidualGenerator(
                inputs.shape[0], outputs.shape[0], width=width, num_blocks=num_blocks
            )
            return nn.Sequential(net, ScaledTanh(*outputs.range))

        def make_patchgan(domain: DataSpec) -> nn.Module:
            num_downsamples = max_num_downsamples((height, width_px))
            return PatchGAN(domain.shape[0], width=width, num_downsamples=num_downsamples)

        self.generator = nn.ModuleDict(
            {"G": make_generator(source, spec), "F": make_generator(spec, source)}
        )
        self.discriminator = nn.ModuleDict(
            {"source": make_patchgan(source), "target": make_patchgan(spec)}
        )
        self.history = nn.ModuleDict(
            {
                "source": ImageHistory(history_size, source.shape),
                "target": ImageHistory(history_size, spec.shape),
            }
        )
        self.apply(initialize_weights)
        self.apply_spectral_norm_if_enabled(self.discriminator)

    # --- losses -----------------------------------------------------------------------------------

    def fakes_for_discriminator(self, domain: str, fake_x: Tensor) -> Tensor:
        """Return current and earlier images of G or F (B, …)."""
        history: Tensor = self.history[domain](fake_x)
        return history

    # eq. 3: L(G, F, D_X, D_Y) = L_GAN(G, D_Y) + L_GAN(F, D_X) + λ L_cyc(G, F)
    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return what G and F minimize together; the discriminators are left untouched."""
        fakes = self.translate_both_ways(batch)
        adversarial = self.adversarial_loss(batch, fakes)
        losses = self.cycle_and_identity_losses(batch, fakes)
        return {
            "loss": sum(losses.values(), adversarial),
            "adversarial": adversarial,
            **losses,
            **diversity_ratio_logs_by_domain(batch, fakes),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return what G and F minimize without discriminators."""
        losses = self.cycle_and_identity_losses(batch, self.translate_both_ways(batch))
        return {"loss": sum_losses(losses.values()), **losses}

    def translate_both_ways(self, batch: Batch) -> dict[str, Tensor]:
        """Return G's and F's images of a batch by their domain."""
        return {"target": self.generator["G"](batch.cond), "source": self.generator["F"](batch.x)}

    def cycle_and_identity_losses(
        self, batch: Batch, fakes: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the weighted cycle loss of G's and F's images, and the identity loss if used."""
        G, F = self.generator["G"], self.generator["F"]
        x, cond = images_by_domain(batch).values()
        # eq. 2: L_cyc(G, F) = E‖F(G(x)) − x‖₁ + E‖G(F(y)) − y‖₁
        cycle = l1_distance(F(fakes["target"]), cond) + l1_distance(G(fakes["source"]), x)
        losses = {"cycle": self.cycle_weight * cycle}
        if self.identity_weight:  # section 5.2
            identity = l1_distance(G(x), x) + l1_distance(F(cond), cond)
            losses["identity"] = self.identity_weight * identity
        return losses

    def suggest_against_collapse(self) -> list[str]:
        """Suggest a larger cycle weight: identical images cannot be translated back."""
        return [f"++model.cycle_weight={2 * self.cycle_weight or 10:g}"]

    # --- abilities --------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, cond: Tensor, *, backward: bool = False) -> Tensor:
        """Return G of each source (B, …), or with `backward` F of each target."""
        return self.generator["F" if backward else "G"](cond)


class ImageHistory(PerShardModule):
    """A buffer of a generator's earlier images: Shrivastava et al. 2017, section 2.3.

    https://arxiv.org/abs/1612.07828. Until the buffer is full, each image is stored and returned.
    Then, with probability ½, an image is returned itself; otherwise it replaces a random image of
    the buffer, which is returned instead.
    """

    depends_on_batch = "a history of images"

    per_shard_buffers = ("images", "count")
    images: Tensor  # (size, C, H, W)
    count: Tensor  # ()

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return images for the discriminator (B, C, H, W) in place of the new images x."""
        size = len(self.images)
        if not size:
            return x
        returned = []
        for new in x.split(1):  # tensor operations only, which do not wait for the device
            full = self.count >= size
            slot = torch.where(full, torch.randint(size, (), device=x.device), self.count)[None]
            swap = full & (torch.rand((), device=x.device) < 0.5)
            old = self.images.index_select(0, slot)
            self.images.index_copy_(0, slot, torch.where(full & ~swap, old, new.to(old)))
            self.count.add_(~full)
            returned.append(torch.where(swap, old.to(new), new))
        return torch.cat(returned)


def l1_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference (scalar) of a and b."""
    return (a - b).abs().mean()
