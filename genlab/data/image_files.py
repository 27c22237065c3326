"""Image files: list them, decode them at once, or stream them through workers."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from genlab.console import Progress, track
from genlab.data.image_decoding import (
    DECODE_ERRORS,
    ImageDecoder,
    ImageHeader,
    Range,
    min_and_max_pixel,
    read_image_header,
)
from genlab.data.shuffling import ShardIndex
from genlab.data.summary import LeftOut
from genlab.data.worker_processes import stream_items
from genlab.errors import UserError
from genlab.untrusted.files import real_path

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".pgm",
    ".ppm",
    ".pbm",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
)
SUFFIXES_V1 = tuple(suffix for suffix in SUFFIXES if suffix != ".gif")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
WORD_AND_NUMBER = re.compile(r"([^0-9]*)([0-9]*)")
NUM_THREADS = min(8, os.cpu_count() or 1)
# Folders and files of operating systems and network drives, besides those that begin with a dot.
SYSTEM_NAMES = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__pycache__"}
    | {"system volume information", "thumbs.db", "desktop.ini"}
)


@dataclass
class ImageFiles:
    """The image files of a folder, sorted by name, with labels from class folders."""

    paths: list[Path]
    labels: Tensor | None = None
    class_names: list[str] = field(default_factory=list)

    def __getitem__(self, index: Tensor) -> ImageFiles:
        labels = None if self.labels is None else self.labels[index]
        return ImageFiles([self.paths[i] for i in index.tolist()], labels, self.class_names)


# --- list -----------------------------------------------------------------------------------------


def find_images_with_labels(folder: Path, left_out: LeftOut | None = None) -> ImageFiles:
    """Return the images in and below a folder.

    Its subfolders are classes if there are at least two, and no image is beside them.
    """
    paths = list_images(folder, left_out)
    names = {path: path.relative_to(folder).parts[:-1] for path in paths}
    class_names = sort_class_names({parts[0] for parts in names.values() if parts})
    if len(class_names) < 2 or not all(names.values()):
        return ImageFiles(paths)
    return label_images_by_class_name(
        paths, [normalize_to_nfc(names[path][0]) for path in paths], class_names
    )


def label_images_by_class_name(
    paths: list[Path], names: list[str], class_names: list[str]
) -> ImageFiles:
    """Return image files with the class that each is named after."""
    number = {name: i for i, name in enumerate(class_names)}
    return ImageFiles(paths, torch.tensor([number[name] for name in names]), class_names)


def list_images(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the image files in and below a folder, sorted by path; links are followed.

    Args:
        left_out: the other files are counted in it, by reason.
    """
    left_out = LeftOut() if left_out is None else left_out
    real_paths: dict[Path, Path] = {}  # image -> the file that it is
    links: list[Path] = []  # to folders: read last, so that a folder is read under its own name
    seen: set[Path] = set()

    def scan(place: Path) -> None:
        real_place = real_path(place)
        if real_place in seen:
            left_out.add("link to a folder that is read already", f"{place.relative_to(folder)}/")
            return
        seen.add(real_place)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except PermissionError:
            left_out.add("folder without permission to read", f"{place.relative_to(folder)}/")
            return
        progress.update(len(entries))
        for entry in entries:
            path = place / entry.name
            name = str(path.relative_to(folder))
            if entry.is_dir():
                if is_hidden_or_system_name(entry.name):
                    count = sum(len(files) for _, _, files in os.walk(path))
                    left_out.add("in a hidden or system folder", f"{name}/", count)
                elif entry.is_symlink():
                    links.append(path)
                else:
                    scan(path)
            elif reason := reason_to_skip_file(entry):
                left_out.add(reason, name)
            else:
                is_link = entry.is_symlink()
                real_paths[path] = real_path(path) if is_link else real_place / entry.name

    with Progress("listing files", unit="files") as progress:
        scan(folder)
        while links:
            scan(links.pop(0))
    return leave_out_duplicate_links(real_paths, folder, left_out)


