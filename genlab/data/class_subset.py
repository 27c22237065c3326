"""Training on some of the classes, or on few items of one: models of one class, anomalies never seen, sets out of balance."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import Dataset, Split
from genlab.data.shuffling import permutation
from genlab.errors import UserError
from genlab.spec import Count, Fraction, Spec


@dataclass(kw_only=True, eq=False)
class Labelled(Dataset):
    """A set whose classes may be left out of training and validation, whole or in part; the test split and the Spec stay whole.

    After `hold`, `kept` has the indices of a split's items that stayed, where some were left out.

    Args:
        only: the class, or the classes, to train on; None: all.
        keep: class -> the share of its items that stays, chosen by `split_seed`: {1: 0.02} makes class 1 rare, {1: 0}
            leaves it out; a class that is not named stays whole.
        split_seed: chooses those items, and the items of the splits that the source does not fix.
    """

    only: Count | tuple[Count, ...] | None = None
    keep: dict[Count, Fraction] | None = None
    split_seed: Count = 0

    def hold(self, spec: Spec, splits: dict[str, Split], prepare: Any = None, **how: Any) -> None:
        self.kept: dict[str, Tensor] = {}
        if shares := self.shares(spec.classes):
            for name in {"train", "validation"} & splits.keys():
                self.kept[name] = self.staying(splits[name].y, shares)
                splits = {**splits, name: splits[name].part(self.kept[name])}
        super().hold(spec, splits, prepare, **how)
        if self.kept and not self.size("train"):
            raise UserError(
                f"dataset.only and dataset.keep leave {self.name} no training item; keep more"
            )

    def shares(self, classes: int) -> dict[int, float]:
        """Return the share of each class that stays, of those that do not stay whole.

        Raises:
            UserError: the set has no labels, or not that class.
        """
        only = (self.only,) if isinstance(self.only, int) else self.only
        named = [*(only or ()), *(self.keep or ())]
        if (only is not None or self.keep) and not classes:
            raise UserError(
                f"{self.name} has no labels here, by which dataset.only and dataset.keep choose"
            )
        for k in named:
            if k >= classes:
                raise UserError(
                    f"dataset.only and dataset.keep: {self.name} has the classes 0 to {classes - 1}, not {k}"
                )
        left_out = {} if only is None else {k: 0.0 for k in range(classes) if k not in only}
        return (self.keep or {}) | left_out

    def staying(self, y: Tensor, shares: dict[int, float]) -> Tensor:
        """Return the indices of the items, of labels y (N,), that stay, in their order."""
        stays = torch.ones(len(y), dtype=torch.bool)
        for k, share in shares.items():
            (items,) = torch.where(y == k)
            order = items[permutation(len(items), self.split_seed, k)]
            stays[order[round(share * len(items)) :]] = False
        return stays.nonzero()[:, 0]
