"""What the models that turn a source into a target share: an error, an adversary beside it, and `translate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import fixed, spread_of
from genlab.models.gan.losses import LOSSES, Name
from genlab.models.gan.regularizers import Restrained, Shown, each
from genlab.spec import Batch, Spec


class Translation(Restrained, ABC):
    """A generator x̂ = G(cond), which a subclass makes, and a discriminator D(cond, x) if it is to have an adversary.

    `generator(cond)` gives what `errors` and D take, and `translate` makes the target of: an image, or one for each scale,
    the full one last. A subclass hands D, its weights drawn, to `restrained`.

    Args:
        loss: the game's.
        adversarial: weight of G's part of the game beside the errors; 0: no game, and no D.
        restraints: what holds D smooth, see `Restrained`.

    Raises:
        UserError: the data has no sources, or D is to be held smooth and there is none.
    """

    generator: nn.Module
    discriminator: nn.Module

    def __init__(self, spec: Spec, *, loss: Name, adversarial: float, **restraints) -> None:
        super().__init__(**restraints)
        paired(spec, type(self).__name__)
        if not adversarial and (vain := [name for name, value in restraints.items() if value]):
            raise UserError(f"model.{vain[0]} is for a discriminator, and model.adversarial=0 leaves {type(self).__name__} none; "
                            "leave it out, or give model.adversarial a weight")  # fmt: skip
        self.spec, self.objective, self.adversarial = spec, LOSSES[loss], adversarial

    # --- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def errors(self, made: Shown, truth: Shown) -> dict[str, Tensor]:
        """Return the weighted errors of what G made, by name; G without an adversary minimises their sum."""

    def truth(self, x: Tensor) -> Shown:
        """Return targets (B, *shape) in the form in which G makes its own."""
        return x

    # --- the game -------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return G's loss without an adversary."""
        errors = self.errors(self.generator(batch.cond), self.truth(batch.x))
        return {"loss": sum(errors.values()), **errors}

    def discriminator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        """Return D's loss on true targets and as many of G's; G is left untouched, its statistics included.

        Args:
            penalty: the weight of the gradient penalties, of D's slope in the target: 0 leaves them out.
        """
        with torch.no_grad(), fixed(self.generator):
            made = self.generator(batch.cond)
        D, x = partial(self.discriminator, batch.cond), self.sloped(batch.x, penalty)
        truth = self.truth(x)
        real, fake = D(truth), D(made)  # (B, …)
        loss = self.objective.discriminator(real, fake)
        paid, found = self.penalties(D, real, x, truth, made, penalty)
        return {"loss": sum(paid, loss), **self.objective.judged(real, fake, loss), **found}

    def generator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        """Return the errors and the weighted adversarial loss of G; D is left untouched."""
        made, truth = self.generator(batch.cond), self.truth(batch.x)
        with fixed(self.discriminator):
            fake = self.discriminator(batch.cond, made)
            with torch.no_grad():
                real = self.discriminator(batch.cond, truth) if self.objective.paired else None
        errors = self.game_errors(made, truth)
        adversarial = self.adversarial * self.objective.generator(fake, real)
        spread = spread_of(each(made)[-1], each(truth)[-1])
        return {
            "loss": sum(errors.values(), adversarial),
            "adversarial": adversarial,
            **errors,
            **spread,
        }

    def game_errors(self, made: Shown, truth: Shown) -> dict[str, Tensor]:
        """Return the weighted errors beside the adversarial loss: the same, unless a subclass says otherwise."""
        return self.errors(made, truth)

    def wider(self) -> list[str]:
        """Return the override by which the errors, which hold each item to a truth of its own, count for more."""
        return [f"++model.adversarial={self.adversarial / 2:g}"]

    # --- abilities ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, cond: Tensor) -> Tensor:
        """Return the target (B, …) of each source (B, …), within the data's range."""
        return self.generator(cond).clamp(*self.spec.range)


def paired(spec: Spec, name: str) -> None:
    """Refuse data with no sources.

    Raises:
        UserError: says what to choose.
    """
    if spec.source is None:
        raise UserError(
            f"{name} needs pairs of a source and a target, and this dataset has no sources; choose dataset=pairs"
        )


def same_size(spec: Spec, name: str) -> None:
    """Refuse sources that are no images of the target's height and width, which is 8 pixels at least.

    Raises:
        UserError: says what to choose.
    """
    paired(spec, name)
    size = spec.shape[-2:]
    if (
        spec.kind != "image"
        or spec.source.kind != "image"
        or spec.source.shape[-2:] != size
        or min(size) < 8
    ):
        raise UserError(
            f"{name} needs images of one size as sources and targets, of at least 8 pixels a side, and this dataset gives "
            f"{spec.source.kind} {spec.source.shape} and {spec.kind} {spec.shape}; to enlarge images choose model=srgan, "
            "for frames model=next_frame"
        )
