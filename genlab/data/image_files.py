"""Image files: list them, decode them at once, or stream them through workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genlab.data.image_decoding import DECODE_ERRORS, ImageDecoder, ImageHeader, read_header
from genlab.data.shuffling import ShardIndex
from genlab.errors import UserError, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pbm", ".bmp", ".webp", ".tif", ".tiff")
NUM_THREADS = min(8, os.cpu_count() or 1)
MAX_NAMES_SHOWN = 10  # unreadable files named in a report


@dataclass
class ImageFiles:
    """The image files of a folder, sorted by name, with labels from class folders."""

    paths: list[Path]
    labels: Tensor | None = None
    class_names: list[str] = field(default_factory=list)

    def __getitem__(self, index: Tensor) -> ImageFiles:
        labels = None if self.labels is None else self.labels[index]
        return ImageFiles([self.paths[i] for i in index.tolist()], labels, self.class_names)


def find_images(folder: Path) -> ImageFiles:
    """Return the images in and below a folder.

    Its subfolders are classes if there are at least two, and no image is beside them.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    class_names = sorted({parts[0] for parts in parents if parts})
    if len(class_names) < 2 or not all(parents):
        return ImageFiles(paths)
    number = {name: i for i, name in enumerate(class_names)}
    return ImageFiles(paths, torch.tensor([number[parts[0]] for parts in parents]), class_names)


class UnreadableImages:
    """The images that could not be read, each with its reason.

    Args:
        strict: makes the first of them an error.
    """

    def __init__(self, folder: Path, *, strict: bool) -> None:
        self.folder = folder
        self.strict = strict
        self.reasons: dict[str, str] = {}

    def add(self, path: Path, reason: str) -> None:
        """Record an unreadable image.

        Raises:
            UserError: unreadable images are errors here.
        """
        name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)
        if self.strict:
            raise UserError(
                f"unreadable image {path}: {reason}; dataset.strict=false skips and counts such "
                "images"
            )
        self.reasons[name] = reason

    def report(self, total: int) -> list[str]:
        """Return the line of a run's report in a list, which is empty if all images were read."""
        if not self.reasons:
            return []
        names = [printable(name) for name in list(self.reasons)[:MAX_NAMES_SHOWN]]
        if len(self.reasons) > MAX_NAMES_SHOWN:
            names.append("…")
        n = len(self.reasons)
        verb = "was" if n == 1 else "were"
        return [f"{n:,} of {total:,} images {verb} unreadable and skipped: {', '.join(names)}"]


def read_headers(paths: list[Path], unreadable: UnreadableImages) -> list[ImageHeader | None]:
    """Return the header of each file, None for those added to `unreadable`."""

    def try_read(path: Path) -> ImageHeader | str:
        try:
            return read_header(path)
        except DECODE_ERRORS as error:
            return error_reason(error)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = list(pool.map(try_read, paths, chunksize=64))
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, str):
            unreadable.add(path, result)
    return [None if isinstance(result, str) else result for result in results]


