"""Stacked MNIST: three digits as the channels of one image, 1,000 countable modes.

Metz et al. 2017, https://arxiv.org/abs/1611.02163, and Srivastava et al. 2017,
https://arxiv.org/abs/1705.07761.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import NO_VALIDATION
from genlab.data.shuffling import ShardIndex
from genlab.data.torchvision_sets import MNIST, TorchvisionImages
from genlab.seeding import derive_seed
from genlab.spec import Fraction, Positive

NUM_CHANNELS = 3


@dataclass(kw_only=True, eq=False)
class StackedMNIST(TorchvisionImages):
    """Three independent MNIST digits as the channels of an image.

    The class is the number that the digits form, red first. An item is stored as the indices of its
    digits and assembled when needed. It depends only on `split_seed` and its own number.

    Args:
        n: training items; validation and test have a fifth each, from digits of their own.
    """

    validation: Fraction = 1 / 12
    n: Positive = 128_000
    name = "stacked_mnist"
    stacked = True
    commonly_binarized = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.digits = MNIST(
            size=self.side,
            range=self.range,
            binarize=self.binarize,
            dequantize=self.dequantize,
            root=self.root,
            download=self.download,
            validation=self.validation,
            split_seed=self.split_seed,
        )
        splits = {}
        for number, name in enumerate(SPLITS):
            if num_digits := len(self.digits.splits[name]):
                generator = torch.Generator().manual_seed(derive_seed(self.split_seed, number))
                size = (self.n if name == "train" else max(1, self.n // 5), NUM_CHANNELS)
                # (N, 3): the indices of the digits
                members = torch.randint(num_digits, size, generator=generator)
                labels = self.digits.splits[name].y
                assert labels is not None
                powers = 10 ** torch.arange(NUM_CHANNELS - 1, -1, -1)  # red has the hundreds
                splits[name] = Split(members, labels[members] @ powers)
        shape = (NUM_CHANNELS, *self.digits.spec.shape[1:])
        self.set_image_splits(
            splits, shape=shape, num_classes=10**NUM_CHANNELS, hints=NO_VALIDATION
        )

    @property
    def classifier_dataset(self) -> Any:
        """The single digits, so that a classifier sees one channel at a time."""
        return self.digits

    def raw_items_and_labels(self, split: str) -> tuple[Tensor, Tensor | None]:
        """Return all items, uint8 (N, 3, H, W), and their labels (N,), on the CPU."""
        members, y = super().raw_items_and_labels(split)
        return self.digits.raw_items_and_labels(split)[0][members, 0], y

    def _raw_batches(
        self,
        split: str,
        shards: Iterator[ShardIndex],
        device: torch.device,
        *,
        seed: int | None = None,
    ) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        digits, _ = self.digits._split_tensors_on_device(split, device)  # (M, 1, H, W)
        for k, shard, members, y in super()._raw_batches(split, shards, device):
            yield k, shard, digits[members, 0], y  # (B, 3, H, W)
