"""The update rule of flows: gradient descent after a data-dependent initialization."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genlab.models.flow.flow import Flow
from genlab.seeding import derive_seed
from genlab.spec import Batch
from genlab.training.trainer import Losses, Trainer


class FlowTrainer(Trainer):
    """Gradient descent on −log p.

    Before the first update, the batch of all shards and ranks initializes layers such as actnorm.
    """

    has_validation_loss = True

    def step(self, batches: Iterator[Batch]) -> Losses:
        shards = self.next_batch(batches)
        if self.global_step == 0 and isinstance(self.model, Flow):
            self.device.seed(derive_seed(self.seed, self.global_step))  # for dropout
            x = torch.cat([batch.x for batch in shards])
            self.model.initialize_from_data(self.group.all_gather_cat(x))
        return self.optimizer_step("model", self.model.loss, shards)
