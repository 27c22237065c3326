"""The options that every set of images has, and images that are small enough to be read whole at once."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genlab.data.class_subset import Labelled
from genlab.data.dataset import CHUNK, Split, joined
from genlab.data.preprocessing import Binarize, Preparation
from genlab.data.shuffling import Address, cut, permutation
from genlab.errors import UserError
from genlab.spec import Batch, Positive, Spec


@dataclass(kw_only=True, eq=False)
class Images(Labelled):
    """A set of images.

    Args:
        size: side of the images in pixels, which are resized once, when read; None leaves them as they are.
        range: the interval that the values are mapped onto.
        binarize: to two levels: not at all, by a threshold at half, or drawn anew each time.
        dequantise: whether each value is spread evenly over its bin, so that the set has a density.
        flip: whether half of the training images are mirrored left to right.
    """

    size: Positive | None = field(default_factory=lambda: None)  # type: ignore[assignment]
    range: tuple[float, float] = (-1.0, 1.0)
    binarize: Binarize = "none"
    dequantise: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        self.side: int | None = self.__dict__.pop(
            "size"
        )  # the option is read; `size` is the method from here on

    def hold_images(
        self,
        splits: dict[str, Split],
        *,
        shape: tuple[int, ...],
        classes: int = 0,
        levels: int = 256,
        missing: dict[str, str] | None = None,
    ) -> None:
        """Take the splits of uint8 images, with the preparation that the options describe."""
        low, high = self.range
        prepare = Preparation(
            levels=levels,
            range=(float(low), float(high)),
            binarize=self.binarize,
            dequantise=self.dequantise,
            flip=self.flip,
        )
        spec = Spec(
            shape=tuple(shape),
            classes=classes,
            levels=prepare.levels_out,
            range=prepare.range,
            dequantised=self.dequantise,
        )
        self.hold(spec, splits, prepare, missing=missing)

    def shown(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        """Return the items that `take` returns as the bytes uint8 (n, C, H, W) that they were drawn from: no coin, no noise.

        What a model gives as a pixel's probability or mean is held against these.
        """
        order = permutation(len(self._held(split)), seed, 0)[:n]
        addresses = (Address(k, -1, index) for k, index in enumerate(order.split(CHUNK)))
        parts = [
            Batch(self.prepare.shown(k), y)
            for _, _, k, y in self._raw(split, addresses, torch.device("cpu"))
        ]
        return joined(parts)

    def held_out(self, x: Tensor, y: Tensor | None, share: float) -> dict[str, Split]:
        """Return the seeded splits train and validation, with `share` of the items held out."""
        out, rest = cut(len(x), [round(share * len(x))], self.split_seed)
        if not len(rest):
            raise UserError(f"dataset.validation={share:g} leaves {self.name} no image to train on")
        take = lambda index: Split(x[index], None if y is None else y[index])  # noqa: E731
        return {"train": take(rest), "validation": take(out)}


def resized(x: Tensor, size: int | None) -> Tensor:
    """Return uint8 images (N, C, H, W) resized to (N, C, size, size), antialiased bilinear; None leaves them."""
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    resize = torch.nn.functional.interpolate
    parts = [
        resize(part, size=(size, size), mode="bilinear", antialias=True) for part in x.split(4096)
    ]
    return torch.cat(parts)


NO_VALIDATION = {
    "validation": "dataset.validation is 0; hold some training items out, as dataset.validation=0.1"
}
