"""Buffers per shard of a joint batch, and the distribution of a batch over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError

Buffers = dict[str, Tensor]

# Buffers of spectral and batch normalization: they depend on how many shards a module has seen,
# not on which.
COUNTING_BUFFERS = ("_u", "_v", "num_batches_tracked")


class PerShardModule(nn.Module):
    """Base class of a module with buffers that stay separate for each shard of a batch.

    An example is a history of generated images. A subclass lists the names of these buffers.
    """

    per_shard_buffers: ClassVar[tuple[str, ...]] = ()


class ShardBuffers:
    """The buffers that a model changes in a forward pass, one copy per shard of a batch.

    Within a step every shard has its own copy, as if it were the only shard of its process. So the
    result of a step depends on the number of shards, but not on how processes share them. After a
    step the running statistics (buffers named running_…) are the mean over all shards; those of a
    `PerShardModule` stay separate.

    Args:
        num_local: shards of this process.
    """

    def __init__(self, model: nn.Module, *, num_local: int, group: ProcessGroup) -> None:
        self.group = group
        self.live: Buffers = {}  # the model's own buffers
        self.averaged: list[str] = []
        self.separate: list[str] = []
        for path, module in model.named_modules():
            own = module.per_shard_buffers if isinstance(module, PerShardModule) else ()
            for name, buffer in module.named_buffers(path, recurse=False):
                key = name.rpartition(".")[2]
                if key.startswith("running_"):
                    self.averaged.append(name)
                elif key in own:
                    self.separate.append(name)
                elif key not in COUNTING_BUFFERS:
                    continue
                self.live[name] = buffer
        copies = [{name: b.clone() for name, b in self.live.items()} for _ in range(num_local)]
        self.shards = copies if num_local > 1 else [self.live]

    @contextmanager
    def use_shard(self, i: int) -> Iterator[None]:
        """Context in which the model has the buffers of this process's shard i."""
        shard = self.shards[i]
        if shard is not self.live:
            copy_buffers(shard, self.live, self.live)
        yield
        if shard is not self.live:
            copy_buffers(self.live, shard, self.live)

    @torch.no_grad()
    def average_running_statistics(self) -> None:
        """Average the running statistics over all shards after a step."""
        if len(self.shards) > 1:
            for name in self.averaged:
                self.live[name].copy_(torch.stack([shard[name] for shard in self.shards]).mean(0))
        self.group.all_reduce_mean([self.live[name] for name in self.averaged])
        if len(self.shards) > 1:
            common = [name for name in self.live if name not in self.separate]
            for shard in self.shards:
                copy_buffers(self.live, shard, common)

    def state_dict(self) -> Buffers:
        """Return the separate buffers of all shards of all processes: (shards, …)."""
        return {
            name: self.group.all_gather_cat(torch.stack([shard[name] for shard in self.shards]))
            for name in self.separate
        }

    def load_state_dict(self, state: Buffers) -> None:
        """Take over the loaded model's buffers, and the separate buffers of each shard.

        If there are more shards than in `state`, several start from the same buffers.
        """
        first = self.group.rank * len(self.shards)
        for i, shard in enumerate(self.shards):
            if shard is not self.live:
                copy_buffers(self.live, shard, self.live)
            for name, all_shards in state.items():
                shard[name].copy_(all_shards[(first + i) % len(all_shards)])


def copy_buffers(source: Buffers, target: Buffers, names: Iterable[str]) -> None:
    """Copy the named buffers from one dict to another, in place."""
    for name in names:
        target[name].copy_(source[name])


def trainer_options_for_processes(
    trainer: dict[str, Any], *, processes: int, size: int
) -> tuple[dict[str, Any], str]:
    """Return a run's trainer options for another number of processes, and a note for the user.

    The joint batch stays the same, and so does the number of its shards where possible: the run
    then continues exactly.

    Args:
        trainer: the options of the run's trainer.
        processes: number of processes that the run was started with.
        size: number of processes now.

    Raises:
        UserError: the joint batch cannot be divided evenly over so many processes.
    """
    if size == processes:
        return trainer, ""
    num_shards = trainer["grad_accum_steps"] * processes
    per_process = -(-num_shards // size)
    batch_size = trainer["batch_size"]
    if batch_size % (per_process * size):
        possible = [
            n for n in range(1, batch_size + 1) if batch_size % (-(-num_shards // n) * n) == 0
        ]
        raise UserError(
            f"the run's batch of {batch_size} cannot be divided evenly over {size} processes; "
            f"it can continue on {', '.join(map(str, possible))}"
        )
    options = {**trainer, "grad_accum_steps": per_process}
    now = f"{size} process{'es' if size > 1 else ''}"
    if per_process * size == num_shards:
        return options, (
            f"the run's {num_shards} shards per batch are now distributed over {now}, "
            f"{per_process} each"
        )
    return options, (
        f"the run's batches had {num_shards} shards, which cannot be distributed over {now}: it "
        f"continues with {per_process * size} shards of the same batches, and its numbers will "
        "differ slightly from those of an uninterrupted run"
    )
