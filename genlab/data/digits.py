"""The handwritten digits that ship with scikit-learn: no network and no file needed."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from genlab.data.dataset import Split
from genlab.data.image_dataset import Images, resize_images
from genlab.data.shuffling import seeded_split_indices
from genlab.spec import Fraction


@dataclass(kw_only=True, eq=False)
class Digits(Images):
    """Handwritten digits, 10 classes: Alpaydin & Kaynak 1998.

    https://doi.org/10.24432/C50P49. The original images are (1, 8, 8) with 17 levels. With a `size`
    other than 8 they are scaled to 256 levels and resized.

    Args:
        validation, test: fractions of the 1,797 images that the seed `split_seed` holds out.
    """

    validation: Fraction = 0.1
    test: Fraction = 0.1
    name = "digits"
    commonly_binarized = True

    def __post_init__(self) -> None:
        super().__post_init__()
        (x, y), levels = read_digits(), 17
        if self.side not in (None, 8):
            x, levels = (
                resize_images(x.float().mul(255 / 16).round().to(torch.uint8), self.side),
                256,
            )
        sizes = [round(fraction * len(x)) for fraction in (self.test, self.validation)]
        test, validation, train = seeded_split_indices(len(x), sizes, self.split_seed)
        parts = {"test": test, "validation": validation, "train": train}
        splits = {name: Split(x[index], y[index]) for name, index in parts.items()}
        hints = dict.fromkeys(
            parts, f"dataset.validation={self.validation:g}, dataset.test={self.test:g}"
        )
        self.set_image_splits(splits, shape=x.shape[1:], num_classes=10, levels=levels, hints=hints)


@cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Return images uint8 (1797, 1, 8, 8), levels 0 … 16, and labels int64 (1797,).

    scikit-learn parses its file again for each call, so the tensors are kept.
    """
    from sklearn.datasets import load_digits  # takes a second to import: only where it is used

    source = load_digits()
    x = torch.from_numpy(source.images).to(torch.uint8).unsqueeze(1)
    return x, torch.from_numpy(source.target).to(torch.int64)
