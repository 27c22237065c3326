"""Datasets without some classes, or with few items of one: anomalies, class imbalance."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import Dataset, Split
from genlab.data.shuffling import permutation
from genlab.errors import UserError
from genlab.spec import Count, DataSpec, Fraction


@dataclass(kw_only=True, eq=False)
class ClassSubset(Dataset):
    """A dataset whose training and validation splits may leave out classes, wholly or in part.

    The test split and the DataSpec stay complete. After `set_splits`, `kept` has the indices of the
    items that a split kept, for splits that lost some.

    Args:
        classes: the class, or the classes, to train on; None uses all.
        class_fraction: class -> the fraction of its items to keep, chosen by `split_seed`:
            {1: 0.02} makes class 1 rare, {1: 0} leaves it out. A class without an entry stays
            complete.
        split_seed: chooses those items, and the items of the splits that the source does not fix.
    """

    classes: Count | tuple[Count, ...] | None = None
    class_fraction: dict[Count, Fraction] | None = None
    split_seed: Count = 0

    def set_splits(
        self, spec: DataSpec, splits: dict[str, Split], preprocess: Any = None, **options: Any
    ) -> None:
        self.kept: dict[str, Tensor] = {}
        if fractions := self.fractions_to_keep(spec.num_classes):
            for name in {"train", "validation"} & splits.keys():
                labels = splits[name].y
                assert labels is not None
                self.kept[name] = self.kept_indices(labels, fractions)
                splits = {**splits, name: splits[name].subset(self.kept[name])}
        super().set_splits(spec, splits, preprocess, **options)
        if self.kept and not self.size("train"):
            raise UserError(
                f"dataset.classes and dataset.class_fraction leave {self.name} without training "
                "items; keep more"
            )

    def fractions_to_keep(self, num_classes: int) -> dict[int, float]:
        """Return the fraction to keep of each class that does not stay complete.

        Raises:
            UserError: the dataset is unlabeled, or does not have that class.
        """
        classes = (self.classes,) if isinstance(self.classes, int) else self.classes
        if (classes is not None or self.class_fraction) and not num_classes:
            raise UserError(
                f"dataset.classes and dataset.class_fraction require labels, but {self.name} has "
                "none here"
            )
        for k in [*(classes or ()), *(self.class_fraction or ())]:
            if k >= num_classes:
                raise UserError(
                    f"dataset.classes and dataset.class_fraction: {self.name} has the classes 0 to "
                    f"{num_classes - 1}, not {k}"
                )
        left_out = (
            {} if classes is None else {k: 0.0 for k in range(num_classes) if k not in classes}
        )
        return (self.class_fraction or {}) | left_out

    def kept_indices(self, y: Tensor, fractions: dict[int, float]) -> Tensor:
        """Return the sorted indices of the items to keep, given their labels y (N,)."""
        keep = torch.ones(len(y), dtype=torch.bool)
        for k, fraction in fractions.items():
            (items,) = torch.where(y == k)
            order = items[permutation(len(items), self.split_seed, k)]
            keep[order[round(fraction * len(items)) :]] = False
        return keep.nonzero()[:, 0]
