"""Pairs from any image dataset, with an operator that makes each image's source."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genlab.data.dataset import Dataset
from genlab.data.degradations import TASKS, Operator, OperatorName
from genlab.data.image_patches import random_crop
from genlab.data.summary import DataSummary
from genlab.errors import UserError
from genlab.spec import Batch, Fraction, NonNegative, Positive


@dataclass(kw_only=True, eq=False)
class Pairs(Dataset):
    """Images x of another dataset, with sources made by an operator: `cond = operator(x)`.

    Sources are made of preprocessed images, on the device. Their randomness is drawn each time in
    training, and is the same in every ordered pass.

    Args:
        base: the image dataset.
        operator: gray | downsample | noise | mask | edges; see `Operator`.
        factor: the reduction of downsample.
        sigma: the standard deviation of noise, in units of the data's range.
        mask: box | half | random.
        mask_ratio: the fraction of the pixels that the masks box and random hide.
        crop_size: side of the patches to cut out, anywhere in training, else in the middle; None
            uses complete images. A folder of images cuts them at each image's own size.
        reverse: whether the operator's result is the target, and the image its source.
    """

    # own option -> option of the base that it sets, if the base has it
    passed_on: ClassVar[dict[str, str]] = {"crop_size": "base.patch_size"}

    base: Any
    operator: OperatorName = "edges"
    factor: Positive = 2
    sigma: NonNegative = 0.1
    mask: Literal["box", "half", "random"] = "box"
    mask_ratio: Fraction = 0.25
    crop_size: Positive | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        base_spec = self.base.spec
        if base_spec.kind != "image":
            raise UserError(
                f"dataset=pairs requires images, but {self.base.name} has {base_spec.kind}"
            )
        if self.crop_size and self.crop_size > min(base_spec.shape[1:]):
            sides = "×".join(str(side) for side in reversed(base_spec.shape[1:]))
            raise UserError(
                f"dataset.crop_size={self.crop_size} is larger than the images of "
                f"{self.base.name} ({sides})"
            )
        if self.crop_size and self.operator == "downsample" and self.crop_size % self.factor:
            multiple = max(1, self.crop_size // self.factor) * self.factor
            raise UserError(
                f"dataset.crop_size={self.crop_size} is not a multiple of "
                f"dataset.factor={self.factor}; set dataset.crop_size={multiple}"
            )
        # a base that cuts the same patches has done so when a batch is made
        self.cuts_patches = self.crop_size not in (None, getattr(self.base, "patch_size", None))
        shape = base_spec.shape
        if self.crop_size:
            shape = (shape[0], self.crop_size, self.crop_size)
        image = replace(base_spec, shape=shape, source=None, task="")
        self.apply = Operator(
            name=self.operator,
            spec=image,
            factor=self.factor,
            sigma=self.sigma,
            mask=self.mask,
            mask_ratio=self.mask_ratio,
        )
        degraded = self.apply.source_spec
        if self.reverse:
            source = replace(image, num_classes=0, class_names=())
            spec = replace(
                degraded,
                num_classes=image.num_classes,
                class_names=image.class_names,
                source=source,
                task=self.operator,
            )
        else:
            spec = replace(image, source=degraded, task=TASKS[self.operator])
        self.name = f"{self.base.name} ({self.operator})"
        self.workers = self.base.workers
        self.source_files = self.base.source_files
        self.set_splits(spec, self.base.splits, self.base.preprocess, hints=self.base.hints)

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if self.crop_size and self.cuts_patches:
            x = random_crop(x, self.crop_size, generator if augment else None)
        x = self.base.make_batch(x, y, generator, augment=augment).x
        source = self.apply(x, generator)
        return Batch(source, y, x) if self.reverse else Batch(x, y, source)

    def head_as_uint8_images(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        """Return the targets that `head` returns as bytes uint8 (n, C, H, W)."""
        if not self.crop_size and not self.reverse:
            return self.base.head_as_uint8_images(split, n, seed=seed)
        batch = self.head(split, n, seed=seed)
        return Batch(self.spec.to_bytes(batch.x), batch.y)

    def words_for_draws(self) -> list[str]:
        patches = ["patches anywhere in the images"] if self.crop_size else []
        return list(dict.fromkeys([*self.base.words_for_draws(), *patches]))

    def describe(self) -> DataSummary:
        return replace(self.base.describe(), name=self.name, shown=self.spec.describe())
