"""Points from a known distribution, the truth for a model's density."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.data.class_subset import ClassSubset
from genlab.data.dataset import SPLITS, Split
from genlab.data.toy_distributions import TOY_DISTRIBUTIONS
from genlab.errors import UserError
from genlab.seeding import derive_seed
from genlab.spec import Count, DataSpec, Positive, PositiveFloat


@dataclass(kw_only=True, eq=False)
class Points(ClassSubset):
    """Exact samples of a toy distribution (see `genlab.data.toy_distributions`).

    An option of the distribution that is None has the distribution's own default. Once built, `std`
    is the distribution's, and `centers` (M, D) the modes of a mixture, None for the others.

    Args:
        n: number of training points.
        num_heldout: number of validation points, and of test points.
        split_seed: seeds the samples.
    """

    name: Literal[
        "moons",
        "ring",
        "grid",
        "checkerboard",
        "spirals",
        "pinwheel",
        "gaussian_1d",
        "mixture_1d",
        "skewed_1d",
        "swiss_roll",
    ] = "ring"
    n: Positive = 100_000
    num_heldout: Positive = 10_000
    std: PositiveFloat | None = None
    radius: PositiveFloat | None = None
    num_modes: Positive | None = None
    grid_size: Positive | None = None
    spacing: PositiveFloat | None = None
    extent: PositiveFloat | None = None
    twist: float | None = None
    mean: float | None = None
    scale: PositiveFloat | None = None
    split_seed: Count = 0

    def __post_init__(self) -> None:
        if self.name not in TOY_DISTRIBUTIONS:
            raise UserError(
                f"dataset.name={self.name}: no such distribution; "
                f"distributions: {', '.join(TOY_DISTRIBUTIONS)}"
            )
        self.distribution = TOY_DISTRIBUTIONS[self.name](**self.given_distribution_options())
        self.centers = self.distribution.centers
        self.log_weights = self.distribution.log_weights
        self.std = self.distribution.std
        splits = {}
        for i, split in enumerate(SPLITS):
            n = self.n if split == "train" else self.num_heldout
            generator = torch.Generator().manual_seed(derive_seed(self.split_seed, i))
            x, y = self.distribution.sample(n, generator)
            splits[split] = Split(x.float(), y)
        shape, num_classes = (self.distribution.dim,), self.distribution.num_classes
        self.set_splits(
            DataSpec(shape=shape, kind="points", num_classes=num_classes, levels=0), splits
        )

    def given_distribution_options(self) -> dict[str, Any]:
        """Return the options that were set for the distribution.

        Raises:
            UserError: the distribution does not have one of them.
        """
        known = [field.name for field in fields(TOY_DISTRIBUTIONS[self.name])]  # type: ignore[arg-type]  # each of them is a dataclass
        options = {
            "std": self.std,
            "radius": self.radius,
            "num_modes": self.num_modes,
            "grid_size": self.grid_size,
            "spacing": self.spacing,
            "extent": self.extent,
            "twist": self.twist,
            "mean": self.mean,
            "scale": self.scale,
        }
        given = {key: value for key, value in options.items() if value is not None}
        for key in given.keys() - set(known):
            raise UserError(
                f"{self.name} does not have dataset.{key}; its options: {', '.join(known)}"
            )
        return given

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the true log-density (B,) in nats at x (B, D), in the precision of x."""
        return self.distribution.log_prob(x)

    @property
    def entropy(self) -> float:
        """The entropy in nats: the best mean −log p that a model can reach on held-out points."""
        return self.distribution.entropy
