"""Trainers of Boltzmann machines: contrastive divergence and greedy layer-wise training.

Hinton 2002, https://doi.org/10.1162/089976602760128018; persistent chains: Tieleman 2008,
https://doi.org/10.1145/1390156.1390290; greedy: Hinton, Osindero & Teh 2006,
https://doi.org/10.1162/neco.2006.18.7.1527.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.seeding import derive_seed
from genlab.spec import Batch, Count, Positive, PositiveFloat
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer


class CDModel(Protocol):
    """A module that contrastive divergence can train: RBM, GRBM, BM and DBM."""

    chains: Tensor  # (M, D'), the states of the persistent chains

    def loss(self, batch: Batch, model_states: Tensor, /) -> dict[str, Tensor]:
        """Return the contrast of the data with states of the model."""

    def chain_state_from_data(self, x: Tensor) -> Tensor:
        """Return the state of a chain that starts at the data."""

    def gibbs(self, state: Tensor, num_steps: int, /) -> Tensor:
        """Return the state after num_steps Gibbs steps."""

    def batch_data_stats(self, x: Tensor) -> Tensor:
        """Return the statistics that `update_data_stats` takes."""

    def update_data_stats(self, stats: Tensor, *, step: int, batch_size: int) -> None:
        """Update the running statistics of the data."""


class LayerwiseModel(Protocol):
    """A model that is trained in stages: DBN and DBM."""

    @property
    def stage_modules(self) -> dict[str, nn.Module]:
        """The `CDModel` that each stage trains, by name."""

    def propagate_up(self, x: Tensor, stage: int) -> Tensor:
        """Return the training data of a stage."""

    def init_stage(self, stage: int) -> None:
        """Prepare a stage."""


class CDTrainer(Trainer):
    """Gradient descent on the contrast of the data with states of Gibbs chains.

    With `persistent` the chains continue from the last update (PCD-k); otherwise they start from
    the data (CD-k).

    Raises:
        UserError: the chains cannot be split evenly over the shards of a batch.
    """

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        cd_steps: Positive = 1  # Gibbs steps per update
        persistent: bool = True  # continue the chains; false: start each update from the data

    options: Options

    def configure(self) -> None:
        """Create the optimizer of the model."""
        super().configure()
        self.current_module = cast(CDModel, self.model)
        self.stage_start = 0  # step at which the training of the current module began
        self.require_divisible_chains(self.current_module)

    def require_divisible_chains(self, module: CDModel) -> None:
        """Raise UserError unless the persistent chains can be split evenly over the shards."""
        self.num_shards = self.group.size * self.options.grad_accum_steps
        num_chains = len(module.chains)
        if self.options.persistent and num_chains % self.num_shards:
            raise UserError(
                f"model.num_chains={num_chains} cannot be split into {self.num_shards} equal "
                f"shards; set model.num_chains={num_chains + -num_chains % self.num_shards}"
            )

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Make one update of the model."""
        return self.contrastive_divergence_step("model", self.next_batch(batches))

    def contrastive_divergence_step(self, name: str, shards: list[Batch]) -> dict[str, Tensor]:
        """Make one update of the current module by its optimizer `name`."""
        module = self.current_module
        self.update_data_stats(shards)
        # the negative phase: Gibbs steps; each shard has its own slice of the chains
        slices = module.chains.tensor_split(self.num_shards)
        states = []
        for shard, batch in self.seeded_shards(shards):
            start = (
                slices[shard] if self.options.persistent else module.chain_state_from_data(batch.x)
            )
            states.append(module.gibbs(start, self.options.cd_steps))
        # the positive phase, and the update
        model_states = iter(states)
        logs = self.optimizer_step(
            name, lambda batch: module.loss(batch, next(model_states)), shards
        )
        if self.options.persistent:
            module.chains.copy_(self.group.all_gather_cat(torch.cat(states)))
        return logs

    @torch.no_grad()
    def update_data_stats(self, shards: list[Batch]) -> None:
        """Update the module's running statistics with the mean over the shards of all ranks."""
        module = self.current_module
        stats = torch.stack([module.batch_data_stats(batch.x) for batch in shards]).mean(0)
        self.group.all_reduce_mean([stats])
        step = self.global_step - self.stage_start
        module.update_data_stats(stats, step=step, batch_size=self.batch_size)


class GreedyTrainer(CDTrainer):
    """Contrastive divergence on one module of a deep model after another.

    Options set the steps at which the stages begin.

    Raises:
        UserError: there is not one increasing start step, or one learning rate, per stage.
    """

    @dataclass(kw_only=True)
    class Options(CDTrainer.Options):
        # the step at which each stage begins; the last stage ends with the run
        stage_starts: tuple[Count, ...] = (0,)
        # learning rate of each stage relative to optimizer.lr; () uses 1 for all stages
        stage_lr_mults: tuple[PositiveFloat, ...] = ()

    options: Options

    def configure(self) -> None:
        """Create one optimizer per stage."""
        self.layerwise_model = cast(LayerwiseModel, self.model)
        modules = self.layerwise_model.stage_modules
        starts, lr_mults = self.options.stage_starts, self.options.stage_lr_mults
        names = ", ".join(modules)
        if len(starts) != len(modules) or starts[0] != 0 or list(starts) != sorted(set(starts)):
            raise UserError(
                f"trainer.stage_starts={list(starts)} must have one step for each of the stages "
                f"{names}, increasing from 0"
            )
        if lr_mults and len(lr_mults) != len(modules):
            raise UserError(
                f"trainer.stage_lr_mults={list(lr_mults)} must have one value for each of the "
                f"stages {names}"
            )
        lr_mults = lr_mults or (1.0,) * len(modules)
        for (name, module), lr_mult in zip(modules.items(), lr_mults, strict=True):
            self.optimizers[name] = self.make_optimizer(module.parameters())
            for group in self.optimizers[name].param_groups:
                group["lr"] = group["lr"] * lr_mult
            self.require_divisible_chains(cast(CDModel, module))

    @property
    def stage(self) -> int:
        """Index of the stage that is being trained."""
        return bisect_right(self.options.stage_starts, self.global_step) - 1

    def schedule_range(self) -> tuple[int, int]:
        """Return the first step of the current stage and the step after its last one."""
        start, end, *_ = [*self.options.stage_starts, self.options.steps][self.stage :]
        return start, end

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Make one update of the current stage's module."""
        stage = self.stage
        name, module = list(self.layerwise_model.stage_modules.items())[stage]
        self.current_module = cast(CDModel, module)
        self.stage_start = self.options.stage_starts[stage]
        with torch.no_grad():
            shards = [
                Batch(self.layerwise_model.propagate_up(batch.x, stage))
                for _, batch in self.seeded_shards(self.next_batch(batches))
            ]
        return self.contrastive_divergence_step(name, shards)

    @torch.no_grad()
    def update_data_stats(self, shards: list[Batch]) -> None:
        """Update the running statistics; the first step of a stage also initializes the stage."""
        super().update_data_stats(shards)
        # after the biases were set from the data, since a deep model may have better ones
        if self.global_step == self.stage_start:
            self.device.seed(derive_seed(self.seed, self.global_step))
            self.layerwise_model.init_stage(self.stage)
