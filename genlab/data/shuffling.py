"""Item order: seeded splits, and the endless shuffled stream of batches and shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.seeding import derive_seed

IndexFn = Callable[[int], Tensor]  # number of a global batch -> indices of its items (batch_size,)


def seeded_permutation(n: int, *seed: int) -> Tensor:
    """Return a permutation (n,) of 0 … n−1 that depends only on n and the seed.

    It is drawn on the CPU, so that every device gets the same order.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*seed)))


def seeded_split_indices(n: int, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Return disjoint, sorted sets of indices below n, of the given sizes and the rest.

    A set depends only on the sizes before it: with the test items first, the test set stays the
    same whatever the validation size is.
    """
    order = seeded_permutation(n, seed)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [part.sort().values for part in order.tensor_split(ends)]


class ShardIndex(NamedTuple):
    """The items of one shard of a global batch, as indices (B,) into the split."""

    batch_number: int
    shard: int
    indices: Tensor


def iterate_shuffled_shards(
    n: int,
    batch_size: int,
    *,
    seed: int,
    start: int,
    shard: Sequence[int],
    num_shards: int,
    device: torch.device,
) -> Iterator[ShardIndex]:
    """Yield the shards of the global batches start, start+1, … of the endless shuffled stream.

    The stream joins one permutation of 0 … n−1 per epoch, drawn from (seed, epoch). Global batch k
    is its positions [k·batch_size, (k+1)·batch_size), so it depends only on (seed, k).
    """
    size = batch_size // num_shards
    epochs: dict[int, Tensor] = {}  # this epoch's permutation, and the last one's at a border

    def epoch_order(epoch: int) -> Tensor:
        if epoch not in epochs:
            for old in [e for e in epochs if e < epoch - 1]:
                del epochs[old]
            epochs[epoch] = seeded_permutation(n, seed, epoch).to(device)
        return epochs[epoch]

    k = start
    while True:
        for s in shard:
            epoch, low = divmod(k * batch_size + s * size, n)
            parts, left = [epoch_order(epoch)[low : low + size]], size
            while (left := left - len(parts[-1])) > 0:
                epoch += 1
                parts.append(epoch_order(epoch)[:left])
            yield ShardIndex(k, s, torch.cat(parts) if len(parts) > 1 else parts[0])
        k += 1


def iterate_shards_of_index_fn(
    index_fn: IndexFn, *, start: int, shard: Sequence[int], num_shards: int, device: torch.device
) -> Iterator[ShardIndex]:
    """Yield the shards of the global batches start, start+1, … whose items `index_fn` chooses.

    `index_fn` is called when the batch is due, so it may depend on the training so far.
    """
    k = start
    while True:
        parts = index_fn(k).to(device).chunk(num_shards)
        for s in shard:
            yield ShardIndex(k, s, parts[s])
        k += 1
