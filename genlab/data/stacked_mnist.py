"""Stacked MNIST: three digits as the red, green and blue of one image, 1,000 modes that can be counted.

Metz et al. 2017, https://arxiv.org/abs/1611.02163, and Srivastava et al. 2017, https://arxiv.org/abs/1705.07761.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import NO_VALIDATION
from genlab.data.shuffling import Address
from genlab.data.torchvision_sets import MNIST, Downloaded
from genlab.seeding import mix
from genlab.spec import Fraction, Positive

CHANNELS = 3


@dataclass(kw_only=True, eq=False)
class StackedMNIST(Downloaded):
    """Three digits of MNIST drawn apart from one another, as the channels of an image whose class is the number they write.

    Held as which digits an item is made of, and put together when it is asked for. An item depends on `split_seed` and on
    its own number alone.

    Args:
        n: training items; validation and test, from digits of their own, have a fifth as many each.
    """

    validation: Fraction = 1 / 12
    n: Positive = 128_000
    name = "stacked_mnist"
    stacked = (
        True  # each channel has a class of its own, which a classifier of single digits can tell
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        same = {
            "root": self.root,
            "download": self.download,
            "validation": self.validation,
            "split_seed": self.split_seed,
        }
        self.single = MNIST(
            size=self.side,
            range=self.range,
            binarize=self.binarize,
            dequantise=self.dequantise,
            **same,
        )
        splits = {}
        for number, name in enumerate(SPLITS):
            if m := self.single.size(name):
                seed = torch.Generator().manual_seed(mix(self.split_seed, number))
                size = (self.n if name == "train" else max(1, self.n // 5), CHANNELS)
                members = torch.randint(
                    m, size, generator=seed
                )  # (N, 3): the numbers of the digits
                digits = self.single.splits[name].y[members]
                splits[name] = Split(
                    members, digits @ 10 ** torch.arange(CHANNELS - 1, -1, -1)
                )  # red: hundreds
        shape = (CHANNELS, *self.single.spec.shape[1:])
        self.hold_images(splits, shape=shape, classes=10**CHANNELS, missing=NO_VALIDATION)

    def arrays(self, split: str) -> tuple[Tensor, Tensor | None]:
        """Return all items, uint8 (N, 3, H, W), and their labels (N,), on the CPU."""
        members, y = super().arrays(split)
        return self.single.arrays(split)[0][members, 0], y

    def _raw(
        self, split: str, addresses: Iterator[Address], device: torch.device
    ) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        digits, _ = self.single._on(split, device)  # (M, 1, H, W)
        for k, shard, members, y in super()._raw(split, addresses, device):
            yield k, shard, digits[members, 0], y  # (B, 3, H, W)
