"""The base class of image datasets, with the options that all of them share."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from genlab.data.class_subset import ClassSubset
from genlab.data.dataset import CHUNK_SIZE, Split, concatenate_batches
from genlab.data.preprocessing import Binarize, Preprocessor, binarization_noise_fraction
from genlab.data.shuffling import ShardIndex, seeded_split_indices
from genlab.data.summary import DataSummary
from genlab.errors import UserError
from genlab.spec import Batch, DataSpec, Positive

RESIZE_BATCH_SIZE = 4096  # images resized at once
NOISE_IMAGES = 256  # training images that `binarization_noise_fraction` is measured on


@dataclass(kw_only=True, eq=False)
class Images(ClassSubset):
    """An image dataset.

    Args:
        size: side of the images in pixels; they are resized once, when read. None leaves them as
            they are.
        range: the interval that the values are mapped to.
        binarize: whether to make the images binary: by a threshold at half, or drawn each time.
        dequantize: whether each value gets uniform noise that fills its bin, so that the data has a
            density.
        flip: whether half of the training images are mirrored left to right.
    """

    # Papers binarize this data, so recipes may.
    commonly_binarized: ClassVar[bool] = False

    # the option; it hides the method of Dataset until __post_init__
    size: Positive | None = field(default_factory=lambda: None)  # type: ignore[assignment]
    range: tuple[float, float] = (-1.0, 1.0)
    binarize: Binarize = "none"
    dequantize: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        # The option `size` is stored as `side`; from here on `size` is the method of Dataset.
        self.side: int | None = self.__dict__.pop("size")

    def set_image_splits(
        self,
        splits: dict[str, Split],
        *,
        shape: tuple[int, ...],
        num_classes: int = 0,
        class_names: Sequence[str] = (),
        levels: int = 256,
        hints: dict[str, str] | None = None,
    ) -> None:
        """Set the splits of uint8 images, with the preprocessing that the options describe."""
        low, high = self.range
        preprocess = Preprocessor(
            levels=levels,
            range=(float(low), float(high)),
            binarize=self.binarize,
            dequantize=self.dequantize,
            flip=self.flip,
        )
        spec = DataSpec(
            shape=tuple(shape),
            num_classes=num_classes,
            class_names=tuple(class_names),
            levels=preprocess.num_levels_out,
            range=preprocess.range,
            dequantized=self.dequantize,
        )
        self.set_splits(spec, splits, preprocess, hints=hints)

    def binarization_noise_fraction(self) -> float:
        """Return how much of the variance of the binarized training pixels is noise, 0 … 1.

        It is 0 for data that is commonly binarized; otherwise it is measured on a few images.
        """
        if self.commonly_binarized:
            return 0.0
        index = self.head_indices("train", NOISE_IMAGES)
        shards = iter([ShardIndex(0, -1, index)])
        (_, _, k, _), *_ = self._raw_batches("train", shards, torch.device("cpu"))
        return binarization_noise_fraction(k, self.preprocess.levels - 1)

    def set_binarize_and_dequantize(self, *, binarize: Binarize, dequantize: bool) -> None:
        """Change how the images, which are read already, are given to a model."""
        self.binarize, self.dequantize = binarize, dequantize
        self.preprocess = replace(self.preprocess, binarize=binarize, dequantize=dequantize)
        levels = self.preprocess.num_levels_out
        self.spec = replace(self.spec, levels=levels, dequantized=dequantize)

    @property
    def draws_binary_pixels(self) -> bool:
        """Whether binary pixels are drawn from gray levels."""
        return self.binarize == "dynamic" and self.preprocess.levels > 2

    def with_gray_levels(self) -> "Images":
        if not self.draws_binary_pixels:
            return self
        view = copy(self)
        view.set_binarize_and_dequantize(binarize="none", dequantize=False)
        return view

    def words_for_draws(self) -> list[str]:
        words = super().words_for_draws()
        words += ["binary pixels drawn by their gray levels"] if self.draws_binary_pixels else []
        return [*words, "half of them mirrored"] if self.flip else words

    def describe(self) -> DataSummary:
        summary = super().describe()
        if self.binarize != "none" and self.preprocess.levels > 2:
            how = "drawn by their gray levels" if self.binarize == "dynamic" else "by a threshold"
            summary.shown = summary.shown.replace("binary", f"binary ({how})", 1)
        return summary

    def head_as_uint8_images(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        order = self.head_indices(split, n, seed=seed)
        shards = (ShardIndex(k, -1, index) for k, index in enumerate(order.split(CHUNK_SIZE)))
        parts = [
            Batch(self.preprocess.levels_to_bytes(x), y)
            for _, _, x, y in self._raw_batches(split, shards, torch.device("cpu"))
        ]
        return concatenate_batches(parts)

    def split_train_and_validation(
        self, x: Tensor, y: Tensor | None, fraction: float
    ) -> dict[str, Split]:
        """Return the seeded splits train and validation, with a fraction of the items held out."""
        validation, train = seeded_split_indices(
            len(x), [round(fraction * len(x))], self.split_seed
        )
        if not len(train):
            raise UserError(
                f"dataset.validation={fraction:g} leaves {self.name} without training images"
            )
        whole = Split(x, y)
        return {"train": whole.subset(train), "validation": whole.subset(validation)}


def resize_images(x: Tensor, size: int | None) -> Tensor:
    """Return uint8 images (N, C, H, W) resized to (N, C, size, size), antialiased bilinear.

    None leaves them as they are.
    """
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    parts = [
        torch.nn.functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        for part in x.split(RESIZE_BATCH_SIZE)
    ]
    return torch.cat(parts)


NO_VALIDATION = {
    "validation": "dataset.validation is 0; hold out some training items, as dataset.validation=0.1"
}
