"""Give each item the noise of its place in the joint batch, however the batch is cut into shards.

A training draws the noise of each shard by itself. With these patches the items of a batch receive
the same noise in one shard and in several, so that what is left of a difference is one of the
objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genlab.data.dataset import Dataset, slice_batch
from genlab.models.vae.m2 import UNLABELED
from genlab.seeding import derive_seed
from genlab.spec import Batch
from genlab.training.trainer import Trainer

WITH_SIZE = {"rand", "randn", "randint"}
LIKE_ITS_ARGUMENTS = {"rand_like", "randn_like", "randint_like"}
LIKE_ITS_ARGUMENTS |= {"bernoulli", "multinomial", "dropout", "normal"}
IN_PLACE = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_"}


class JointNoise(TorchFunctionMode):
    """Draw the noise of all shards with each call, and return the part of shard `index`.

    Args:
        sizes: numbers of rows of a shard: its items, and its persistent chains.
    """

    def __init__(self, index: int, num_shards: int, sizes: list[int]) -> None:
        super().__init__()
        self.index, self.num_shards, self.sizes = index, num_shards, sizes

    def batch_dim(self, shape: tuple[int, ...]) -> int | None:
        """Return the dimension of items, or None."""
        if shape and shape[0] and any(shape[0] % size == 0 for size in self.sizes):
            return 0
        return next((d for d, n in enumerate(shape) if n in self.sizes), None)

    def joint(self, value: Any) -> Any:
        """Return an argument for all shards."""
        d = self.batch_dim(tuple(value.shape)) if isinstance(value, Tensor) else None
        return value if d is None else torch.cat([value] * self.num_shards, d)

    def part(self, joint: Tensor, d: int) -> Tensor:
        """Return this shard's part of a result for all shards."""
        return joint.chunk(self.num_shards, d)[self.index]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "randperm":  # only the order of the candidates for dead codes
            return torch.arange(*args, **kwargs)
        if name in WITH_SIZE:
            sizes = args if name != "randint" else args[-1]
            shape = (
                tuple(sizes[0]) if sizes and isinstance(sizes[0], tuple | list) else tuple(sizes)
            )
            d = self.batch_dim(shape)
            if d is not None:
                shape = (*shape[:d], shape[d] * self.num_shards, *shape[d + 1 :])
                before = () if name != "randint" else args[:-1]
                return self.part(func(*before, shape, **kwargs), d)
        elif name in LIKE_ITS_ARGUMENTS | IN_PLACE:
            d = self.batch_dim(tuple(args[0].shape))
            if d is not None:
                result = func(*map(self.joint, args), **kwargs)
                if name in LIKE_ITS_ARGUMENTS:
                    return self.part(result, d)
                return args[0].copy_(self.part(result, d))
        return func(*args, **kwargs)


def use_joint_noise(patch: pytest.MonkeyPatch) -> None:
    """Let each shard of a training have its part of the joint batch's noise and data."""
    batches = Dataset.batches

    def joint_batches(
        self: Any, *args: Any, shard: Any = 0, num_shards: int = 1, **options: Any
    ) -> Iterator[Batch]:
        shards = (shard,) if isinstance(shard, int) else tuple(shard)
        for batch in batches(self, *args, **options):
            n, rest = divmod(len(batch), num_shards)
            assert not rest, "the patched dataset refuses such a batch"
            for i in shards:
                yield slice_batch(batch, i * n, (i + 1) * n)

    def seeded_shards(self: Trainer, shards: list[Batch]) -> Iterator[tuple[int, Batch]]:
        self.rng_draws += 1
        num_shards = self.group.size * len(shards)
        chains = getattr(getattr(self, "current_module", None), "chains", ())
        for i, batch in enumerate(shards):
            shard = self.group.rank * len(shards) + i
            self.device.seed(derive_seed(self.seed, self.global_step, self.rng_draws, 0))
            sizes = [len(batch), *([len(chains) // num_shards] if len(chains) else [])]
            if batch.y is not None and (batch.y == UNLABELED).any():  # two groups of items
                num_unlabeled = int((batch.y == UNLABELED).sum())
                sizes += [num_unlabeled, len(batch) - num_unlabeled]
            with self.shard_buffers.use_shard(i), JointNoise(shard, num_shards, sizes):
                yield shard, batch

    patch.setattr(Dataset, "batches", joint_batches)
    patch.setattr(Trainer, "seeded_shards", seeded_shards)
