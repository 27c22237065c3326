"""Trainer of classical models: one pass of a closed-form fit per step, no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genlab.models.classical.class_conditional import ClassConditionalDensity
from genlab.models.classical.full_batch import TrainingItems
from genlab.models.classical.kmeans import KMeans
from genlab.seeding import derive_seed
from genlab.spec import Batch
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Losses, Trainer

# largest training set, in float64, that is loaded as one batch by default
MAX_FULL_BATCH_BYTES = 2**31


class ClassicalTrainer(Trainer):
    """Calls `model.fit_step` with all training items once per step.

    Every rank does the same work. Every pass has the same items with the same noise (one draw of
    dequantization or binarization), so that the likelihood of EM can only increase.
    """

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        # fit all items as one batch; false fits batch by batch; null decides by the memory needed
        full_batch: bool | None = None

    model: ClassConditionalDensity | KMeans
    options: Options

    def configure(self) -> None:
        """Create no optimizer."""
        self.reported: list[str] = []

    def train_batches(self, data: Any, **kwargs: Any) -> Iterator[Batch]:
        """Set the training items to those of `data`; return the batches, which no step uses.

        Raises:
            UserError: there are too few items for the model's components.
        """
        self.require_enough_items(data)
        full_batch = self.options.full_batch
        if full_batch is None:
            num_values = data.size("train") * self.model.spec.dim
            full_batch = num_values * 8 <= MAX_FULL_BATCH_BYTES

        def start_pass() -> Iterator[Batch]:
            batches = data.batches(
                "train",
                self.batch_size,
                seed=self.seed,
                device=self.device.torch,
                shuffle=False,
            )
            return map(self.device.to_device, batches)

        self.items = TrainingItems(start_pass, full_batch=full_batch)
        self.items_per_step = data.size("train")
        return super().train_batches(data, **kwargs)

    def require_enough_items(self, data: Any) -> None:
        """Raise UserError if the items, or those of a class, are too few for the model."""
        counts: dict[int | None, int] = {None: data.size("train")}
        if self.model.conditional:
            counts = dict(enumerate(data.splits["train"].y.bincount().tolist()))
        for group, n in counts.items():
            if n:
                self.model.require_enough_items(n, group)

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return what the last fit has to say, each note once."""
        notes = self.model.fit_notes() if isinstance(self.model, ClassConditionalDensity) else []
        new = [note for note in notes if note not in self.reported]
        self.reported += new
        return new

    def step(self, batches: Iterator[Batch]) -> Losses:
        """Make one pass of the fit over all training items."""
        seed = derive_seed(self.seed, self.global_step)
        self.device.seed(seed)
        return self.model.fit_step(self.items, step=self.global_step, seed=seed)
