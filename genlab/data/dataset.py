"""The base class of datasets: three splits, a DataSpec, and reproducible batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.console import track
from genlab.data.shuffling import (
    IndexFn,
    ShardIndex,
    iterate_shards_of_index_fn,
    iterate_shuffled_shards,
    seeded_permutation,
)
from genlab.data.summary import MAX_CLASSES_SHOWN, Column, DataSummary, LeftOut
from genlab.errors import UserError, did_you_mean
from genlab.seeding import derive_seed
from genlab.spec import Batch, DataSpec

if TYPE_CHECKING:
    from genlab.data.image_files import StreamedImages

SPLITS = ("train", "validation", "test")
MAX_CLASSES_COUNTED = 10_000  # beyond it a summary does not list the classes
CHUNK_SIZE = 256  # items that share a random seed in an ordered pass, whatever the batch size
DeviceLike = torch.device | str


@dataclass
class Split:
    """The raw items of a split and their labels y (N,) int64.

    `x` is uint8 (N, C, H, W), float32 (N, D), or image files that are decoded when needed.
    """

    x: Any  # Tensor | StreamedImages; a subclass of Dataset knows which
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, index: Tensor) -> Split:
        """Return the items at `index`."""
        x = self.x[index] if isinstance(self.x, Tensor) else self.x.subset(index)
        return Split(x, None if self.y is None else self.y[index])


class Dataset:
    """Three splits of one source; a subclass calls `set_splits` once it has read the source.

    The attributes below are optional facts about the data. Metrics and commands read them without
    checking whether they exist; a subclass overrides those that it knows.
    """

    name: str
    spec: DataSpec
    preprocess: Any = None  # maps raw items to model inputs
    workers: int = 0  # processes that decode the files of a dataset that streams
    paired: bool = True  # with a source: whether x is the translation of `cond`, item by item
    # the files that the data was read from; a resumed run checks that they are unchanged
    source_files: Sequence[Path] = ()

    # whether each split lists all items of the distribution, each as often as it is likely
    lists_distribution: bool = False

    # A known distribution
    centers: Any = None  # (K, D): the means of the modes of a mixture; None: not a mixture
    std: float | None = None  # standard deviation of each mode
    log_weights: Tensor | None = None  # (K,): log-probabilities of the modes; None: equal

    # Known generative factors
    factor_names: tuple[str, ...] = ()
    categorical_factors: tuple[int, ...] = ()  # indices of unordered factors

    stacked: bool = False  # each channel is an image with its own class
    columns: Sequence[Column] = ()  # of a table: their names, and the map to standardized values
    row_numbers: Mapping[str, Tensor] = MappingProxyType({})  # of a table: where each row is

    def set_splits(
        self,
        spec: DataSpec,
        splits: dict[str, Split],
        preprocess: Callable[..., Tensor] | None = None,
        *,
        hints: dict[str, str] | None = None,
    ) -> None:
        """Set the splits.

        Args:
            preprocess: maps raw items to model inputs, as `Preprocessor`; None leaves them as
                they are.
            hints: split -> what to do if it is empty, for the error message.
        """
        self.spec = spec
        self.splits = splits
        self.preprocess = preprocess
        self.hints = hints or {}
        self._on_device: dict[tuple[str, torch.device], tuple[Tensor, Tensor | None]] = {}

    # --- items and batches ------------------------------------------------------------------------

    def size(self, split: str) -> int:
        """Return the number of items in "train", "validation" or "test"."""
        if split not in SPLITS:
            raise UserError(
                f"no such split {split!r}{did_you_mean(split, SPLITS)}; splits: {', '.join(SPLITS)}"
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
        num_shards: int = 1,
        device: DeviceLike = "cpu",
        shuffle: bool = True,
        index_fn: IndexFn | None = None,
    ) -> Iterator[Batch]:
        """Return the batches of a split; each depends only on (seed, its number).

        Shuffled, the stream is endless: it joins one permutation per epoch, so that every global
        batch is full. Not shuffled, it is one pass in order without flips, and the last batch may
        be smaller.

        Args:
            batch_size: items of a global batch, which is cut into `num_shards` equal parts.
            start: number of the first global batch.
            shard: the part to return; several are returned in turn, one batch each.
            index_fn: chooses the items of an endless stream instead of the shuffling. It is called
                with the number of a global batch when that batch is due.

        Raises:
            UserError: no such split, the split is empty, or `batch_size` is not a multiple of
                `num_shards`.
        """
        source, device = self._require_nonempty_split(split), device_with_index(device)
        shard_numbers = (shard,) if isinstance(shard, int) else tuple(shard)
        if batch_size < 1 or num_shards < 1 or batch_size % num_shards:
            raise UserError(
                f"a batch of {batch_size} cannot be cut into {num_shards} equal parts; "
                "set trainer.batch_size"
            )
        if any(not 0 <= s < num_shards for s in shard_numbers):
            raise UserError(f"no shard {shard} among {num_shards}")
        if not shuffle:
            return self._unshuffled_batches(
                split, batch_size, seed, start, shard_numbers, num_shards, device
            )
        order: Iterator[ShardIndex]
        shards: dict[str, Any] = {
            "start": start,
            "shard": shard_numbers,
            "num_shards": num_shards,
            "device": device if isinstance(source.x, Tensor) else torch.device("cpu"),
        }
        if index_fn is not None:
            order = iterate_shards_of_index_fn(index_fn, **shards)
        else:
            order = iterate_shuffled_shards(len(source), batch_size, seed=seed, **shards)
        return self._preprocessed_batches(split, order, seed, device, augment=True)

    def head(
        self, split: str, n: int | None = None, *, seed: int = 0, device: DeviceLike = "cpu"
    ) -> Batch:
        """Return the first n items of the split shuffled by `seed`; None returns all of them.

        The noise of the preprocessing is seeded too.
        """
        return self.items(split, self.head_indices(split, n, seed=seed), seed=seed, device=device)

    def items_like_samples(
        self, split: str, index: Tensor, *, seed: int = 0, augment: bool = True
    ) -> Batch:
        """Return the items at `index` (n,) as samples of a model are compared with them.

        They are prepared as for training, with seeded draws: mirrored, cropped and binarized where
        training does so. Images become bytes uint8 (n, C, H, W), without dequantization noise.

        Args:
            augment: whether items are mirrored and cropped as in training.
        """
        chunks = self._preprocessed_chunks(split, index, seed, torch.device("cpu"), augment=augment)
        if self.spec.kind != "image":
            return concatenate_batches(list(chunks))
        return concatenate_batches(
            [Batch(self.spec.to_bytes(chunk.x), chunk.y) for chunk in chunks]
        )

    def with_gray_levels(self) -> Dataset:
        """Return the dataset with gray levels where it draws binary images from them.

        The mean of a binary pixel is compared with the gray level, which is its probability.
        """
        return self

    def words_for_draws(self) -> list[str]:
        """Return how `items_like_samples` differ from plain items of the training's classes.

        Such as "half of them mirrored".
        """
        return []

    def head_indices(self, split: str, n: int | None = None, *, seed: int = 0) -> Tensor:
        """Return the indices (n,) of the items that `head` returns for the same arguments."""
        return seeded_permutation(len(self._require_nonempty_split(split)), seed, 0)[:n]

    def file_row_numbers(self, split: str, index: Tensor) -> list[int]:
        """Return where items of a split are in a table's file; [] for other data."""
        numbers = self.row_numbers.get(split)
        return [] if numbers is None else [int(number) for number in numbers[index.cpu()]]

    def items(
        self, split: str, index: Tensor, *, seed: int = 0, device: DeviceLike = "cpu"
    ) -> Batch:
        """Return the items of a split at `index` (n,), preprocessed with seeded noise.

        Raises:
            UserError: the split is empty, or an index is out of range.
        """
        size = len(self._require_nonempty_split(split))
        if len(index) and not 0 <= index.min() <= index.max() < size:
            raise UserError(
                f"the {split} split of {self.name} has the items 0 to {size - 1}, "
                f"not {int(index.max())}"
            )
        return concatenate_batches(
            list(self._preprocessed_chunks(split, index, seed, device_with_index(device)))
        )

    def head_as_uint8_images(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        """Return the images that `head` returns as bytes uint8 (n, C, H, W), without any noise.

        Pixel probabilities or means of a model are compared with these.
        """
        raise TypeError(f"{self.name} does not have images")

    def raw_items_and_labels(self, split: str) -> tuple[Tensor, Tensor | None]:
        """Return the raw items, uint8 (N, C, H, W) or float32 (N, D), and the labels (N,) or None.

        Both are on the CPU.
        """
        return self._split_tensors_on_device(split, torch.device("cpu"))

    def map_split(
        self, split: str, function: Callable[[Tensor], Tensor], *, device: Any = None
    ) -> DerivedDataset:
        """Return a dataset of function(x) (N, …) of a split's items, in memory, with their labels.

        If the dataset mirrors half of its training items, the result has each item as it is, and
        each mirrored item in a second half (2N, …).

        Args:
            device: moves batches to where `function` runs, as `genlab.distributed.device.Device`;
                None leaves them on the CPU.
        """

        def mirror_first(x: Tensor) -> Tensor:
            return function(x.flip(-1))

        functions = [function]
        if split == "train" and self.is_flipped_in_training:
            functions.append(mirror_first)
        with torch.no_grad():
            parts = [
                apply((device.to_device(batch) if device else batch).x).float().cpu()
                for apply in functions
                for batch in track(
                    self.batches(split, CHUNK_SIZE, shuffle=False),
                    f"encoding {self.name}",
                    -(-self.size(split) // CHUNK_SIZE),
                    unit="batches",
                )
            ]
        y = self.splits[split].y
        return DerivedDataset(
            self, split, torch.cat(parts), None if y is None else y.repeat(len(functions))
        )

    def make_paired_dataset(
        self, split: str, pairs: Tensor, y: Tensor | None = None
    ) -> DerivedDataset:
        """Return a dataset of pairs (N, 2, …), an item and its source, with labels y (N,)."""
        return DerivedDataset(self, split, pairs, y, paired_items=True)

    @property
    def is_flipped_in_training(self) -> bool:
        """Whether half of the items are mirrored left to right in training."""
        return bool(getattr(self.preprocess, "flip", False))

    def qualify_option_names(self, section: str, locate: Callable[[str], str]) -> None:
        """Make later messages name the options by their whole path, for a dataset inside another.

        Args:
            section: the path, as "dataset.base".
            locate: returns a text with it.
        """
        self.hints = {split: locate(hint) for split, hint in self.hints.items()}
        self.notes[:] = map(locate, self.notes)
        for split in self.splits.values():
            if (unreadable := getattr(split.x, "unreadable", None)) is not None:
                unreadable.section = section

    # --- what was understood ----------------------------------------------------------------------

    @cached_property
    def notes(self) -> list[str]:
        """Decisions made while reading, each one sentence; a subclass appends to them."""
        return []

    @cached_property
    def left_out(self) -> LeftOut:
        """The files, rows and cells that are not used, by reason; a subclass adds to them."""
        return LeftOut()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Further facts for data.json, such as the number of tokens; a subclass adds to them."""
        return {}

    def describe(self) -> DataSummary:
        """Return what was understood of this dataset, as a run prints it and writes data.json."""
        return DataSummary(
            name=self.name,
            kind=self.spec.kind,
            shape=self.spec.shape,
            splits={split: self.size(split) for split in SPLITS},
            shown=self.spec.describe(),
            range=self.spec.range if self.spec.kind in ("image", "video") else None,
            classes=self.count_items_per_class(),
            columns=list(self.columns),
            files=len(self.source_files) or None,
            left_out=self.left_out.to_json(),
            notes=list(self.notes),
            facts=dict(self.facts),
        )

    def count_items_per_class(self) -> dict[str, dict[str, int]]:
        """Return class name -> {"number": …, split: number of items}; {} without classes."""
        if not 0 < self.spec.num_classes <= MAX_CLASSES_COUNTED:
            return {}
        counts = {
            split: torch.bincount(part.y.flatten(), minlength=self.spec.num_classes).tolist()
            for split in SPLITS
            if (part := self.splits.get(split)) is not None and part.y is not None
        }
        return {
            self.spec.class_name(k): {"number": k} | {split: c[k] for split, c in counts.items()}
            for k in range(self.spec.num_classes)
        }

    def renumber_classes(self, class_names: Sequence[str]) -> None:
        """Give the classes the numbers of another dataset, which has all of them by name.

        Args:
            class_names: of the other dataset, in the order of its numbers.

        Raises:
            UserError: the other dataset lacks a class of this one.
        """
        if not self.spec.class_names or self.spec.class_names == tuple(class_names):
            return
        if unknown := [name for name in self.spec.class_names if name not in class_names]:
            raise UserError(
                f"{self.name} has the class {unknown[0]}, but the run was trained on "
                f"{', '.join(class_names[:MAX_CLASSES_SHOWN])}"
                f"{', …' if len(class_names) > MAX_CLASSES_SHOWN else ''}"
            )
        numbers = torch.tensor([list(class_names).index(name) for name in self.spec.class_names])
        for part in self.splits.values():
            part.y = None if part.y is None else numbers[part.y]
        names = tuple(class_names)
        self.spec = replace(self.spec, num_classes=len(names), class_names=names)
        self._on_device.clear()

    # --- known facts ------------------------------------------------------------------------------

    @property
    def entropy(self) -> float | None:
        """The entropy of the distribution in nats, or None where it is unknown."""
        return None

    def log_prob(self, x: Tensor) -> Tensor | None:
        """Return the true log-density (N,) of x (N, D), or None where it is unknown."""
        return None

    def factors(self, split: str, n: int | None = None, *, seed: int = 0) -> Tensor:
        """Return the known factors (n, F) int64 of the items that `head` returns."""
        raise TypeError(f"{self.name} does not have known factors")

    def caption_templates(self, *, heldout: bool = False) -> Sequence[str]:
        """Return the caption templates of training, or those that no training item has."""
        return ()

    def class_named_in(self, caption: str) -> int | None:
        """Return the class that a caption names, or None if it names none, or several."""
        return None

    def class_captions(self) -> Sequence[str]:
        """Return a caption of each class; empty without captions that are made from classes."""
        return ()

    def encode_class_captions(self, template: str) -> Tensor:
        """Return the caption of each class (num_classes, length) as bytes, by one template."""
        raise TypeError(f"{self.name} does not have captions")

    @property
    def classifier_dataset(self) -> Any:
        """The dataset whose classes a classifier of these images learns."""
        return self

    # --- implementation ---------------------------------------------------------------------------

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        """Return the batch of raw items x (B, …) with labels y (B,).

        A dataset with sources overrides it to make `cond` too. All randomness comes from
        `generator`, which is seeded for this shard of this batch.

        Args:
            augment: True in training only.
        """
        if self.preprocess is not None:
            x = self.preprocess(x, generator, augment=augment)
        return Batch(x, y)

    def _require_nonempty_split(self, split: str) -> Split:
        if not self.size(split):
            hint = self.hints.get(split)
            raise UserError(f"{self.name} has no {split} items" + (f": {hint}" if hint else ""))
        return self.splits[split]

    def _split_tensors_on_device(
        self, split: str, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        if (split, device) not in self._on_device:
            source = self._require_nonempty_split(split)
            if not isinstance(source.x, Tensor):
                raise UserError(
                    f"{self.name} streams from its files; set "
                    f"{source.x.unreadable.section}.cache_in_memory=true to hold it in memory"
                )
            y = None if source.y is None else source.y.to(device)
            self._on_device[split, device] = source.x.to(device), y
        return self._on_device[split, device]

    def _preprocessed_batches(
        self,
        split: str,
        shards: Iterator[ShardIndex],
        seed: int,
        device: torch.device,
        *,
        augment: bool,
    ) -> Iterator[Batch]:
        """Yield the preprocessed batch of each shard."""
        generator = torch.Generator(device)
        raw = self._raw_batches(split, shards, device, seed=seed if augment else None)
        for k, shard, x, y in raw:
            generator.manual_seed(derive_seed(seed, k, shard))
            yield self.make_batch(x, y, generator, augment=augment)

    def _raw_batches(
        self,
        split: str,
        shards: Iterator[ShardIndex],
        device: torch.device,
        *,
        seed: int | None = None,
    ) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """Yield (batch number, shard, raw items, labels) of each shard, on the device.

        Args:
            seed: of what is drawn from an item in training, as a patch of an image; None draws
                nothing.
        """
        source = self.splits[split]
        if isinstance(source.x, Tensor):
            x, y = self._split_tensors_on_device(split, device)
            for k, shard, index in shards:
                # index_select is several times as fast as x[index]
                labels = None if y is None else y.index_select(0, index)
                yield k, shard, x.index_select(0, index), labels
            return
        files: StreamedImages = source.x
        for k, shard, index, images in files.stream_shards(
            shards, workers=self.workers, pin_memory=device.type == "cuda", seed=seed
        ):
            labels = None if source.y is None else source.y[index].to(device, non_blocking=True)
            yield k, shard, images.to(device, non_blocking=True), labels

    def _preprocessed_chunks(
        self,
        split: str,
        order: Tensor,
        seed: int,
        device: torch.device,
        *,
        first: int = 0,
        augment: bool = False,
    ) -> Iterator[Batch]:
        """Yield the items of `order` in chunks of CHUNK_SIZE, each with its own seed.

        So the noise does not depend on the batch size.
        """
        order = order.to(device) if isinstance(self.splits[split].x, Tensor) else order
        chunks = (
            ShardIndex(k, -1, index) for k, index in enumerate(order.split(CHUNK_SIZE), first)
        )
        return self._preprocessed_batches(split, chunks, seed, device, augment=augment)

    def _unshuffled_batches(
        self,
        split: str,
        batch_size: int,
        seed: int,
        start: int,
        shard_numbers: tuple[int, ...],
        num_shards: int,
        device: torch.device,
    ) -> Iterator[Batch]:
        """Yield one pass in order: chunks are cut again into global batches and their shards."""
        n = len(self.splits[split])
        done = start * batch_size
        first, skip = divmod(done, CHUNK_SIZE)
        order = torch.arange(first * CHUNK_SIZE, n)
        pool: list[Batch] = []
        for chunk in self._preprocessed_chunks(split, order, seed, device, first=first):
            pool.append(chunk)
            while (available := sum(map(len, pool)) - skip) >= batch_size or (
                available > 0 and done + available >= n
            ):
                joined = concatenate_batches(pool)
                batch = slice_batch(joined, skip, skip + batch_size)
                pool, skip = [slice_batch(joined, skip + batch_size, len(joined))], 0
                done += len(batch)
                parts = torch.arange(len(batch)).tensor_split(num_shards)
                for s in shard_numbers:
                    if len(parts[s]):
                        yield slice_batch(batch, int(parts[s][0]), int(parts[s][-1]) + 1)


class DerivedDataset(Dataset):
    """One split derived from another dataset, in memory.

    Its raw items are (N, …), or pairs with their sources (N, 2, …).
    """

    def __init__(
        self,
        base: Dataset,
        split: str,
        x: Tensor,
        y: Tensor | None,
        *,
        paired_items: bool = False,
    ) -> None:
        self.name, self.paired_items = base.name, paired_items
        self.set_splits(base.spec, {split: Split(x, y)})

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        return Batch(x[:, 0], y, x[:, 1]) if self.paired_items else Batch(x, y)


def device_with_index(device: DeviceLike) -> torch.device:
    """Return the device with its index: "cuda" and "cuda:0" are one dictionary key."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def concatenate_batches(batches: list[Batch]) -> Batch:
    """Return several batches as one."""
    if len(batches) == 1:
        return batches[0]

    def join(parts: list[Any]) -> Any:
        return None if parts[0] is None else torch.cat(parts)

    return Batch(
        join([b.x for b in batches]), join([b.y for b in batches]), join([b.cond for b in batches])
    )


def slice_batch(batch: Batch, start: int, end: int) -> Batch:
    """Return items start … end−1 of a batch."""
    return Batch(
        batch.x[start:end],
        None if batch.y is None else batch.y[start:end],
        None if batch.cond is None else batch.cond[start:end],
    )
