"""The loss of held-out items during training, computed rarely and without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from genlab.data.dataset import slice_batch
from genlab.seeding import derive_seed
from genlab.spec import Batch

if TYPE_CHECKING:
    from genlab.training.trainer import Trainer

MAX_ITEMS = 512  # held-out items, the same each time
MAX_VALUES = 2**24  # values of these items in memory
# A batch without a backward pass takes at most the time of a step, so this many steps for each
# batch keep the cost below 2 % of the training.
STEPS_PER_BATCH = 50
SEED_NUMBER = 2**31 - 1  # tells the noise of a validation from that of training steps


class ValidationLoss:
    """The mean of the loss over held-out items, with the present weights and the same noise.

    Neither the random states nor the model change, so that a training with validations equals one
    without, bit for bit.

    Args:
        data: a dataset; without validation items the loss is never due.
    """

    def __init__(self, trainer: Trainer, data: Any) -> None:
        self.trainer, self.data = trainer, data

    @cached_property
    def interval(self) -> int:
        """Steps between two validations; 0 for none."""
        trainer, every = self.trainer, self.trainer.options.validate_every
        if every == 0 or not trainer.can_validate or not hasattr(self.data, "head"):
            return 0
        if not self.data.size("validation"):
            return 0
        if every is not None:
            return every
        num_batches = math.ceil(self.num_items / trainer.batch_size)
        log_every = trainer.options.log_every
        return math.ceil(STEPS_PER_BATCH * num_batches / log_every) * log_every

    @property
    def num_items(self) -> int:
        """The number of held-out items that are used."""
        limit = min(MAX_ITEMS, max(1, MAX_VALUES // self.data.spec.dim))
        return min(limit, self.data.size("validation"))

    def is_due(self) -> bool:
        """Whether the loss is due: every `interval` steps, and at the end of a longer training."""
        trainer, step = self.trainer, self.trainer.global_step
        if not trainer.group.is_main or not self.interval:
            return False
        is_last = step == trainer.options.steps and step > self.interval
        return step % self.interval == 0 or is_last

    @cached_property
    def batches(self) -> list[Batch]:
        """The held-out items, on the device of the model."""
        trainer = self.trainer
        batch = trainer.validation_items(self.data, self.num_items)
        size = trainer.batch_size
        return [
            trainer.device.to_device(slice_batch(batch, start, start + size))
            for start in range(0, len(batch), size)
        ]

    @torch.no_grad()
    def compute(self) -> float:
        """Return the mean loss of the held-out items."""
        trainer = self.trainer
        with self.undisturbed_training():
            batches = self.batches
            trainer.model.eval()
            total = 0.0
            for i, batch in enumerate(batches):
                trainer.device.seed(derive_seed(trainer.seed, SEED_NUMBER, i))
                with trainer.loss_context():
                    loss = trainer.validation_loss(batch)
                total += loss.double().item() * len(batch)
        return total / sum(map(len, batches))

    @contextmanager
    def undisturbed_training(self) -> Iterator[None]:
        """Context that restores the random states and the training mode."""
        is_cuda = self.trainer.device.name == "cuda"
        devices = [torch.cuda.current_device()] if is_cuda else []
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                self.trainer.model.train()
