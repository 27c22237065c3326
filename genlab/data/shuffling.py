"""Which item is where: seeds, seeded splits, and the endless shuffled stream cut into joint batches and shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.seeding import mix

Pick = Callable[[int], Tensor]  # the number of a joint batch -> its items' indices (batch_size,)


def permutation(n: int, *seed: int) -> Tensor:
    """Return a permutation (n,) of 0 … n−1 that depends on n and the seed only, drawn on the CPU for every device."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(*seed)))


def cut(n: int, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Return disjoint sets of indices below n, of the given sizes, each in rising order; the last holds the rest.

    A set depends on the sizes before it only: with the test items first, they stay the same whatever validation takes.
    """
    order = permutation(n, seed)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [part.sort().values for part in order.tensor_split(ends)]


class Address(NamedTuple):
    """The items of one shard: joint batch k, its shard, and the indices (B,) in the split."""

    k: int
    shard: int
    index: Tensor


def shuffled(
    n: int,
    batch_size: int,
    *,
    seed: int,
    start: int,
    shard: Sequence[int],
    shards: int,
    device: torch.device,
) -> Iterator[Address]:
    """Yield the shards of the joint batches start, start+1, … of the endless stream.

    The stream is a permutation of 0 … n−1 an epoch, from (seed, epoch); joint batch k is its positions
    [k·batch_size, (k+1)·batch_size), so it depends on (seed, k) alone.
    """
    size = batch_size // shards
    epochs: dict[
        int, Tensor
    ] = {}  # the permutation at hand, and for a batch across a border the one before

    def order(epoch: int) -> Tensor:
        if epoch not in epochs:
            for old in [e for e in epochs if e < epoch - 1]:
                del epochs[old]
            epochs[epoch] = permutation(n, seed, epoch).to(device)
        return epochs[epoch]

    k = start
    while True:
        for s in shard:
            epoch, low = divmod(k * batch_size + s * size, n)
            parts, left = [order(epoch)[low : low + size]], size
            while (left := left - len(parts[-1])) > 0:
                epoch += 1
                parts.append(order(epoch)[:left])
            yield Address(k, s, torch.cat(parts) if len(parts) > 1 else parts[0])
        k += 1


def picked(
    pick: Pick, *, start: int, shard: Sequence[int], shards: int, device: torch.device
) -> Iterator[Address]:
    """Yield the shards of the joint batches start, start+1, … whose items `pick` chooses, asked when each is due."""
    k = start
    while True:
        parts = pick(k).to(device).chunk(shards)
        for s in shard:
            yield Address(k, s, parts[s])
        k += 1
