"""Any folder of images, and CelebA, which is such a folder with lists beside it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import Images
from genlab.data.image_decoding import Crop, ImageDecoder, ImageHeader, square_side
from genlab.data.image_files import (
    SUFFIXES,
    ImageFiles,
    StreamedImages,
    UnreadableImages,
    find_images,
    read_headers,
)
from genlab.data.shuffling import split_indices
from genlab.data.torchvision_sets import ensure_downloaded
from genlab.errors import UserError, did_you_mean
from genlab.spec import Count, Fraction, Positive

SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
SPLIT_HINT = "set dataset.validation or dataset.test, the fractions to hold out"


@dataclass(kw_only=True, eq=False)
class DecodedImages(Images):
    """Images that are decoded from files; small datasets stay in memory, large ones stream.

    Args:
        crop: how an image is made square: its middle (`center`), black borders (`pad`), or
            `stretch`; None requires square images.
        channels: 1 or 3; None: 1 if all images are gray.
        cache_in_memory: keep the decoded images in memory, or stream them; None keeps them if they
            fit into `cache_limit_mb`.
        workers: processes that decode a dataset that streams; 0 decodes in the run's own process.
        strict: whether an unreadable image is an error; otherwise it is skipped, counted and named.
    """

    crop: Crop | None = None
    channels: Literal[1, 3] | None = None
    cache_in_memory: bool | None = None
    cache_limit_mb: Positive = 2048
    workers: Count = 4
    strict: bool = False

    def set_file_splits(
        self,
        parts: dict[str, ImageFiles],
        decoder: ImageDecoder,
        unreadable: UnreadableImages,
        *,
        num_classes: int,
        hints: dict[str, str] | None = None,
    ) -> None:
        """Set the files of each split; they are decoded now if the dataset fits into memory."""
        self.unreadable = unreadable
        num_images = sum(len(part.paths) for part in parts.values())
        self.num_files = num_images + len(unreadable.reasons)
        self.source_files = [
            file for part in parts.values() for path in part.paths for file in decoder.files(path)
        ]
        assert decoder.side is not None
        shape = (decoder.channels, decoder.side, decoder.side)
        use_memory = self.cache_in_memory
        if use_memory is None:
            megabytes = num_images * decoder.channels * decoder.side**2 / 2**20
            use_memory = megabytes <= self.cache_limit_mb
        splits = {}
        for name, part in parts.items():
            files = StreamedImages(part.paths, decoder, unreadable)
            splits[name] = Split(files, part.labels)
            if part.paths and use_memory:
                x, index = files.decode_all()
                splits[name] = Split(x, None if part.labels is None else part.labels[index])
            else:
                files.record_stamps()
        self.set_image_splits(splits, shape=shape, num_classes=num_classes, hints=hints)

    def report(self) -> list[str]:
        """Return the line about unreadable images; while streaming, about those met so far."""
        return super().report() + self.unreadable.report(self.num_files)


@dataclass(kw_only=True, eq=False)
class ImageFolder(DecodedImages):
    """The images in a folder, flat or in class folders, with optional split folders.

    Split folders are train/, val/ and test/.

    Args:
        path: the folder; required.
        validation, test: fractions held out by the seed `split_seed`, for splits without a folder.
    """

    path: str | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.1
    name = "image_folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError(f"{self.name} needs the folder of the images: dataset.path=<folder>")
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"dataset.path={self.path}: no such folder (looked for {folder.resolve()})"
            )
        unreadable = UnreadableImages(folder, strict=self.strict)
        readable: dict[str, ImageFiles] = {}
        headers: dict[Path, ImageHeader] = {}
        for split, files in self.list_splits(folder).items():
            found = read_headers(files.paths, unreadable)
            index = [i for i, header in enumerate(found) if header]
            readable[split] = files[torch.tensor(index, dtype=torch.int64)]
            headers.update(zip(readable[split].paths, filter(None, found), strict=True))
        if not headers:
            line = unreadable.report(len(unreadable.reasons))[0]
            raise UserError(f"{folder}: {line}; none is left")
        decoder = self.make_decoder(headers)
        parts = self.add_missing_splits(readable)
        self.set_file_splits(
            parts,
            decoder,
            unreadable,
            num_classes=len(parts["train"].class_names),
            hints=dict.fromkeys(SPLITS, SPLIT_HINT),
        )

    def list_splits(self, folder: Path) -> dict[str, ImageFiles]:
        """Return the images of each split that has a folder; without such folders all are train."""
        folders = {
            split: folder / name
            for split, names in SPLIT_FOLDERS.items()
            for name in names
            if (folder / name).is_dir()
        }
        if "train" not in folders:
            folders = {"train": folder}
        splits = {split: find_images(sub) for split, sub in folders.items()}
        if not splits["train"].paths:
            patterns = " ".join(f"*{suffix}" for suffix in SUFFIXES)
            raise UserError(
                f"no image in {folders['train'].resolve()} or in folders below it; "
                f"looked for {patterns}"
            )
        for split, files in splits.items():
            if files.paths and files.class_names != splits["train"].class_names:
                raise UserError(
                    f"the class folders of {folders[split]} are {files.class_names}, those of "
                    f"{folders['train']} {splits['train'].class_names}; they must be the same"
                )
        return splits

    def add_missing_splits(self, splits: dict[str, ImageFiles]) -> dict[str, ImageFiles]:
        """Return all three splits; those without a folder are seeded fractions of train."""
        fractions = {"test": self.test, "validation": self.validation}
        missing = [split for split in fractions if split not in splits]
        n = len(splits["train"].paths)
        sizes = [round(fractions[split] * n) for split in missing]
        *heldout, rest = split_indices(n, sizes, self.split_seed)
        if not len(rest):
            raise UserError(
                f"dataset.validation={self.validation:g} and dataset.test={self.test:g} leave none "
                f"of the {n:,} images to train on"
            )
        train = splits["train"]
        added = {split: train[index] for split, index in zip(missing, heldout, strict=True)}
        return {**splits, **added, "train": train[rest]}

    def make_decoder(self, headers: dict[Path, ImageHeader]) -> ImageDecoder:
        """Return a decoder that gives every image the same shape.

        Raises:
            UserError: an option is needed for that; the message says which.
        """
        channels = self.channels or (1 if all(h.is_gray for h in headers.values()) else 3)
        not_square = {path: h for path, h in headers.items() if h.width != h.height}
        if not_square and self.crop is None:
            path, header = next(iter(not_square.items()))
            raise UserError(
                f"{len(not_square):,} of {len(headers):,} images are not square, as {path} of "
                f"{header.width}×{header.height}; choose how to make them square: "
                "dataset.crop=center (or pad, or stretch)"
            )
        sides = Counter(square_side(header, self.crop) for header in headers.values())
        is_stretched = bool(not_square) and self.crop == "stretch"
        if self.side is None and (len(sides) > 1 or is_stretched):
            common = sides.most_common(1)[0][0]
            reason = (
                "stretching needs a size"
                if is_stretched
                else f"the images have {len(sides)} different sizes"
            )
            raise UserError(f"{reason}: set their side in pixels, as dataset.size={common}")
        return ImageDecoder(channels=channels, side=self.side or next(iter(sides)), crop=self.crop)


CELEBA_WIDTH, CELEBA_HEIGHT = 178, 218  # pixels


@dataclass(kw_only=True, eq=False)
class CelebA(DecodedImages):
    """202,599 faces of 178×218 with the official splits: Liu et al. 2015.

    https://arxiv.org/abs/1411.7766

    Args:
        root: the folder that `celeba/` is in, or is downloaded to.
        download: whether to download missing files.
        label: one of the 40 attributes, as Smiling, whose absence and presence are two classes.
    """

    root: str = "data"
    download: bool = True
    label: str | None = None
    crop: Crop | None = "center"
    name = "celeba"

    def __post_init__(self) -> None:
        super().__post_init__()
        base = Path(self.root) / "celeba"
        folder = base / "img_align_celeba"
        partition, attributes = base / "list_eval_partition.txt", base / "list_attr_celeba.txt"
        ensure_downloaded(
            self.name,
            Path(self.root),
            [folder, partition, attributes],
            self.run_download if self.download else None,
            f"img_align_celeba/*.jpg, {partition.name} and {attributes.name} into {base}",
        )
        parts = self.read_lists(folder, partition, attributes)
        if self.crop is None or (self.crop == "stretch" and self.side is None):
            raise UserError(
                "celeba is 178×218: set dataset.crop=center or pad, or stretch with dataset.size=64"
            )
        header = ImageHeader(CELEBA_WIDTH, CELEBA_HEIGHT, is_gray=False)
        side = self.side or square_side(header, self.crop)
        decoder = ImageDecoder(channels=self.channels or 3, side=side, crop=self.crop)
        unreadable = UnreadableImages(folder, strict=self.strict)
        self.set_file_splits(parts, decoder, unreadable, num_classes=2 if self.label else 0)

    def run_download(self) -> None:
        """Download the files with torchvision."""
        from torchvision import datasets  # takes two seconds to import: only where it is used

        datasets.CelebA(self.root, download=True)

    def read_lists(self, folder: Path, partition: Path, attributes: Path) -> dict[str, ImageFiles]:
        """Return the files of each split, with labels by the attribute `label`.

        Raises:
            UserError: a list is damaged, or the attribute does not exist.
        """
        try:
            rows = [line.split() for line in partition.read_text().splitlines() if line.strip()]
            names, numbers = zip(*((name, int(number)) for name, number in rows), strict=True)
            labels = self.read_labels(attributes)
        except (ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{partition} or {attributes} is damaged ({error}); replace it with a fresh one"
            ) from error
        if outside := [name for name in names if Path(name).name != name]:
            raise UserError(f"{partition} names {outside[0]!r}, which is not a file in {folder}")
        y = None
        if labels is not None:
            if unlabeled := [name for name in names if name not in labels]:
                raise UserError(f"{attributes} does not list {unlabeled[0]}")
            y = torch.tensor([labels[name] for name in names])
        split_numbers = torch.tensor(numbers)  # 0: train, 1: validation, 2: test
        files = ImageFiles([folder / name for name in names], y)
        return {
            split: files[(split_numbers == i).nonzero()[:, 0]] for i, split in enumerate(SPLITS)
        }

    def read_labels(self, attributes: Path) -> dict[str, int] | None:
        """Return each file's class by the attribute `label`, or None without a label."""
        if self.label is None:
            return None
        _, names, *rows = attributes.read_text().splitlines()
        known = names.split()
        if self.label not in known:
            raise UserError(
                f"dataset.label={self.label}: no such attribute{did_you_mean(self.label, known)}"
            )
        column = known.index(self.label) + 1
        return {row.split()[0]: int(row.split()[column] == "1") for row in rows if row.strip()}
