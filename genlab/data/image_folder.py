"""Any folder of images, and CelebA, which is one with lists beside it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import Images
from genlab.data.image_decoding import Crop, Header, Reader, side_of
from genlab.data.image_files import SUFFIXES, Files, Found, Unreadable, headers, list_images
from genlab.data.shuffling import cut
from genlab.data.torchvision_sets import ensure
from genlab.errors import UserError, did_you_mean
from genlab.spec import Count, Fraction, Positive

SUB_FOLDERS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(kw_only=True, eq=False)
class FileImages(Images):
    """Images that are decoded from files; small sets are held decoded, large ones stream through workers.

    Args:
        crop: what makes an image square: its middle (`center`), black borders (`pad`), or `stretch`; None: all are.
        channels: 1 or 3; None: 1 where all are grey.
        resident: hold the decoded set in memory, or stream it; None: hold it when it fits into `resident_mb`.
        workers: processes that decode a set that streams; 0: none but the run itself.
        strict: whether an unreadable image is an error; else it is skipped, counted and named.
    """

    crop: Crop | None = None
    channels: Literal[1, 3] | None = None
    resident: bool | None = None
    resident_mb: Positive = 2048
    workers: Count = 4
    strict: bool = False

    def hold_files(
        self,
        parts: dict[str, Found],
        reader: Reader,
        unreadable: Unreadable,
        *,
        classes: int,
        missing: dict[str, str] | None = None,
    ) -> None:
        """Take the files of each split, decoded now if the set fits into memory."""
        self.unreadable = unreadable
        self.files = sum(len(part.paths) for part in parts.values()) + len(unreadable.reasons)
        self.sources = [
            file for part in parts.values() for path in part.paths for file in reader.files(path)
        ]
        assert reader.side is not None
        shape = (reader.channels, reader.side, reader.side)
        megabytes = (
            sum(len(part.paths) for part in parts.values())
            * reader.channels
            * reader.side**2
            / 2**20
        )
        splits = {}
        for name, part in parts.items():
            files = Files(part.paths, reader, unreadable)
            splits[name] = Split(files, part.labels)
            if part.paths and (
                self.resident if self.resident is not None else megabytes <= self.resident_mb
            ):
                x, kept = files.load()
                splits[name] = Split(x, None if part.labels is None else part.labels[kept])
            else:
                files.remember()
        self.hold_images(splits, shape=shape, classes=classes, missing=missing)

    def report(self) -> list[str]:
        """Return the line about unreadable images; of a set that streams, those met so far."""
        return super().report() + self.unreadable.line(self.files)


@dataclass(kw_only=True, eq=False)
class ImageFolder(FileImages):
    """The images in a folder, flat or in class folders, or in train/, val/ and test/ where the splits are given.

    Args:
        path: the folder; required.
        validation, test: shares held out by the seed `split_seed`, where there is no folder for that split.
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
                f"dataset.path={self.path}: there is no such folder (looked for {folder.resolve()})"
            )
        unreadable = Unreadable(folder, strict=self.strict)
        found, heads = {}, {}
        for split, part in self.listed(folder).items():
            read = headers(part.paths, unreadable)
            found[split] = part[
                torch.tensor([i for i, head in enumerate(read) if head], dtype=torch.int64)
            ]
            heads.update(zip(found[split].paths, filter(None, read), strict=True))
        if not heads:
            raise UserError(
                f"{folder}: {unreadable.line(len(unreadable.reasons))[0]}; none is left"
            )
        reader = self.reader(heads)
        parts = self.divided(found)
        classes = len(parts["train"].classes)
        why = "dataset.validation and dataset.test are the shares held out"
        self.hold_files(
            parts, reader, unreadable, classes=classes, missing=dict.fromkeys(SPLITS, why)
        )

    def listed(self, folder: Path) -> dict[str, Found]:
        """Return the images of each split that has a folder; all as train where there are no such folders."""
        subs = {
            s: folder / name
            for s, names in SUB_FOLDERS.items()
            for name in names
            if (folder / name).is_dir()
        }
        if "train" not in subs:
            subs = {"train": folder}
        found = {split: list_images(sub) for split, sub in subs.items()}
        if not found["train"].paths:
            kinds = " ".join(f"*{suffix}" for suffix in SUFFIXES)
            raise UserError(
                f"no image in {subs['train'].resolve()} or in folders below it; looked for {kinds}"
            )
        for split, part in found.items():
            if part.paths and part.classes != found["train"].classes:
                raise UserError(
                    f"the class folders of {subs[split]} are {part.classes}, those of {subs['train']}"
                    f" {found['train'].classes}; they must be the same"
                )
        return found

    def divided(self, found: dict[str, Found]) -> dict[str, Found]:
        """Return all three splits; those without a folder are seeded shares of train."""
        shares = {"test": self.test, "validation": self.validation}
        wanted = [split for split in shares if split not in found]
        n = len(found["train"].paths)
        *out, rest = cut(n, [round(shares[split] * n) for split in wanted], self.split_seed)
        if not len(rest):
            given = f"dataset.validation={self.validation:g} and dataset.test={self.test:g}"
            raise UserError(f"{given} leave none of the {n:,} images to train on")
        train = found["train"]
        held = {split: train[index] for split, index in zip(wanted, out, strict=True)}
        return {**found, **held, "train": train[rest]}

    def reader(self, heads: dict[Path, Header]) -> Reader:
        """Return what decodes every image to the same shape, or say which option that needs."""
        channels = self.channels or (1 if all(head.grey for head in heads.values()) else 3)
        odd = {path: head for path, head in heads.items() if head.width != head.height}
        if odd and self.crop is None:
            path, head = next(iter(odd.items()))
            raise UserError(
                f"{len(odd):,} of {len(heads):,} images are not square, as {path} of {head.width}×{head.height};"
                " state what is to be done: dataset.crop=center (or pad, or stretch)"
            )
        sides = Counter(side_of(head, self.crop) for head in heads.values())
        stretched = bool(odd) and self.crop == "stretch"
        if self.side is None and (len(sides) > 1 or stretched):
            common = sides.most_common(1)[0][0]
            why = (
                "stretching needs a size"
                if stretched
                else f"the images have {len(sides)} different sizes"
            )
            raise UserError(f"{why}: set their side in pixels, as dataset.size={common}")
        return Reader(channels=channels, side=self.side or next(iter(sides)), crop=self.crop)


