"""Two domains A and B in folders: pairs A|B of the same thing, or two sets that nothing pairs."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from genlab.data.degraded_pairs import patches
from genlab.data.image_decoding import Header, Reader, opened
from genlab.data.image_files import Found, Unreadable, headers, list_images
from genlab.data.image_folder import SUB_FOLDERS, ImageFolder
from genlab.data.shuffling import Pick
from genlab.errors import UserError
from genlab.seeding import mix
from genlab.spec import Batch, NonNegative

Direction = Literal["AtoB", "BtoA"]
LAYOUTS = (
    "trainA/ and trainB/ (testA/ …), or A/ and B/ with or without train/, val/ and test/ in them"
)
SOURCE = 1  # mixed into the seed of the order of the sources


def folders(folder: Path, domain: str) -> dict[str, Path]:
    """Return the folder of one domain by split, that of train where no folder says the split; nothing if it has no folder."""
    found = {}
    for split, names in SUB_FOLDERS.items():
        for name in names:
            for sub in (folder / f"{name}{domain}", folder / name / domain, folder / domain / name):
                if sub.is_dir():
                    found[split] = sub
    if not found and (folder / domain).is_dir():
        found["train"] = folder / domain
    return found


def one_side(folder: Path, domain: str) -> dict[str, Found]:
    """Return the images of one domain by split, all as train where no folder says the split; nothing if it has no folder."""
    return {split: Found(list_images(sub).paths) for split, sub in folders(folder, domain).items()}


# --- pairs ------------------------------------------------------------------------------------------------------------


def by_name(folder: Path) -> dict[Path, Path]:
    """Return the images in and below a folder by their path in it without its suffix: two folders may have one file name.

    Raises:
        UserError: two images have the same.
    """
    named: dict[Path, Path] = {}
    for path in list_images(folder).paths:
        name = path.relative_to(folder).with_suffix("")
        if name in named:
            raise UserError(
                f"{named[name]} and {path} have one name, and a pair is of one name; take one of them away"
            )
        named[name] = path
    return named


@dataclass(frozen=True)
class PairReader(Reader):
    """Decodes both images of a pair to uint8 (channels, side, side), A's channels before B's.

    partners: the file of B by that of A; a file without one has A as its left half and B as its right.
    """

    partners: dict[Path, Path]

    def __call__(self, path: Path) -> Tensor:
        single = Reader(channels=self.channels // 2, side=self.side, crop=self.crop)
        if path in self.partners:
            return torch.cat([single(path), single(self.partners[path])])
        with opened(path) as image:
            whole = ImageOps.exif_transpose(image)
            middle, height = whole.width // 2, whole.height
            halves = [whole.crop((left, 0, left + middle, height)) for left in (0, middle)]
        return torch.cat([single.pixels(half) for half in halves])

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, self.partners[path]) if path in self.partners else (path,)


@dataclass(kw_only=True, eq=False)
class PairedFolder(ImageFolder):
    """Pairs in a folder: A|B side by side in one file (Isola et al. 2017), or the same path in a folder for each.

    Either may lie in train/, val/ and test/. A flip (`flip`) and the jitter are of both images together.

    Args:
        direction: from which domain to which: A is the left half, B the right.
        jitter: share by which training pairs are enlarged before a part of their old size is cut out anywhere
            (https://arxiv.org/abs/1611.07004, section 6.2: 256 to 286).
    """

    direction: Direction = "AtoB"
    jitter: NonNegative = 0.0
    name = "paired_folder"

    def __post_init__(self) -> None:
        self.partners: dict[Path, Path] = {}
        super().__post_init__()
        channels, *sides = self.spec.shape
        one = replace(self.spec, shape=(channels // 2, *sides))
        self.spec = replace(one, source=one, task="translate")

    def listed(self, folder: Path) -> dict[str, Found]:
        a, b = (folders(folder, domain) for domain in "AB")
        if not a:
            return {split: Found(found.paths) for split, found in super().listed(folder).items()}
        listed = {}
        for split, sub in a.items():
            named, others = by_name(sub), by_name(b[split]) if split in b else {}
            if alone := [path for name, path in named.items() if name not in others]:
                raise UserError(
                    f"{alone[0]} has no partner of its name among the {split} images of B in {folder}"
                )
            self.partners |= {path: others[name] for name, path in named.items()}
            listed[split] = Found(list(named.values()))
        if not self.partners:
            raise UserError(
                f"no image of A in {folder.resolve()}; paired_folder looks for files A|B, or {LAYOUTS}"
            )
        return listed

    def reader(self, heads: dict[Path, Header]) -> Reader:
        if self.partners:
            others = list(self.partners.values())
            read = headers(others, Unreadable(others[0].parent, strict=self.strict))
            heads = heads | {path: head for path, head in zip(others, read, strict=True) if head}
        else:
            if odd := [path for path, head in heads.items() if head.width % 2]:
                raise UserError(
                    f"{odd[0]} is no pair A|B side by side: its width is odd; or give {LAYOUTS}"
                )
            heads = {path: replace(head, width=head.width // 2) for path, head in heads.items()}
        reader = super().reader(heads)
        return PairReader(2 * reader.channels, reader.side, reader.crop, self.partners)

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if augment and self.jitter:
            x = jittered(x, self.jitter, generator)
        source, target = self.turned(self.prepare(x, generator, augment=augment))
        return Batch(target, y, source)

    def shown(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        batch = super().shown(split, n, seed=seed)
        return Batch(self.turned(batch.x)[1], batch.y)

    def turned(self, both: Tensor) -> tuple[Tensor, ...]:
        """Return sources and targets (B, C, H, W) of pairs (B, 2C, H, W)."""
        a, b = both.chunk(2, dim=1)
        return (a, b) if self.direction == "AtoB" else (b, a)


def jittered(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return uint8 images (B, C, H, W) enlarged by a share, of which a part of the old size is cut out anywhere."""
    height, width = x.shape[-2:]
    size = [round(side * (1 + share)) for side in (height, width)]
    larger = interpolate(x.float(), size=size, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    return patches(larger, height, generator, width)


# --- no pairs ---------------------------------------------------------------------------------------------------------


def unpaired(folder: Path, domain: str) -> dict[str, Found]:
    """Return the images of one domain by split.

    Raises:
        UserError: there are none to train on.
    """
    found = one_side(folder, domain)
    if not found.get("train", Found([])).paths:
        raise UserError(
            f"no training images of {domain} in {folder.resolve()}; looked for {LAYOUTS}"
        )
    return found


@dataclass(kw_only=True, eq=False)
class Domain(ImageFolder):
    """The images of one domain, A or B."""

    domain: str
    name = "unpaired_folders"

    def listed(self, folder: Path) -> dict[str, Found]:
        return unpaired(folder, self.domain)


@dataclass(kw_only=True, eq=False)
class UnpairedFolders(ImageFolder):
    """Images x of one domain, each beside an image of the other (`cond`) that it has nothing to do with.

    In training both are drawn independently, each domain in epochs of its own; a pass in order has source i beside target
    i, and starts the sources again where there are fewer.

    Args:
        direction: from which domain to which.
    """

    direction: Direction = "AtoB"
    name = "unpaired_folders"
    paired = False

    def __post_init__(self) -> None:
        options = {field.name: self.__dict__[field.name] for field in fields(ImageFolder)}
        super().__post_init__()
        self.source = Domain(**options, domain=self.direction[0])
        self.sources = [*self.sources, *self.source.sources]
        self.spec = replace(
            self.spec, source=replace(self.source.spec, classes=0), task="translate"
        )

    def listed(self, folder: Path) -> dict[str, Found]:
        return unpaired(folder, self.direction[-1])

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        pick: Pick | None = None,
        **how: Any,
    ) -> Iterator[Batch]:
        found = super().batches(split, batch_size, seed=seed, shuffle=shuffle, pick=pick, **how)
        if not shuffle:
            return found  # its chunks have their sources already
        sources = self.source.batches(split, batch_size, seed=mix(seed, SOURCE), **how)
        return (
            Batch(target.x, target.y, source.x)
            for target, source in zip(found, sources, strict=True)
        )

    def _chunks(self, split: str, order: Tensor, *how: Any, **more: Any) -> Iterator[Batch]:
        sources = self.source._chunks(split, order % self.source.size(split), *how, **more)
        targets = super()._chunks(split, order, *how, **more)
        return (
            Batch(target.x, target.y, source.x)
            for target, source in zip(targets, sources, strict=True)
        )

    def report(self) -> list[str]:
        return super().report() + self.source.report()
