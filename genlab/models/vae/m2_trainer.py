"""The update rule of a semi-supervised model: each batch holds labelled and unlabelled items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.m2 import UNKNOWN
from genlab.seeding import mix
from genlab.spec import Batch, Count, Fraction, Positive
from genlab.training.trainer import Trainer


class SemiSupervisedTrainer(Trainer):
    """Descent on `model.loss(batch, share, hold)` of `batch_size` unlabelled items and `labelled` labelled ones.

    Of the training items `labels` keep their label, equally many of each class; every other label is never read.
    """

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        labels: Positive = 100  # labelled items in all, equally many of each class
        labelled: Positive = 100  # labelled items of a batch, beside batch_size unlabelled ones
        label_seed: Count = 0  # chooses which items are labelled
        share: Fraction | None = (
            None  # weight of the labelled items' bound; None: their share of the data, N_l / N
        )
        hold: Count = 0  # first steps, in which the labelled items alone teach the classifier

    def stream(self, data: Any, **how: Any) -> Iterator[Batch]:
        """Return the batches: the unlabelled items, with the label −1, then the labelled.

        Raises:
            UserError: the data has no labels, or cannot give as many as are asked for.
        """
        o = self.options
        _, y = data.arrays("train")
        if y is None:
            raise UserError(
                f"{data.name} has no labels, and trainer.labels={o.labels} of them are wanted"
            )
        known = balanced(y, o.labels, o.label_seed)
        if o.labelled > o.labels:
            raise UserError(
                f"trainer.labelled={o.labelled} items of a batch are more than trainer.labels={o.labels}"
            )
        self.share = o.labels / len(y) if o.share is None else o.share

        def pick(k: int) -> Tensor:
            return known[torch.randperm(o.labels, generator=seeded(self.seed, k))[: o.labelled]]

        labelled = super().stream(
            data, pick=pick, batch_size=o.labelled, seed=mix(self.seed, 1), **how
        )
        return map(joined, super().stream(data, **how), labelled)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        loss = partial(self.model.loss, share=self.share, hold=self.at < self.options.hold)
        return self.descend("model", loss, self.pull(batches))


def joined(unlabelled: Batch, labelled: Batch) -> Batch:
    """Return both as one batch, in which the labels of the first are −1."""
    y = torch.full((len(unlabelled),), UNKNOWN, device=labelled.y.device)
    return Batch(torch.cat([unlabelled.x, labelled.x]), torch.cat([y, labelled.y]))


def balanced(y: Tensor, n: int, seed: int) -> Tensor:
    """Return the indices (n,) of n of the labels y (N,), equally many of each class, chosen by the seed.

    Raises:
        UserError: n is no multiple of the number of classes, or a class is too rare.
    """
    classes = y.unique()
    each, rest = divmod(n, len(classes))
    if rest:
        raise UserError(
            f"trainer.labels={n} cannot be cut into {len(classes)} equal classes; give a multiple"
        )
    order = torch.randperm(len(y), generator=seeded(seed))
    of_class = [order[y[order] == c][:each] for c in classes]
    if short := [int(c) for c, index in zip(classes, of_class, strict=True) if len(index) < each]:
        raise UserError(
            f"trainer.labels={n} wants {each} items of each class; class {short[0]} has fewer"
        )
    return torch.cat(of_class)


def seeded(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*parts))