@dataclass(kw_only=True, eq=False)
class CelebA(FileImages):
    """202,599 faces of 178×218 with the official splits: Liu et al. 2015, https://arxiv.org/abs/1411.7766.

    Args:
        root: the folder that holds `celeba/`, or will.
        download: whether to download what is missing.
        label: one of the 40 attributes, as Smiling, whose absence and presence are then two classes.
    """

    root: str = "data"
    download: bool = True
    label: str | None = None
    crop: Crop | None = "center"
    name = "celeba"

    def __post_init__(self) -> None:
        super().__post_init__()
        base = Path(self.root) / "celeba"
        folder, splits, attributes = (
            base / name
            for name in ("img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt")
        )
        what = f"img_align_celeba/*.jpg, {splits.name} and {attributes.name} into {base}"
        ensure(
            self.name,
            Path(self.root),
            [folder, splits, attributes],
            self.fetch if self.download else None,
            what,
        )
        try:
            rows = [line.split() for line in splits.read_text().splitlines() if line.strip()]
            names, numbers = zip(*((name, int(number)) for name, number in rows), strict=True)
            labels = self.labels(attributes)
        except (ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{splits} or {attributes} is damaged ({error}); put a fresh one there"
            ) from error
        if odd := [name for name in names if Path(name).name != name]:
            raise UserError(f"{splits} names {odd[0]!r}, which is no file in {folder}")
        if labels is not None and (odd := [name for name in names if name not in labels]):
            raise UserError(f"{attributes} has no line for {odd[0]}")
        part = torch.tensor(numbers)  # 0: train, 1: validation, 2: test
        y = None if labels is None else torch.tensor([labels[name] for name in names])
        every = Found([folder / name for name in names], y)
        parts = {split: every[(part == i).nonzero()[:, 0]] for i, split in enumerate(SPLITS)}
        if self.crop is None or (self.crop == "stretch" and self.side is None):
            raise UserError(
                "celeba is 178×218: set dataset.crop=center or pad, or stretch with dataset.size=64"
            )
        side = self.side or side_of(Header(178, 218, grey=False), self.crop)
        reader = Reader(channels=self.channels or 3, side=side, crop=self.crop)
        self.hold_files(
            parts, reader, Unreadable(folder, strict=self.strict), classes=2 if self.label else 0
        )

    def fetch(self) -> None:
        from torchvision import datasets  # takes two seconds to import: only where it is used

        datasets.CelebA(self.root, download=True)

    def labels(self, attributes: Path) -> dict[str, int] | None:
        """Return each file's class by the attribute `label`, or None for no labels."""
        if self.label is None:
            return None
        _, names, *rows = attributes.read_text().splitlines()
        known = names.split()
        if self.label not in known:
            raise UserError(
                f"dataset.label={self.label}: there is no such attribute{did_you_mean(self.label, known)}"
            )
        column = known.index(self.label) + 1
        return {row.split()[0]: int(row.split()[column] == "1") for row in rows if row.strip()}
