"""The base classes of image translation: of pairs, and of two sets without pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import diversity_ratio_logs, frozen_running_statistics
from genlab.models.gan.losses import LOSSES, LossName
from genlab.models.gan.regularizers import (
    DiscriminatorInput,
    DiscriminatorRegularization,
    as_scale_list,
    sum_losses,
)
from genlab.spec import Batch, DataSpec

MIN_SIDE = 8  # pixels


class PairedTranslationModel(DiscriminatorRegularization, ABC):
    """A generator x̂ = G(cond) and, if the model is adversarial, a discriminator D(cond, x).

    A subclass creates both and passes D to `apply_spectral_norm_if_enabled` after drawing its
    weights. `generator(cond)` returns what `reconstruction_losses` and D take: an image, or a list
    with one image for each scale, of which the last has the full size.

    Args:
        loss: the GAN loss.
        adversarial_weight: weight of G's GAN loss beside the reconstruction losses. 0 trains
            without a discriminator.
        regularization: of D; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks sources, or a regularizer is set without a discriminator.
    """

    generator: nn.Module
    discriminator: nn.Module

    def __init__(
        self, spec: DataSpec, *, loss: LossName, adversarial_weight: float, **regularization: Any
    ) -> None:
        super().__init__(**regularization)
        name = type(self).__name__
        require_source_spec(spec, name)
        unused = [option for option, value in regularization.items() if value]
        if not adversarial_weight and unused:
            raise UserError(
                f"model.{unused[0]} regularizes a discriminator, and with "
                f"model.adversarial_weight=0 {name} has none; remove it, or set "
                "model.adversarial_weight"
            )
        self.spec, self.objective = spec, LOSSES[loss]
        self.adversarial_weight = adversarial_weight
        self.is_adversarial = adversarial_weight > 0

    # --- to be implemented by a subclass ----------------------------------------------------------

    @abstractmethod
    def reconstruction_losses(self, fake: Any, target: Any) -> dict[str, Tensor]:
        """Return the weighted losses of G's output by name; without D, G minimizes their sum.

        Args:
            fake: what `generator` returns.
            target: what `target_like_generator_output` returns.
        """

    def non_adversarial_losses(self, fake: Any, target: Any) -> dict[str, Tensor]:
        """Return the weighted losses beside the GAN loss: the reconstruction losses by default."""
        return self.reconstruction_losses(fake, target)

    def target_like_generator_output(self, x: Tensor) -> DiscriminatorInput:
        """Return targets (B, *shape) in the form of G's output."""
        return x

    # --- losses -----------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return G's loss without a discriminator."""
        losses = self.reconstruction_losses(
            self.generator(batch.cond), self.target_like_generator_output(batch.x)
        )
        return {"loss": sum_losses(losses.values()), **losses}

    def discriminator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return D's loss on targets and as many outputs of G; G and its statistics are kept.

        Args:
            penalty_scale: factor of the penalties on D's gradient with respect to the target.
                0 leaves them out.
        """
        with torch.no_grad(), frozen_running_statistics(self.generator):
            fake_x = self.generator(batch.cond)
        D = partial(self.discriminator, batch.cond)
        x = self.enable_gradient_for_r1(batch.x, penalty_scale)
        target = self.target_like_generator_output(x)
        real, fake = D(target), D(fake_x)  # (B, …)
        loss = self.objective.discriminator(real, fake)
        penalties, logs = self.weighted_penalties(D, real, x, (target, fake_x), penalty_scale)
        return {
            "loss": sum(penalties, loss),
            **self.objective.discriminator_log_entries(real, fake, loss),
            **logs,
        }

    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return G's weighted GAN loss and the losses beside it; D is left untouched."""
        fake_x, target = self.generator(batch.cond), self.target_like_generator_output(batch.x)
        with frozen_running_statistics(self.discriminator):
            fake = self.discriminator(batch.cond, fake_x)
            with torch.no_grad():
                needs_real = self.objective.needs_real
                real = self.discriminator(batch.cond, target) if needs_real else None
        losses = self.non_adversarial_losses(fake_x, target)
        adversarial = self.adversarial_weight * self.objective.generator(fake, real)
        return {
            "loss": sum(losses.values(), adversarial),
            "adversarial": adversarial,
            **losses,
            **diversity_ratio_logs(as_scale_list(fake_x)[-1], as_scale_list(target)[-1]),
        }

    def suggest_against_collapse(self) -> list[str]:
        """Suggest a smaller weight of the GAN loss.

        The reconstruction losses tie each sample to its own target, so they prevent collapse.
        """
        return [f"++model.adversarial_weight={self.adversarial_weight / 2:g}"]

    # --- abilities --------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, cond: Tensor, *, backward: bool = False) -> Tensor:
        """Return the target (B, …) of each source (B, …), within the data's range."""
        return self.generator(cond).clamp(*self.spec.range)


