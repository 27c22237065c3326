"""The update rule of a Boltzmann machine: contrastive divergence (Hinton 2002), and persistent (Tieleman 2008)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.spec import Batch, Positive
from genlab.training.trainer import Trainer


class CDTrainer(Trainer):
    """Descent on the contrast of the data with the model's own states, which k Gibbs steps reach.

    With `persistent` the steps go on from the model's chains (PCD-k), else they start anew from the data (CD-k).

    Raises:
        UserError: the chains cannot be cut evenly over the shards of a batch.
    """

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        k: Positive = 1  # Gibbs steps an update
        persistent: bool = True  # go on from the last update's chains; false: start from the data

    def configure(self) -> None:
        super().configure()
        self.shards = self.ranks.size * self.options.accumulate
        chains = len(self.model.chains)
        if self.options.persistent and chains % self.shards:
            raise UserError(f"the {chains} persistent chains cannot be cut into {self.shards} equal shards; "
                            f"set model.chains={chains + -chains % self.shards}")  # fmt: skip

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        shards = self.pull(batches)
        self.watch(shards)
        # the negative phase: k Gibbs steps; each shard has its own slice of the chains
        slices = self.model.chains.chunk(self.shards)
        states = []
        for shard, batch in self.draw(shards):
            start = slices[shard] if self.options.persistent else batch.x.flatten(1)
            states.append(self.model.gibbs(start, self.options.k))
        # the positive phase, and the update
        v_model = iter(states)
        logs = self.descend("model", lambda batch: self.model.loss(batch, next(v_model)), shards)
        if self.options.persistent:
            self.model.chains.copy_(self.ranks.gather(torch.cat(states)))
        return logs

    @torch.no_grad()
    def watch(self, shards: list[Batch]) -> None:
        """Keep the mean of the data seen so far, and start the visible biases from it."""
        model = self.model
        mean = torch.stack([batch.x.flatten(1).mean(0) for batch in shards]).mean(0)  # (D,)
        self.ranks.average([mean])
        model.base_rate.lerp_(mean, 1 / (self.at + 1))
        if self.at == 0:
            # Hinton 2010, section 8.1: b_i = log(p_i / (1 − p_i)); one batch knows p_i to about one part in its size
            edge = 1 / self.options.batch_size
            model.b.copy_(model.base_rate.clamp(edge, 1 - edge).logit())
