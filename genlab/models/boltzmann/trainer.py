"""The update rules of Boltzmann machines: contrastive divergence, and one machine after another by it.

Hinton 2002, https://doi.org/10.1162/089976602760128018; Tieleman 2008, https://doi.org/10.1145/1390156.1390290 (persistent);
Hinton, Osindero & Teh 2006, https://doi.org/10.1162/neco.2006.18.7.1527 (greedy).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.seeding import mix
from genlab.spec import Batch, Count, Positive, PositiveFloat
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
        self.machine, self.began = (
            self.model,
            0,
        )  # what is trained now, and the step at which that began
        self.cut(self.model)

    def cut(self, machine: nn.Module) -> None:
        """Check that each shard gets as many chains of a machine as the others."""
        self.shards = self.ranks.size * self.options.accumulate
        chains = len(machine.chains)
        if self.options.persistent and chains % self.shards:
            raise UserError(f"the {chains} persistent chains cannot be cut into {self.shards} equal shards; "
                            f"set model.chains={chains + -chains % self.shards}")  # fmt: skip

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        return self.contrast("model", self.pull(batches))

    def contrast(self, name: str, shards: list[Batch]) -> dict[str, Tensor]:
        """Step the optimizer `name` of the machine once along its contrast with the data."""
        machine = self.machine
        self.watch(shards)
        # the negative phase: k Gibbs steps; each shard has its own slice of the chains
        slices = machine.chains.tensor_split(self.shards)
        states = []
        for shard, batch in self.draw(shards):
            start = slices[shard] if self.options.persistent else machine.clamped(batch.x)
            states.append(machine.gibbs(start, self.options.k))
        # the positive phase, and the update
        s_model = iter(states)
        logs = self.descend(name, lambda batch: machine.loss(batch, next(s_model)), shards)
        if self.options.persistent:
            machine.chains.copy_(self.ranks.gather(torch.cat(states)))
        return logs

    @torch.no_grad()
    def watch(self, shards: list[Batch]) -> None:
        """Show the machine what it keeps of the data: the mean over all shards of its statistics."""
        seen = torch.stack([self.machine.statistics(batch.x) for batch in shards]).mean(0)
        self.ranks.average([seen])
        self.machine.watch(seen, at=self.at - self.began, batch_size=self.options.batch_size)


class GreedyTrainer(CDTrainer):
    """Contrastive divergence on one machine of a deep model after another; the step count says on which.

    The model's `machines` are what is trained in each stage, by name; `rise(x, stage)` gives what a stage is trained on, and
    `begin(stage)` prepares it.

    Raises:
        UserError: the stages are not as many as the machines, or do not come one after another.
    """

    @dataclass(kw_only=True)
    class Options(CDTrainer.Options):
        starts: tuple[Count, ...] = (
            0,
        )  # the step at which each stage begins; the last ends with the run
        rates: tuple[
            PositiveFloat, ...
        ] = ()  # each stage's learning rate, in parts of optimizer.lr; (): 1 for all

    def configure(self) -> None:
        machines, starts = self.model.machines, self.options.starts
        if len(starts) != len(machines) or starts[0] != 0 or list(starts) != sorted(set(starts)):
            raise UserError(f"trainer.starts={list(starts)}: the stages {', '.join(machines)} need one step each, "
                            "rising from 0")  # fmt: skip
        if self.options.rates and len(self.options.rates) != len(machines):
            raise UserError(
                f"trainer.rates={list(self.options.rates)}: the stages {', '.join(machines)} need one each"
            )
        for (name, machine), rate in zip(
            machines.items(), self.options.rates or [1.0] * len(machines), strict=True
        ):
            self.optimizers[name] = self.optimizer(machine.parameters())
            for group in self.optimizers[name].param_groups:
                group["lr"] = group["lr"] * rate
            self.cut(machine)

    @property
    def stage(self) -> int:
        """The number of the machine that is trained now, from 0."""
        return bisect_right(self.options.starts, self.at) - 1

    def span(self) -> tuple[int, int]:
        start, end, *_ = [*self.options.starts, self.options.steps][self.stage :]
        return start, end

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        stage = self.stage
        name, self.machine = list(self.model.machines.items())[stage]
        self.began = self.options.starts[stage]
        with torch.no_grad():
            shards = [
                Batch(self.model.rise(batch.x, stage)) for _, batch in self.draw(self.pull(batches))
            ]
        return self.contrast(name, shards)

    @torch.no_grad()
    def watch(self, shards: list[Batch]) -> None:
        super().watch(shards)
        if (
            self.at == self.began
        ):  # after the machine has had its biases from the data: a deep model may know better ones
            self.device.seed(mix(self.seed, self.at))
            self.model.begin(self.stage)
