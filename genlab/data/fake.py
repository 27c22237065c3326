"""Noise in the shape of images, for trying a program out."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import Images
from genlab.errors import UserError
from genlab.seeding import derive_seed
from genlab.spec import Count, Positive


@dataclass(kw_only=True, eq=False)
class Fake(Images):
    """Seeded uniform noise.

    Args:
        shape: (C, H, W); `size` replaces H and W.
        num_classes: the number of labels, drawn at random; 0 disables them.
        n: training images; validation and test have a tenth each.
    """

    shape: tuple[int, ...] = (1, 8, 8)
    num_classes: Count = 0
    levels: Annotated[int, Interval(ge=2, le=256)] = 256
    n: Positive = 1_000
    name = "fake"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UserError(
                f"dataset.shape={list(self.shape)} is not the shape [channels, height, width] of "
                "an image"
            )
        shape = (self.shape[0], self.side, self.side) if self.side else tuple(self.shape)
        splits = {}
        for i, name in enumerate(SPLITS):
            n = self.n if name == "train" else max(1, self.n // 10)
            noise = torch.Generator().manual_seed(derive_seed(self.split_seed, i))
            x = torch.randint(0, self.levels, (n, *shape), dtype=torch.uint8, generator=noise)
            y = None
            if self.num_classes:
                y = torch.randint(0, self.num_classes, (n,), generator=noise)
            splits[name] = Split(x, y)
        self.set_image_splits(splits, shape=shape, num_classes=self.num_classes, levels=self.levels)