class UnpairedTranslationModel(DiscriminatorRegularization, ABC):
    """Two translators between a source and a target domain, with a discriminator for each.

    A subclass creates `generator`, and `discriminator` with the entries "source" and "target". The
    source and the target of a batch need not be pairs.

    Args:
        loss: the GAN loss.
        adversarial_weight: weight of the GAN loss of both directions in the generator's loss.
        regularization: of both discriminators; see `DiscriminatorRegularization`.
    """

    translates_backward = True

    discriminator: nn.ModuleDict

    def __init__(
        self, spec: DataSpec, *, loss: LossName, adversarial_weight: float, **regularization: Any
    ) -> None:
        super().__init__(**regularization)
        self.spec, self.objective = spec, LOSSES[loss]
        self.adversarial_weight = adversarial_weight

    # --- to be implemented by a subclass ----------------------------------------------------------

    @abstractmethod
    def translate_both_ways(self, batch: Batch) -> dict[str, Tensor]:
        """Return the translations (B, …) of a batch by the domain that they belong to."""

    def fakes_for_discriminator(self, domain: str, fake_x: Tensor) -> Tensor:
        """Return what D of a domain receives for the new translations fake_x (B, …)."""
        return fake_x

    # --- losses -----------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return both discriminators' losses; the translators and their statistics are kept.

        Args:
            penalty_scale: factor of the gradient penalties. 0 leaves them out.
        """
        with torch.no_grad(), frozen_running_statistics(self.generator):
            fakes = self.translate_both_ways(batch)
        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for domain, data in images_by_domain(batch).items():
            D = self.discriminator[domain]
            x = self.enable_gradient_for_r1(data, penalty_scale)
            fake_x = self.fakes_for_discriminator(domain, fakes[domain])
            real, fake = D(x), D(fake_x)  # (B, 1, h, w)
            loss = self.objective.discriminator(real, fake)
            penalties, domain_logs = self.weighted_penalties(D, real, x, (x, fake_x), penalty_scale)
            losses.append(sum(penalties, loss))
            domain_logs = self.objective.discriminator_log_entries(real, fake, loss) | domain_logs
            logs |= {f"{key}/{domain}": value for key, value in domain_logs.items()}
        return {"loss": sum_losses(losses), **logs}

    def adversarial_loss(self, batch: Batch, fakes: dict[str, Tensor]) -> Tensor:
        """Return the translators' weighted GAN loss; the discriminators are left untouched."""
        adversarial = batch.x.new_zeros(())
        for domain, data in images_by_domain(batch).items():
            D = self.discriminator[domain]
            with frozen_running_statistics(D):
                with torch.no_grad():
                    real = D(data) if self.objective.needs_real else None
                loss = self.objective.generator(D(fakes[domain]), real)
            adversarial = adversarial + self.adversarial_weight * loss
        return adversarial


def images_by_domain(batch: Batch) -> dict[str, Tensor]:
    """Return the target and the source images (B, …) of a batch by domain."""
    assert batch.cond is not None
    return {"target": batch.x, "source": batch.cond}


def diversity_ratio_logs_by_domain(batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the diversity ratio of the translations into each domain, for the log."""
    logs: dict[str, Tensor] = {}
    for domain, data in images_by_domain(batch).items():
        logs |= diversity_ratio_logs(fakes[domain], data, f"/{domain}")
    return logs


def require_source_spec(spec: DataSpec, name: str) -> DataSpec:
    """Return the spec of the data's sources.

    Raises:
        UserError: the data has none; the message says what to choose.
    """
    if spec.source is None:
        raise UserError(
            f"{name} needs pairs of a source and a target, and this dataset has no sources; "
            "choose dataset=pairs"
        )
    return spec.source


def require_same_size_source_spec(spec: DataSpec, name: str) -> DataSpec:
    """Return the spec of the sources, which must be images of the targets' height and width.

    Raises:
        UserError: they are not, or a side is below 8 pixels; the message says what to choose.
    """
    source = require_source_spec(spec, name)
    size = spec.shape[-2:]
    are_images = spec.kind == source.kind == "image"
    if not are_images or source.shape[-2:] != size or min(size) < MIN_SIDE:
        raise UserError(
            f"{name} needs sources and targets that are images of the same size, of at least "
            f"{MIN_SIDE} pixels a side, and this dataset gives {source.kind} {source.shape} and "
            f"{spec.kind} {spec.shape}; to enlarge images choose model=srgan, for frames "
            "model=next_frame"
        )
    return source
