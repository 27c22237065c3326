"""Trainer of semi-supervised models: each batch has labeled and unlabeled items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.m2 import M2, UNLABELED
from genlab.seeding import derive_seed
from genlab.spec import Batch, Count, Fraction, Positive
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer


class SemiSupervisedTrainer(Trainer):
    """Gradient descent on batches of unlabeled and labeled items.

    A batch has `batch_size` unlabeled and `labeled_batch_size` labeled items. `num_labeled`
    training items keep their label, equally many of each class. All other labels are never read.
    """

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        num_labeled: Positive = 100  # labeled training items, equally many of each class
        labeled_batch_size: Positive = 100  # labeled items per batch, beside batch_size unlabeled
        label_seed: Count = 0  # seed of the choice of labeled items
        # weight of the bound of labeled items; null uses their fraction of the data, N_l / N
        labeled_weight: Fraction | None = None
        # first steps, in which only labeled items train the classifier q(y|x)
        classifier_warmup_steps: Count = 0

    model: M2
    options: Options

    def train_batches(self, data: Any, **kwargs: Any) -> Iterator[Batch]:
        """Return the training batches: unlabeled items with the label −1, then labeled items.

        Raises:
            UserError: the dataset has fewer labels than the options ask for, or none.
        """
        o = self.options
        _, y = data.raw_items_and_labels("train")
        if y is None:
            raise UserError(
                f"trainer.num_labeled={o.num_labeled} requires labels, but {data.name} has none"
            )
        labeled = class_balanced_indices(y, o.num_labeled, o.label_seed)
        if o.labeled_batch_size > o.num_labeled:
            raise UserError(
                f"trainer.labeled_batch_size={o.labeled_batch_size} exceeds "
                f"trainer.num_labeled={o.num_labeled}"
            )
        num_shards = self.group.size * o.grad_accum_steps
        if o.labeled_batch_size % num_shards:
            even = o.labeled_batch_size // num_shards * num_shards or num_shards
            raise UserError(
                f"trainer.labeled_batch_size={o.labeled_batch_size} cannot be cut into "
                f"{num_shards} equal shards; set trainer.labeled_batch_size={even}"
            )
        if o.labeled_weight is None:
            self.labeled_weight = o.num_labeled / len(y)
        else:
            self.labeled_weight = o.labeled_weight

        def draw_labeled_indices(k: int) -> Tensor:
            order = torch.randperm(o.num_labeled, generator=make_seeded_generator(self.seed, k))
            return labeled[order[: o.labeled_batch_size]]

        labeled_batches = super().train_batches(
            data,
            index_fn=draw_labeled_indices,
            batch_size=o.labeled_batch_size,
            seed=derive_seed(self.seed, 1),
            **kwargs,
        )
        return map(concatenate_batches, super().train_batches(data, **kwargs), labeled_batches)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Make one update; during the warm-up unlabeled items do not train the classifier."""
        loss = partial(
            self.model.loss,
            labeled_weight=self.labeled_weight,
            detach_classifier=self.global_step < self.options.classifier_warmup_steps,
        )
        return self.optimizer_step("model", loss, self.next_batch(batches))


def concatenate_batches(unlabeled: Batch, labeled: Batch) -> Batch:
    """Return both batches as one, with the label −1 for the unlabeled items."""
    assert labeled.y is not None
    y = torch.full((len(unlabeled),), UNLABELED, device=labeled.y.device)
    return Batch(torch.cat([unlabeled.x, labeled.x]), torch.cat([y, labeled.y]))


def class_balanced_indices(y: Tensor, n: int, seed: int) -> Tensor:
    """Return the indices (n,) of a random class-balanced subset of the labels y (N,).

    Raises:
        UserError: n is not a multiple of the number of classes, or a class has too few items.
    """
    classes = y.unique()
    per_class, remainder = divmod(n, len(classes))
    if remainder:
        raise UserError(
            f"trainer.num_labeled={n} is not a multiple of the number of classes, {len(classes)}; "
            f"set trainer.num_labeled={(per_class + (per_class == 0)) * len(classes)}"
        )
    order = torch.randperm(len(y), generator=make_seeded_generator(seed))
    by_class = [order[y[order] == c][:per_class] for c in classes]
    for c, indices in zip(classes.tolist(), by_class, strict=True):
        if len(indices) < per_class:
            raise UserError(
                f"trainer.num_labeled={n} requires {per_class} items of each class, but class {c} "
                f"has {len(indices)}; set trainer.num_labeled={len(indices) * len(classes)} "
                f"trainer.labeled_batch_size={len(indices) * len(classes)}"
            )
    return torch.cat(by_class)


def make_seeded_generator(*seeds: int) -> torch.Generator:
    """Return a CPU random generator seeded by several integers."""
    return torch.Generator().manual_seed(derive_seed(*seeds))
