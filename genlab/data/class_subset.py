"""Datasets without some classes, or with few items of one: anomalies, class imbalance."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import Dataset, Split
from genlab.data.shuffling import seeded_permutation
from genlab.errors import UserError
from genlab.spec import ClassName, Count, DataSpec, Fraction

MAX_NAMES = 12  # classes that a note names


def join_first_names(names: list[str]) -> str:
    """Return the first names, separated by commas."""
    return ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")


@dataclass(kw_only=True, eq=False)
class ClassSubset(Dataset):
    """A dataset whose training and validation splits may leave out classes, wholly or in part.

    The test split and the DataSpec stay complete. After `set_splits`, `kept` has the indices of the
    items that a split kept, for splits that lost some.

    Args:
        classes: the class, or the classes, to train on, by name or number; None uses all.
        class_fraction: class -> the fraction of its items to keep, chosen by `split_seed`:
            {1: 0.02} makes class 1 rare, {dog: 0} leaves dogs out. A class without an entry stays
            complete.
        split_seed: chooses those items, and the items of the splits that the source does not fix.
    """

    classes: ClassName | tuple[ClassName, ...] | None = None
    class_fraction: dict[ClassName, Fraction] | None = None
    split_seed: Count = 0

    def set_splits(
        self, spec: DataSpec, splits: dict[str, Split], preprocess: Any = None, **options: Any
    ) -> None:
        self.kept: dict[str, Tensor] = {}
        if fractions := self.fraction_to_keep_per_class(spec):
            for name in {"train", "validation"} & splits.keys():
                labels = splits[name].y
                assert labels is not None
                self.kept[name] = self.indices_to_keep(labels, fractions)
                splits = {**splits, name: splits[name].subset(self.kept[name])}
            self.add_class_fraction_note(spec, fractions)
        super().set_splits(spec, splits, preprocess, **options)
        if self.kept and not self.size("train"):
            raise UserError(
                f"dataset.classes and dataset.class_fraction leave {self.name} without training "
                "items; keep more"
            )

    def words_for_draws(self) -> list[str]:
        return ["all classes, also those that training lacks in part"] if self.kept else []

    def fraction_to_keep_per_class(self, spec: DataSpec) -> dict[int, float]:
        """Return the fraction to keep of each class that does not stay complete.

        Raises:
            UserError: the dataset is unlabeled, or does not have that class.
        """
        chosen = self.classes
        if (chosen is not None or self.class_fraction) and not spec.num_classes:
            raise UserError(
                f"dataset.classes and dataset.class_fraction require labels, but {self.name} has "
                "none here"
            )
        fractions = {
            spec.class_number(name, "dataset.class_fraction"): fraction
            for name, fraction in (self.class_fraction or {}).items()
        }
        if chosen is None:
            return fractions
        names = chosen if isinstance(chosen, tuple) else (chosen,)
        kept = {spec.class_number(name, "dataset.classes") for name in names}
        return fractions | {k: 0.0 for k in range(spec.num_classes) if k not in kept}

    def add_class_fraction_note(self, spec: DataSpec, fractions: dict[int, float]) -> None:
        """Note which classes are left out of training, wholly or in part."""
        parts = [f"{share:.3g} of {spec.class_name(k)}" for k, share in fractions.items() if share]
        complete = [spec.class_name(k) for k in range(spec.num_classes) if k not in fractions]
        words = join_first_names([*complete, *parts])
        self.notes.append(f"trained on the classes {words}; the test split has all classes")

    def indices_to_keep(self, y: Tensor, fractions: dict[int, float]) -> Tensor:
        """Return the sorted indices of the items to keep, given their labels y (N,)."""
        keep = torch.ones(len(y), dtype=torch.bool)
        for k, fraction in fractions.items():
            (items,) = torch.where(y == k)
            order = items[seeded_permutation(len(items), self.split_seed, k)]
            keep[order[round(fraction * len(items)) :]] = False
        return keep.nonzero()[:, 0]
