"""The 1,797 handwritten digits that scikit-learn carries: the default set, which needs neither network nor file."""

from dataclasses import dataclass

import torch

from genlab.data.dataset import Split
from genlab.data.image_dataset import Images, resized
from genlab.data.shuffling import cut
from genlab.spec import Fraction


@dataclass(kw_only=True, eq=False)
class Digits(Images):
    """Handwritten digits of Alpaydin & Kaynak 1998 (https://doi.org/10.24432/C50P49), 10 classes.

    As they are: (1, 8, 8) with 17 levels. With `size` other than 8: stretched to 256 levels and resized.

    Args:
        validation, test: shares of the 1,797 images that the seed `split_seed` holds out.
    """

    validation: Fraction = 0.1
    test: Fraction = 0.1
    name = "digits"

    def __post_init__(self) -> None:
        super().__post_init__()
        from sklearn.datasets import load_digits  # takes a second to import: only where it is used

        source = load_digits()
        x = (
            torch.from_numpy(source.images).to(torch.uint8).unsqueeze(1)
        )  # (N, 1, 8, 8), levels 0 … 16
        y = torch.from_numpy(source.target).to(torch.int64)
        levels = 17
        if self.side not in (None, 8):
            x, levels = resized(x.float().mul(255 / 16).round().to(torch.uint8), self.side), 256
        sizes = [round(share * len(x)) for share in (self.test, self.validation)]
        parts = dict(
            zip(("test", "validation", "train"), cut(len(x), sizes, self.split_seed), strict=True)
        )
        splits = {name: Split(x[index], y[index]) for name, index in parts.items()}
        missing = dict.fromkeys(
            parts, f"dataset.validation={self.validation:g}, dataset.test={self.test:g}"
        )
        self.hold_images(splits, shape=x.shape[1:], classes=10, levels=levels, missing=missing)