def is_hidden_or_system_name(name: str) -> bool:
    """Whether a file or folder of this name belongs to the system, not to the data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def reason_to_skip_file(entry: os.DirEntry[str]) -> str:
    """Return why a file is not an image to read, or ""."""
    if is_hidden_or_system_name(entry.name):
        return "hidden"
    suffix = Path(entry.name).suffix.lower()
    if suffix not in SUFFIXES:
        return f"unsupported suffix {suffix}" if suffix else "without a suffix"
    if not entry.is_file():
        return "broken link" if entry.is_symlink() else "not a file"
    return ""


def leave_out_duplicate_links(
    real_paths: dict[Path, Path], folder: Path, left_out: LeftOut
) -> list[Path]:
    """Return the images, sorted by path, without the links to others of them.

    Args:
        real_paths: image -> the file that it is.
    """
    root = real_path(folder)
    known = {real for path, real in real_paths.items() if root / path.relative_to(folder) == real}
    kept = []
    for path, real in sorted(real_paths.items()):
        if root / path.relative_to(folder) != real:
            if real in known:
                left_out.add("link to another image of the folder", str(path.relative_to(folder)))
                continue
            known.add(real)
        kept.append(path)
    return kept


def sort_class_names(names: Iterable[str]) -> list[str]:
    """Return the names of class folders in the order of their numbers.

    Names that are numbers are sorted as numbers, and others with their numbers as numbers:
    2 before 10, and class_2 before class_10.
    """
    unique = {normalize_to_nfc(name) for name in names}
    if all(NUMBER.fullmatch(name) for name in unique):
        return sorted(unique, key=lambda name: (float(name), name))

    def natural(name: str) -> tuple[list[tuple[str, int]], str]:
        return [(text, int(digits or 0)) for text, digits in WORD_AND_NUMBER.findall(name)], name

    return sorted(unique, key=natural)


def normalize_to_nfc(name: str) -> str:
    """Return a folder's name with composed letters, as they are typed; macOS decomposes them."""
    return unicodedata.normalize("NFC", name)


