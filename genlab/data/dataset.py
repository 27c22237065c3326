"""What every dataset is: three splits, a Spec, and batches that depend on (seed, batch number) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.data.shuffling import Address, Pick, permutation, picked, shuffled
from genlab.errors import UserError, did_you_mean
from genlab.seeding import mix
from genlab.spec import Batch, Spec

if TYPE_CHECKING:
    from genlab.data.image_files import Files

SPLITS = ("train", "validation", "test")
CHUNK = 256  # items that share a random seed in a pass in order, whatever the batch size
Device = torch.device | str


@dataclass
class Split:
    """The raw items of a split: uint8 (N, C, H, W), float32 (N, D) or files of images; and labels (N,) int64."""

    x: Tensor | Files
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def part(self, index: Tensor) -> Split:
        """Return the items at `index`."""
        x = self.x[index] if isinstance(self.x, Tensor) else self.x.part(index)
        return Split(x, None if self.y is None else self.y[index])


class Dataset:
    """Three splits of one source; a subclass calls `hold` with them when it has read its source."""

    name: str
    spec: Spec
    workers: int = 0  # processes that decode the files of a set that streams
    paired: bool = True  # of a set with sources: whether x is what became of `cond`
    sources: Sequence[
        Path
    ] = ()  # the files that it was read from, by which a run that goes on knows its data again

    def hold(
        self,
        spec: Spec,
        splits: dict[str, Split],
        prepare: Callable[..., Tensor] | None = None,
        *,
        missing: dict[str, str] | None = None,
    ) -> None:
        """Take the splits; `prepare` maps raw items to the model's; `missing` says what to do about an empty split."""
        self.spec = spec
        self.splits = splits
        self.prepare = prepare
        self.missing = missing or {}
        self.lines: list[str] = []
        self._placed: dict[tuple[str, torch.device], tuple[Tensor, Tensor | None]] = {}

    # --- what a run asks for ----------------------------------------------------------------------------------------

    def size(self, split: str) -> int:
        """Return the number of items in "train", "validation" or "test"."""
        if split not in SPLITS:
            raise UserError(
                f"there is no split {split!r}{did_you_mean(split, SPLITS)}; splits: {', '.join(SPLITS)}"
            )
        return len(self.splits[split]) if split in self.splits else 0

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        shard: int | Sequence[int] = 0,
        shards: int = 1,
        device: Device = "cpu",
        shuffle: bool = True,
        pick: Pick | None = None,
    ) -> Iterator[Batch]:
        """Return the batches of a split from joint batch `start` on, each a function of (seed, its number) alone.

        Shuffled, they never end: one permutation an epoch, joined end to end, so that every joint batch is full. Not
        shuffled, they are one pass in order, without flips, and the last may be smaller. A joint batch is cut into
        `shards` equal parts in order; this returns part `shard`, or, of several, one batch each in turn. `pick`
        chooses the items of an endless stream instead: it is asked for joint batch k's indices when that is due.

        Raises:
            UserError: no such split, the split is empty, or `batch_size` is not a multiple of `shards`.
        """
        held, device = self._held(split), place(device)
        wanted = (shard,) if isinstance(shard, int) else tuple(shard)
        if batch_size < 1 or shards < 1 or batch_size % shards:
            raise UserError(
                f"a batch of {batch_size} cannot be cut into {shards} equal parts; set trainer.batch_size"
            )
        if any(not 0 <= s < shards for s in wanted):
            raise UserError(f"there is no shard {shard} of {shards}")
        if not shuffle:
            return self._pass(split, batch_size, seed, start, wanted, shards, device)
        at = device if isinstance(held.x, Tensor) else torch.device("cpu")
        if pick is not None:
            order = picked(pick, start=start, shard=wanted, shards=shards, device=at)
        else:
            order = shuffled(
                len(held),
                batch_size,
                seed=seed,
                start=start,
                shard=wanted,
                shards=shards,
                device=at,
            )
        return self._batches(split, order, seed, device, augment=True)

    def take(
        self, split: str, n: int | None = None, *, seed: int = 0, device: Device = "cpu"
    ) -> Batch:
        """Return the first n items (all for None) of the split shuffled by `seed`, prepared with seeded noise."""
        return self.items(
            split, permutation(len(self._held(split)), seed, 0)[:n], seed=seed, device=device
        )

    def items(self, split: str, index: Tensor, *, seed: int = 0, device: Device = "cpu") -> Batch:
        """Return the items of a split with the numbers in `index` (n,), prepared with seeded noise.

        Raises:
            UserError: the split has no items, or not as many.
        """
        size = len(self._held(split))
        if len(index) and not 0 <= index.min() <= index.max() < size:
            raise UserError(
                f"the {split} split of {self.name} has the items 0 to {size - 1}, not {int(index.max())}"
            )
        return joined(list(self._chunks(split, index, seed, place(device))))

    def arrays(self, split: str) -> tuple[Tensor, Tensor | None]:
        """Return the raw items, uint8 (N, C, H, W) or float32 (N, D), and the labels (N,) or None, on the CPU."""
        return self._on(split, torch.device("cpu"))

    def mapped(
        self, split: str, function: Callable[[Tensor], Tensor], *, device: Any = None
    ) -> Made:
        """Return a set of function(x) (N, …) of a split's prepared items, in memory, with their labels.

        Of a set that mirrors half of its training items, each is there as it is, and mirrored in a second half (2N, …).

        Args:
            device: what makes batches ready for the function, as `training.device.Device`; None: they are left on the CPU.
        """
        ready = device.ready if device else lambda batch: batch
        y, ways = self.splits[split].y, [function]
        if split == "train" and self.mirrors:
            ways.append(lambda x: function(x.flip(-1)))
        with torch.no_grad():
            parts = [
                way(ready(batch).x).float().cpu()
                for way in ways
                for batch in self.batches(split, CHUNK, shuffle=False)
            ]
        return Made(self, split, torch.cat(parts), None if y is None else y.repeat(len(ways)))

    def coupled(self, split: str, pairs: Tensor, y: Tensor | None = None) -> Made:
        """Return a set whose split has pairs (N, 2, …) of an item and its source, and labels y (N,), in memory."""
        return Made(self, split, pairs, y, coupled=True)

    @property
    def mirrors(self) -> bool:
        """Whether half of the items are mirrored left to right in training."""
        return getattr(self.prepare, "flip", False)

    def report(self) -> list[str]:
        """Return the lines that a run should say about this set."""
        return list(self.lines)

    # --- how it is done ---------------------------------------------------------------------------------------------

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        """Return the batch of raw items x (B, …) with labels y (B,): a set with sources overrides it, to make `cond` too.

        All that is random comes from `generator`, seeded for this shard of this batch; `augment`: in training only.
        """
        return Batch(x if self.prepare is None else self.prepare(x, generator, augment=augment), y)

    def _held(self, split: str) -> Split:
        if not self.size(split):
            why = self.missing.get(split)
            raise UserError(f"{self.name} has no {split} items" + (f": {why}" if why else ""))
        return self.splits[split]

    def _on(self, split: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
        if (split, device) not in self._placed:
            held = self._held(split)
            if not isinstance(held.x, Tensor):
                raise UserError(
                    f"{self.name} streams from its files; set dataset.resident=true to hold it in memory"
                )
            self._placed[split, device] = (
                held.x.to(device),
                None if held.y is None else held.y.to(device),
            )
        return self._placed[split, device]

    def _batches(
        self,
        split: str,
        addresses: Iterator[Address],
        seed: int,
        device: torch.device,
        *,
        augment: bool,
    ) -> Iterator[Batch]:
        """Yield the prepared batch of each address."""
        generator = torch.Generator(device)
        for k, shard, x, y in self._raw(split, addresses, device):
            generator.manual_seed(mix(seed, k, shard))
            yield self.made(x, y, generator, augment=augment)

    def _raw(
        self, split: str, addresses: Iterator[Address], device: torch.device
    ) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """Yield (k, shard, raw items, labels) of each address, on the device."""
        held = self.splits[split]
        if isinstance(held.x, Tensor):
            x, y = self._on(split, device)
            for k, shard, index in addresses:  # index_select is several times as fast as x[index]
                yield (
                    k,
                    shard,
                    x.index_select(0, index),
                    None if y is None else y.index_select(0, index),
                )
            return
        for k, shard, index, x in held.x.stream(
            addresses, workers=self.workers, pin=device.type == "cuda"
        ):
            y = None if held.y is None else held.y[index].to(device, non_blocking=True)
            yield k, shard, x.to(device, non_blocking=True), y

    def _chunks(
        self, split: str, order: Tensor, seed: int, device: torch.device, *, first: int = 0
    ) -> Iterator[Batch]:
        """Yield the items of `order` in chunks with a seed each, so that the noise does not follow the batch size."""
        order = order.to(device) if isinstance(self.splits[split].x, Tensor) else order
        addresses = (Address(k, -1, index) for k, index in enumerate(order.split(CHUNK), first))
        return self._batches(split, addresses, seed, device, augment=False)

    def _pass(
        self,
        split: str,
        batch_size: int,
        seed: int,
        start: int,
        wanted: tuple[int, ...],
        shards: int,
        device: torch.device,
    ) -> Iterator[Batch]:
        """Yield one pass in order, cut anew from the chunks into joint batches and their shards."""
        n = len(self.splits[split])
        done = start * batch_size
        first, skip = divmod(done, CHUNK)
        pool: list[Batch] = []
        for chunk in self._chunks(split, torch.arange(first * CHUNK, n), seed, device, first=first):
            pool.append(chunk)
            while (have := sum(map(len, pool)) - skip) >= batch_size or (
                have > 0 and done + have >= n
            ):
                whole = joined(pool)
                batch = piece(whole, skip, skip + batch_size)
                pool, skip = [piece(whole, skip + batch_size, len(whole))], 0
                done += len(batch)
                parts = torch.arange(len(batch)).tensor_split(shards)
                for s in wanted:
                    if len(parts[s]):
                        yield piece(batch, int(parts[s][0]), int(parts[s][-1]) + 1)


class Made(Dataset):
    """One split, made of another set: items (N, …), or coupled with their sources (N, 2, …)."""

    def __init__(
        self, of: Dataset, split: str, x: Tensor, y: Tensor | None, *, coupled: bool = False
    ) -> None:
        self.name, self.sourced = of.name, coupled
        self.hold(of.spec, {split: Split(x, y)})

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        return Batch(x[:, 0], y, x[:, 1]) if self.sourced else Batch(x, y)


def place(device: Device) -> torch.device:
    """Return the device with its number, so that "cuda" and "cuda:0" are the same key."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def joined(batches: list[Batch]) -> Batch:
    """Return several batches as one."""
    if len(batches) == 1:
        return batches[0]
    whole = ([getattr(b, part) for b in batches] for part in ("x", "y", "cond"))
    return Batch(*(None if parts[0] is None else torch.cat(parts) for parts in whole))


def piece(batch: Batch, start: int, end: int) -> Batch:
    """Return items start … end−1 of a batch."""
    whole = (batch.x, batch.y, batch.cond)
    return Batch(*(None if part is None else part[start:end] for part in whole))