def error_reason(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


FileStamps = tuple[tuple[int, int], ...]  # (size in bytes, modification time in ns) of each file


def file_changed_error(path: Path, change: str) -> UserError:
    """Return the error for a file that changed while a run was reading it."""
    return UserError(
        f"{path} has changed since the run began ({change}); data must not change until a run "
        "ends; with the old file in place, a resume continues from the last checkpoint"
    )


DecodedBatch = tuple[int, int, Tensor, Tensor, list[tuple[int, str]]]


class StreamedImages:
    """The image files of a split, decoded when needed.

    It is the Dataset of a torch DataLoader, whose keys are the shards of `genlab.data.shuffling`.
    """

    def __init__(
        self, paths: list[Path], decoder: ImageDecoder, unreadable: UnreadableImages
    ) -> None:
        self.paths = paths
        self.decoder = decoder
        self.unreadable = unreadable
        # of files that are read again and again, and must not change
        self.stamps: list[FileStamps] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index: Tensor) -> StreamedImages:
        """Return the files at `index`."""
        numbers = index.tolist()
        subset = StreamedImages([self.paths[i] for i in numbers], self.decoder, self.unreadable)
        subset.stamps = None if self.stamps is None else [self.stamps[i] for i in numbers]
        return subset

    def record_stamps(self) -> None:
        """Record the files' sizes and times: from now on a change of a file is an error."""
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            self.stamps = list(pool.map(self.file_stamps, self.paths, chunksize=64))

    def file_stamps(self, path: Path) -> FileStamps:
        """Return the size and time of each file that is read for an item."""
        stats = (os.stat(file) for file in self.decoder.files(path))
        return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)

    def try_decode(self, i: int) -> Tensor | str:
        """Return image i, or the reason why it cannot be read.

        Raises:
            UserError: the file has changed.
        """
        if self.stamps is not None:
            try:
                is_unchanged = self.file_stamps(self.paths[i]) == self.stamps[i]
            except OSError as error:
                raise file_changed_error(self.paths[i], str(error.strerror)) from error
            if not is_unchanged:
                raise file_changed_error(self.paths[i], "another size or time")
        try:
            return self.decoder(self.paths[i])
        except DECODE_ERRORS as error:
            return error_reason(error)

    def decode_all(self) -> tuple[Tensor, Tensor]:
        """Return all readable images uint8 (N, C, H, W) and their indices (N,)."""
        images: Tensor | None = None
        index: list[int] = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for i, image in enumerate(pool.map(self.try_decode, range(len(self)))):
                if isinstance(image, str):
                    self.unreadable.add(self.paths[i], image)
                    continue
                if images is None:
                    images = torch.empty(len(self), *image.shape, dtype=torch.uint8)
                images[len(index)] = image
                index.append(i)
        if images is None:
            raise self.none_readable_error()
        return images[: len(index)], torch.tensor(index)

    def none_readable_error(self) -> UserError:
        """Return the error for a split without a single readable image."""
        return UserError(
            f"none of the {len(self):,} images below {self.unreadable.folder} can be read"
        )

    def __getitem__(self, shard: tuple[int, int, list[int]]) -> DecodedBatch | UserError:
        """Decode the items of a shard; the next readable image replaces an unreadable one.

        Returns:
            (batch number, shard number, indices used, images uint8 (B, C, H, W), the unreadable
            indices with reasons). An error is returned, not raised: raised in a worker process, its
            message would contain the worker's traceback.
        """
        try:
            return self.decode_shard(*shard)
        except UserError as error:
            return error

    def decode_shard(self, batch: int, shard: int, indices: list[int]) -> DecodedBatch:
        """Decode the items of a shard, see `__getitem__`; raises UserError."""
        used, images, unreadable = [], [], []
        for i in indices:
            for j in range(i, i + len(self)):
                image = self.try_decode(j % len(self))
                if not isinstance(image, str):
                    break
                unreadable.append((j % len(self), image))
            else:
                raise self.none_readable_error()
            used.append(j % len(self))
            images.append(image)
        return batch, shard, torch.tensor(used), torch.stack(images), unreadable

    def stream(
        self, shards: Iterator[ShardIndex], *, workers: int, pin_memory: bool
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield (batch number, shard number, indices, images) of each shard.

        Args:
            workers: processes that decode ahead; 0 decodes in this process.
        """
        sampler: Any = ((k, shard, index.tolist()) for k, shard, index in shards)
        loader: DataLoader = DataLoader(
            self,  # type: ignore[arg-type]  # has the methods of torch's Dataset that are used
            batch_size=None,  # a shard is a complete batch
            sampler=sampler,  # an endless stream
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            # without it the workers' seed would be drawn from the global random state
            generator=torch.Generator(),
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            k, shard, index, images, unreadable = item
            for i, reason in unreadable:
                self.unreadable.add(self.paths[i], reason)
            yield k, shard, index, images
