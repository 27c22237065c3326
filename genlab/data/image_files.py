"""Image files: finding them, reading them whole, and streaming them through worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genlab.data.image_decoding import BROKEN, Header, Reader, header
from genlab.data.shuffling import Address
from genlab.errors import UserError, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pbm", ".bmp", ".webp", ".tif", ".tiff")
THREADS = min(8, os.cpu_count() or 1)


@dataclass
class Found:
    """The image files of a folder in the order of their names, and the class of each, if there are class folders."""

    paths: list[Path]
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)

    def __getitem__(self, index: Tensor) -> Found:
        labels = None if self.labels is None else self.labels[index]
        return Found([self.paths[i] for i in index.tolist()], labels, self.classes)


def list_images(folder: Path) -> Found:
    """Return the images in and below a folder; its sub folders are classes where no image lies beside them."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    classes = sorted({parts[0] for parts in parents if parts})
    if len(classes) < 2 or not all(parents):
        return Found(paths)
    number = {name: i for i, name in enumerate(classes)}
    return Found(paths, torch.tensor([number[parts[0]] for parts in parents]), classes)


class Unreadable:
    """The images that could not be read, each with its reason; `strict` makes the first of them an error."""

    def __init__(self, folder: Path, *, strict: bool) -> None:
        self.folder = folder
        self.strict = strict
        self.reasons: dict[str, str] = {}

    def add(self, path: Path, reason: str) -> None:
        name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)
        if self.strict:
            raise UserError(
                f"unreadable image {path}: {reason}; dataset.strict=false skips and counts such images"
            )
        self.reasons[name] = reason

    def line(self, total: int) -> list[str]:
        """Return the one line of a run's report, or none."""
        if not self.reasons:
            return []
        shown = ", ".join(printable(name) for name in list(self.reasons)[:10]) + (
            ", …" if len(self.reasons) > 10 else ""
        )
        n = len(self.reasons)
        return [
            f"{n:,} of {total:,} images {'was' if n == 1 else 'were'} unreadable and skipped: {shown}"
        ]


def headers(paths: list[Path], unreadable: Unreadable) -> list[Header | None]:
    """Return the header of each file, None for one that cannot be read, which `unreadable` notes."""

    def attempt(path: Path) -> Header | str:
        try:
            return header(path)
        except BROKEN as error:
            return reason(error)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(attempt, paths, chunksize=64))
    for path, head in zip(paths, found, strict=True):
        if isinstance(head, str):
            unreadable.add(path, head)
    return [None if isinstance(head, str) else head for head in found]


def reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


Stamp = tuple[tuple[int, int], ...]


def changed(path: Path, how: str) -> UserError:
    """Return what is to be said of a file that a run has begun with."""
    rest = "data must stay as they are until a run ends; with the old file in place, a resume goes on from the last checkpoint"
    return UserError(f"{path} has changed since the run began ({how}); {rest}")


class Files:
    """The image files of a split; indexing decodes the items of an address."""

    def __init__(self, paths: list[Path], read: Reader, unreadable: Unreadable) -> None:
        self.paths = paths
        self.read = read
        self.unreadable = unreadable
        self.stamps: list[Stamp] | None = (
            None  # of files that are read again and again, and must stay as they are
        )

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, index: Tensor) -> Files:
        """Return the files at `index`."""
        part = Files([self.paths[i] for i in index.tolist()], self.read, self.unreadable)
        part.stamps = None if self.stamps is None else [self.stamps[i] for i in index.tolist()]
        return part

    def remember(self) -> None:
        """Note the files' sizes and times: from now on it is an error when one of them changes."""
        with ThreadPoolExecutor(THREADS) as pool:
            self.stamps = list(pool.map(self.stamp, self.paths, chunksize=64))

    def stamp(self, path: Path) -> Stamp:
        """Return the size in bytes and the time in ns of each file that is read for an item."""
        found = (os.stat(file) for file in self.read.files(path))
        return tuple((one.st_size, one.st_mtime_ns) for one in found)

    def attempt(self, i: int) -> Tensor | str:
        """Return image i, or why it cannot be read.

        Raises:
            UserError: it is not the file that it was.
        """
        if self.stamps is not None:
            try:
                same = self.stamp(self.paths[i]) == self.stamps[i]
            except OSError as error:
                raise changed(self.paths[i], str(error.strerror)) from error
            if not same:
                raise changed(self.paths[i], "another size or time")
        try:
            return self.read(self.paths[i])
        except BROKEN as error:
            return reason(error)

    def load(self) -> tuple[Tensor, Tensor]:
        """Return all readable images uint8 (N, C, H, W) and their indices (N,)."""
        kept, at = None, []
        with ThreadPoolExecutor(THREADS) as pool:
            for i, image in enumerate(pool.map(self.attempt, range(len(self)))):
                if isinstance(image, str):
                    self.unreadable.add(self.paths[i], image)
                    continue
                if kept is None:
                    kept = torch.empty(len(self), *image.shape, dtype=torch.uint8)
                kept[len(at)] = image
                at.append(i)
        if kept is None:
            raise UserError(
                f"none of the {len(self):,} images below {self.unreadable.folder} can be read"
            )
        return kept[: len(at)], torch.tensor(at)

    def __getitem__(
        self, address: tuple[int, int, list[int]]
    ) -> tuple[int, int, Tensor, Tensor, list[tuple[int, str]]] | UserError:
        """Decode the items of an address; the next readable one takes the place of one that cannot be read.

        Returns (k, shard, indices used, images uint8 (B, C, H, W), the indices that could not be read and why), or the error
        that ends it: raised in a worker, it would come with the worker's traceback in its message.
        """
        try:
            return self.decoded(*address)
        except UserError as error:
            return error

    def decoded(
        self, k: int, shard: int, wanted: list[int]
    ) -> tuple[int, int, Tensor, Tensor, list[tuple[int, str]]]:
        used, images, broken = [], [], []
        for i in wanted:
            for j in range(i, i + len(self)):
                image = self.attempt(j % len(self))
                if not isinstance(image, str):
                    break
                broken.append((j % len(self), image))
            else:
                raise UserError(
                    f"none of the {len(self):,} images below {self.unreadable.folder} can be read"
                )
            used.append(j % len(self))
            images.append(image)
        return k, shard, torch.tensor(used), torch.stack(images), broken

    def stream(
        self, addresses: Iterator[Address], *, workers: int, pin: bool
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield (k, shard, indices, images) of each address, decoded ahead by `workers` processes (0: in this one)."""
        loader = DataLoader(
            self,
            batch_size=None,  # an address is a whole batch
            sampler=((k, shard, index.tolist()) for k, shard, index in addresses),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
            generator=torch.Generator(),  # else it draws the workers' seed from the global random state
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            k, shard, index, images, broken = item
            for i, why in broken:
                self.unreadable.add(self.paths[i], why)
            yield k, shard, index, images
