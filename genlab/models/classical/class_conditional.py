"""Base class of classical densities, with one density in total or one per class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.classical.covariance import frozen_parameter
from genlab.models.classical.full_batch import TrainingItems
from genlab.models.classical.missing_cells import draw_from_mixture_given_known
from genlab.nn.precision import in_full_precision
from genlab.spec import Batch, DataSpec


def validate_spec(name: str, spec: DataSpec, *, conditional: bool, is_density: bool) -> None:
    """Raise UserError if a classical model cannot be fitted to the data.

    Args:
        name: of the recipe.
        is_density: whether the model is a density, which does not fit discrete data.
    """
    if spec.kind not in ("image", "points"):
        raise UserError(f"{name} supports images and points, but this dataset has {spec.kind} data")
    if is_density and spec.is_discrete:
        binarize = " preprocess.binarize=none" if spec.levels == 2 else ""
        raise UserError(
            f"{name} is a density, but this data is discrete; "
            f"set preprocess.dequantize=true{binarize}"
        )
    if conditional and not spec.num_classes:
        raise UserError(
            "model.conditional=true requires labels, but this dataset has none; "
            f"set model.conditional=false for {name}"
        )


class ClassConditionalDensity(GenerativeModel, ABC):
    """p(x), or p(x|y) of each class and the class probabilities p(y).

    A subclass implements `group_log_prob` and `sample_group`. A group is a class if the model is
    conditional; otherwise group 0 holds all items.
    """

    def __init__(self, spec: DataSpec, *, conditional: bool) -> None:
        super().__init__()
        self.spec, self.conditional = spec, conditional
        self.num_groups = spec.num_classes if conditional else 1
        self.class_probs = frozen_parameter(self.num_groups, value=1 / self.num_groups)  # p(y)

    @abstractmethod
    def group_log_prob(self, x: Tensor, group: int) -> Tensor:
        """Return log p(x|group) (B,) in nats for flat x (B, D)."""

    @abstractmethod
    def sample_group(self, n: int, group: int) -> Tensor:
        """Draw n flat items (n, D) of a group."""

    @abstractmethod
    def fit_step(self, items: TrainingItems, *, step: int, seed: int) -> dict[str, Tensor]:
        """Make one pass of the fit over the items and return its losses."""

    def require_enough_items(self, n: int, group: int | None) -> None:
        """Raise UserError if n items of a class, or of all classes, are too few."""

    def fit_notes(self) -> list[str]:
        """Return what a user should know about the last fit, such as a variance that is a floor."""
        return []

    # --- abilities --------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x), or −log p(x|y), in nats per sample.

        It does not have a gradient, since the fit is in closed form.
        """
        return {"loss": -self.log_prob(batch.x, batch.y if self.conditional else None).mean()}

    @torch.no_grad()
    @in_full_precision
    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|y) (B,) in nats, or log p(x) = log Σ_y p(y) p(x|y) if y is None.

        Raises:
            UserError: y is given to an unconditional model.
        """
        self.refuse_labels_if_unconditional(y)
        x = x.flatten(1)
        if y is None:
            log_joint = [
                p.log() + self.group_log_prob(x, g) for g, p in enumerate(self.class_probs)
            ]
            return torch.stack(log_joint).logsumexp(0)
        return fill_rows_by_group(
            x.new_empty(len(x)), y, lambda rows, g: self.group_log_prob(x[rows], g)
        )

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n samples (n, *shape) with their noise, of the classes y (n,) if given.

        Images are clamped to their range.

        Raises:
            UserError: y is given to an unconditional model.
        """
        self.refuse_labels_if_unconditional(y)
        if y is None:
            if self.num_groups > 1:
                y = torch.multinomial(self.class_probs, n, replacement=True)
            else:
                y = torch.zeros(n, dtype=torch.long)
        x = fill_rows_by_group(
            self.class_probs.new_empty(n, self.spec.dim),
            y,
            lambda rows, g: self.sample_group(int(rows.sum()), g),
        )
        x = x.unflatten(1, self.spec.shape)
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def refuse_labels_if_unconditional(self, y: Tensor | None) -> None:
        """Raise UserError if labels are given to an unconditional model."""
        if y is not None and not self.conditional:
            raise UserError(
                "this model is not class-conditional, so it does not take labels; "
                "train it with model.conditional=true"
            )


class ImputesByGaussians(ABC):
    """Exact imputation for models whose p(x) is a mixture of Gaussians."""

    @abstractmethod
    def gaussian_components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (K,), means (K, D) and covariances (K, D, D) of p(x)."""

    @torch.no_grad()
    def impute(
        self, x: Tensor, known: Tensor, *, draws: int = 1, steps: int | None = None
    ) -> Tensor:
        """Draw the unknown values of x (B, D) from their exact conditional (draws, B, D)."""
        weights, means, matrices = self.gaussian_components()
        return draw_from_mixture_given_known(x, known, weights.log(), means, matrices, draws)


def fill_rows_by_group(out: Tensor, y: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Set the rows of `out` with y == g to function(y == g, g) for each group g in y (B,)."""
    for g in y.unique().tolist():
        rows = y == g
        out[rows] = function(rows, g)
    return out
