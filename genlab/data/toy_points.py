"""Points in the plane from a known law, so that a model's density can be held against the truth."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from genlab.data.class_subset import Labelled
from genlab.data.dataset import SPLITS, Split
from genlab.data.toy_distributions import LAWS
from genlab.errors import UserError
from genlab.seeding import mix
from genlab.spec import Count, Positive, PositiveFloat, Spec


@dataclass(kw_only=True, eq=False)
class Points(Labelled):
    """Exact draws of a law; an option of the law that is None has the law's own value (see `genlab.data.toy_distributions`).

    After the start, `std` is the law's and `centers` (M, 2) the modes of ring and grid, None for the others.

    Args:
        n: training points.
        held_out: points of the validation split, and of the test split.
        split_seed: seeds the draws.
    """

    name: Literal["moons", "ring", "grid", "checkerboard", "spirals", "pinwheel"] = "ring"
    n: Positive = 100_000
    held_out: Positive = 10_000
    std: PositiveFloat | None = None
    radius: PositiveFloat | None = None
    modes: Positive | None = None
    side: Positive | None = None
    spacing: PositiveFloat | None = None
    extent: PositiveFloat | None = None
    twist: float | None = None
    split_seed: Count = 0

    def __post_init__(self) -> None:
        if self.name not in LAWS:
            raise UserError(f"dataset.name={self.name}: laws are {', '.join(LAWS)}")
        known = [f.name for f in fields(LAWS[self.name])]
        wish = ("std", "radius", "modes", "side", "spacing", "extent", "twist")
        given = {key: value for key in wish if (value := getattr(self, key)) is not None}
        for key in given.keys() - set(known):
            raise UserError(f"{self.name} has no dataset.{key}; it has {', '.join(known)}")
        self.law = LAWS[self.name](**given)
        self.centers = self.law.centers
        self.std = getattr(self.law, "std", None)
        splits = {}
        for i, split in enumerate(SPLITS):
            count = self.n if split == "train" else self.held_out
            x, y = self.law.sample(count, torch.Generator().manual_seed(mix(self.split_seed, i)))
            splits[split] = Split(x.float(), y)
        self.hold(Spec(shape=(2,), kind="points", classes=self.law.classes, levels=0), splits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the law's log-density (B,) in nats at x (B, 2), in the precision of x."""
        return self.law.log_prob(x)

    @property
    def entropy(self) -> float:
        """The law's entropy in nats, the best mean −log p that a model can reach on held-out points."""
        return self.law.entropy
