"""What a density of the classical family shares: the density of a class, and of all of them by the classes' shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.classical.covariance import frozen
from genlab.models.classical.full_batch import Items
from genlab.spec import Batch, Spec


def refuse(name: str, spec: Spec, *, conditional: bool, density: bool) -> None:
    """Refuse data that a classical model cannot take: tokens, discrete values where it is a density, no classes."""
    if spec.kind not in ("image", "points"):
        raise UserError(f"{name} takes images or points, and this is {spec.kind} data")
    if density and spec.discrete:
        binary = " prepare.binarize=none" if spec.levels == 2 else ""
        raise UserError(
            f"{name} is a density and this data is discrete; set prepare.dequantise=true{binary}"
        )
    if conditional and not spec.classes:
        raise UserError(
            f"model.conditional=true needs data with classes, and this has none; leave it out of {name}"
        )


class Density(nn.Module, ABC):
    """p(x), or p(x|y) of each class with the classes' shares p(y); a subclass gives `log_density` and `draw` of a group.

    A group is a class where the model is conditional; else group 0 is all there is.
    """

    def __init__(self, spec: Spec, *, conditional: bool) -> None:
        super().__init__()
        self.spec, self.conditional = spec, conditional
        self.groups = spec.classes if conditional else 1
        self.share = frozen(self.groups, value=1 / self.groups)  # p(y)

    @abstractmethod
    def log_density(self, x: Tensor, group: int) -> Tensor:
        """Return log p(x|group) (B,) in nats of flat x (B, D)."""

    @abstractmethod
    def draw(self, n: int, group: int) -> Tensor:
        """Draw n flat items (n, D) of a group."""

    @abstractmethod
    def improve(self, items: Items, *, step: int, seed: int) -> dict[str, Tensor]:
        """Make one pass of the fit over the items; return its losses."""

    # --- abilities --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x), or −log p(x|y), in nats a sample; no gradient comes from it: the fit is closed form."""
        return {"loss": -self.log_prob(batch.x, batch.y if self.conditional else None).mean()}

    @torch.no_grad()
    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|y) (B,) in nats of x (B, *shape), without y log p(x) = log Σ_y p(y) p(x|y).

        Raises:
            UserError: y is given to a model without classes.
        """
        self.refuse_classes(y)
        x = x.flatten(1)
        if y is None:
            return torch.stack(
                [p.log() + self.log_density(x, g) for g, p in enumerate(self.share)]
            ).logsumexp(0)
        return self.each(y, x.new_empty(len(x)), lambda where, g: self.log_density(x[where], g))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n items (n, *shape), noise included, of the classes y (n,) if given; an image's values are cut to its range.

        Raises:
            UserError: y is given to a model without classes.
        """
        self.refuse_classes(y)
        if y is None:
            y = (
                torch.multinomial(self.share, n, replacement=True)
                if self.groups > 1
                else torch.zeros(n, dtype=torch.long)
            )
        x = self.each(
            y,
            self.share.new_empty(n, self.spec.dim),
            lambda where, g: self.draw(int(where.sum()), g),
        )
        x = x.unflatten(1, self.spec.shape)
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def each(self, y: Tensor, out: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return `out` with the rows of each group g in y (B,) set to function(where y is g, g)."""
        for g in y.unique().tolist():
            where = y == g
            out[where] = function(where, g)
        return out

    def refuse_classes(self, y: Tensor | None) -> None:
        if y is not None and not self.conditional:
            raise UserError(
                "this model knows no classes, and classes were given; train it with model.conditional=true"
            )