def find_images_with_labels_v1(folder: Path) -> ImageFiles:
    """Return the images in and below a folder as genlab up to 0.7 did, for its runs."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES_V1 and not path.name.startswith(".") and path.is_file()
    )
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    class_names = sorted({parts[0] for parts in parents if parts})
    if len(class_names) < 2 or not all(parents):
        return ImageFiles(paths)
    return label_images_by_class_name(paths, [parts[0] for parts in parents], class_names)


# --- read -----------------------------------------------------------------------------------------


class UnreadableImages:
    """Records the images that cannot be read in a dataset's `left_out`.

    Args:
        folder: names are relative to it.
        strict: makes the first of them an error.
    """

    def __init__(self, folder: Path, left_out: LeftOut, *, strict: bool) -> None:
        self.folder = folder
        self.left_out = left_out
        self.strict = strict
        self.section = "dataset"  # path of the dataset's options
        self.known: set[Path] = set()  # a streamed image is met once per epoch

    def add(self, path: Path, reason: str) -> None:
        """Record an unreadable image.

        Raises:
            UserError: unreadable images are errors here.
        """
        name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)
        if self.strict:
            raise UserError(
                f"unreadable image {path}: {reason}; {self.section}.strict=false skips and counts "
                "such images"
            )
        if path not in self.known:
            self.known.add(path)
            self.left_out.add("unreadable", f"{name} ({reason})")


def read_image_headers(paths: list[Path], unreadable: UnreadableImages) -> list[ImageHeader | None]:
    """Return the header of each file, None for those added to `unreadable`."""

    def try_read(path: Path) -> ImageHeader | str:
        try:
            return read_image_header(path) if path.stat().st_size else "empty file"
        except DECODE_ERRORS as error:
            return one_line_error_message(error)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reads = pool.map(try_read, paths, chunksize=64)
        results = list(track(reads, "reading headers", len(paths), unit="images"))
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, str):
            unreadable.add(path, result)
    return [None if isinstance(result, str) else result for result in results]


def find_min_and_max_pixel(paths: list[Path]) -> Range | None:
    """Return the least and the largest pixel value of image files, None if none is readable."""

    def try_read(path: Path) -> Range | None:
        try:
            return min_and_max_pixel(path)
        except DECODE_ERRORS:  # it is met again, and counted, when it is decoded
            return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reads = pool.map(try_read, paths, chunksize=64)
        found = track(reads, "reading pixel ranges", len(paths), unit="images")
        extents = [extent for extent in found if extent]
    if not extents:
        return None
    return min(low for low, _ in extents), max(high for _, high in extents)


def one_line_error_message(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


FileStamps = tuple[tuple[int, int], ...]  # (size in bytes, modification time in ns) of each file


def make_file_changed_error(path: Path, change: str) -> UserError:
    """Return the error for a file that changed while a run was reading it."""
    return UserError(
        f"{path} has changed since the run began ({change}); data must not change until a run "
        "ends; with the old file in place, a resume continues from the last checkpoint"
    )


DecodedBatch = tuple[int, int, Tensor, Tensor, list[tuple[int, str]]]


class StreamedImages:
    """The image files of a split, decoded when needed.

    Data workers compute its items, whose keys are the shards of `genlab.data.shuffling`.
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

    def record_file_stamps(self) -> None:
        """Record the files' sizes and times: from now on a change of a file is an error."""
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            stamps = pool.map(self.sizes_and_times_of_files, self.paths, chunksize=64)
            self.stamps = list(track(stamps, "reading file times", len(self), unit="files"))

    def sizes_and_times_of_files(self, path: Path) -> FileStamps:
        """Return the size and time of each file that is read for an item."""
        stats = (os.stat(file) for file in self.decoder.files_of_item(path))
        return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)

    def decode_or_failure_reason(self, i: int) -> Tensor | str:
        """Return image i, or the reason why it cannot be read.

        Raises:
            UserError: the file has changed.
        """
        if self.stamps is not None:
            try:
                is_unchanged = self.sizes_and_times_of_files(self.paths[i]) == self.stamps[i]
            except OSError as error:
                raise make_file_changed_error(self.paths[i], str(error.strerror)) from error
            if not is_unchanged:
                raise make_file_changed_error(self.paths[i], "another size or time")
        try:
            return self.decoder(self.paths[i])
        except DECODE_ERRORS as error:
            return one_line_error_message(error)

    def decode_all_readable(self) -> tuple[Tensor, Tensor]:
        """Return all readable images uint8 (N, C, H, W) and their indices (N,)."""
        images: Tensor | None = None
        index: list[int] = []
        for i, image in self.decode_each_readable():
            if images is None:
                images = torch.empty(len(self), *image.shape, dtype=torch.uint8)
            images[len(index)] = image
            index.append(i)
        assert images is not None
        return images[: len(index)], torch.tensor(index)

    def decode_each_readable(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the index and the pixels of each readable image; record the others.

        Raises:
            UserError: no image is readable.
        """
        num_readable = 0
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            images_read = pool.map(self.decode_or_failure_reason, range(len(self)))
            decoded = track(images_read, "decoding", len(self), unit="images")
            for i, image in enumerate(decoded):
                if isinstance(image, str):
                    self.unreadable.add(self.paths[i], image)
                    continue
                num_readable += 1
                yield i, image
        if not num_readable:
            raise self.make_none_readable_error()

    def make_none_readable_error(self) -> UserError:
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
                image = self.decode_or_failure_reason(j % len(self))
                if not isinstance(image, str):
                    break
                unreadable.append((j % len(self), image))
            else:
                raise self.make_none_readable_error()
            used.append(j % len(self))
            images.append(image)
        stacked = self.stack_images(images, batch, shard)
        return batch, shard, torch.tensor(used), stacked, unreadable

    def stack_images(self, images: list[Tensor], batch: int, shard: int) -> Tensor:
        """Return the images of a shard as one tensor uint8 (B, C, H, W)."""
        return torch.stack(images)

    def stream_shards(
        self,
        shards: Iterator[ShardIndex],
        *,
        workers: int,
        pin_memory: bool,
        seed: int | None = None,
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield (batch number, shard number, indices, images) of each shard.

        Args:
            workers: processes that decode ahead; 0 decodes in this process.
            seed: of what is drawn from an image in training; see `PatchImages`.
        """
        keys = ((k, shard, index.tolist()) for k, shard, index in shards)
        for item in stream_items(self, keys, workers=workers, pin_memory=pin_memory):
            if isinstance(item, UserError):
                raise item
            k, shard, index, images, unreadable = item
            for i, reason in unreadable:
                self.unreadable.add(self.paths[i], reason)
            yield k, shard, index, images
