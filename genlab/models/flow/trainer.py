"""The update rule of flows: descent on −log p, from parameters that the first batch sets."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genlab.seeding import mix
from genlab.spec import Batch
from genlab.training.trainer import Losses, Trainer


class FlowTrainer(Trainer):
    """Before the first update the joint batch, of all shards and processes, sets the layers that start from data."""

    def step(self, batches: Iterator[Batch]) -> Losses:
        shards = self.pull(batches)
        if self.at == 0 and hasattr(self.model, "start"):
            self.device.seed(mix(self.seed, self.at))  # for dropout
            self.model.start(self.ranks.gather(torch.cat([batch.x for batch in shards])))
        return self.descend("model", self.model.loss, shards)
