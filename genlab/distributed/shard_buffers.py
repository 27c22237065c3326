"""The shards of a joint batch: what a model keeps of each, and how many each process has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genlab.distributed.process_group import Ranks
from genlab.errors import UserError

COUNTED = (
    "_u",
    "_v",
    "num_batches_tracked",
)  # of spectral and batch normalisation: how often they saw a shard, not which


class ShardBuffers:
    """The buffers that a model changes while it sees a shard.

    Within a step every shard has its own, as if no other were seen in its process: so what a step does depends on how many
    shards there are, and not on who sees them. After it the running means (buffers named running_…) are the mean of all
    shards', and those that a module names in its attribute `apart` stay each shard's own.

    Args:
        local: shards of this process.
    """

    def __init__(self, model: nn.Module, *, local: int, ranks: Ranks) -> None:
        self.ranks, self.live = ranks, dict[str, Tensor]()
        self.running: list[str] = []
        self.apart: list[str] = []
        for path, module in model.named_modules():
            for name, buffer in module.named_buffers(path, recurse=False):
                key = name.rpartition(".")[2]
                kind = (
                    self.running
                    if key.startswith("running_")
                    else self.apart
                    if key in getattr(module, "apart", ())
                    else None
                )
                if kind is not None:
                    kind.append(name)
                if kind is not None or key in COUNTED:
                    self.live[name] = buffer
        own = [{name: b.clone() for name, b in self.live.items()} for _ in range(local)]
        self.own = own if local > 1 else [self.live]  # of each shard

    @contextmanager
    def of(self, i: int) -> Iterator[None]:
        """Let the model have this process's shard i's buffers."""
        own = self.own[i]
        if own is not self.live:
            copy(own, self.live, self.live)
        yield
        if own is not self.live:
            copy(self.live, own, self.live)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the shards' buffers together after a step."""
        if len(self.own) > 1:
            for name in self.running:
                self.live[name].copy_(torch.stack([own[name] for own in self.own]).mean(0))
        self.ranks.average([self.live[name] for name in self.running])
        if len(self.own) > 1:
            for own in self.own:
                copy(self.live, own, (name for name in self.live if name not in self.apart))

    def state(self) -> dict[str, Tensor]:
        """Return the buffers that stay apart, those of all shards of all processes: (shards, …)."""
        return {
            name: self.ranks.gather(torch.stack([own[name] for own in self.own]))
            for name in self.apart
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what the model was loaded with, and each shard's own; more shards than there were share them."""
        first = self.ranks.rank * len(self.own)
        for i, own in enumerate(self.own):
            if own is not self.live:
                copy(self.live, own, self.live)
            for name, all_ in state.items():
                own[name].copy_(all_[(first + i) % len(all_)])


def copy(source: dict[str, Tensor], target: dict[str, Tensor], names: Any) -> None:
    for name in names:
        target[name].copy_(source[name])


def share(trainer: dict[str, Any], *, processes: int, size: int) -> tuple[dict[str, Any], str]:
    """Return the options of a run's trainer for `size` processes, after `processes` that began it, and what there is to say.

    The joint batch stays as it is, and where it can be, so does the number of its shards: the run is then the same.

    Raises:
        UserError: the joint batch cannot be cut for so many processes.
    """
    shards = trainer["accumulate"] * processes
    local = -(-shards // size)
    if size == processes:
        return trainer, ""
    if trainer["batch_size"] % (local * size):
        fit = [
            n
            for n in range(1, trainer["batch_size"] + 1)
            if trainer["batch_size"] % (-(-shards // n) * n) == 0
        ]
        raise UserError(f"the run's batch of {trainer['batch_size']} cannot be cut evenly for {size} processes; "
                        f"it goes on with {', '.join(map(str, fit))}")  # fmt: skip
    are = f"{size} process{'es' if size > 1 else ''}"
    said = f"the run's {shards} shards of a batch are seen by {are} now, {local} by each"
    if local * size != shards:
        said = (f"the run's batches were cut into {shards} shards, which {are} cannot share: it goes on with {local * size} "
                "shards of the same batches, and will differ a little from what it would have been")  # fmt: skip
    return {**trainer, "accumulate": local}, said
