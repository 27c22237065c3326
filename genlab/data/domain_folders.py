"""Two domains A and B in folders: pairs A|B of the same thing, or two unpaired sets."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from genlab.data.degraded_pairs import random_crop
from genlab.data.image_decoding import ImageDecoder, ImageHeader, open_image
from genlab.data.image_files import ImageFiles, UnreadableImages, find_images, read_headers
from genlab.data.image_folder import SPLIT_FOLDERS, ImageFolder
from genlab.data.shuffling import IndexFn
from genlab.errors import UserError
from genlab.seeding import derive_seed
from genlab.spec import Batch, NonNegative

Direction = Literal["AtoB", "BtoA"]
LAYOUTS = (
    "trainA/ and trainB/ (testA/ …), or A/ and B/ with or without train/, val/ and test/ in them"
)
SOURCE_STREAM = 1  # mixed into the seed of the order of the sources


def domain_folders(folder: Path, domain: str) -> dict[str, Path]:
    """Return the folder of one domain for each split; empty if there is none.

    A domain's folder without folders for splits is train.
    """
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            for sub in (folder / f"{name}{domain}", folder / name / domain, folder / domain / name):
                if sub.is_dir():
                    found[split] = sub
    if not found and (folder / domain).is_dir():
        found["train"] = folder / domain
    return found


def list_domain(folder: Path, domain: str) -> dict[str, ImageFiles]:
    """Return the images of one domain by split, see `domain_folders`."""
    folders = domain_folders(folder, domain)
    return {split: ImageFiles(find_images(sub).paths) for split, sub in folders.items()}


# --- pairs ----------------------------------------------------------------------------------------


def images_by_name(folder: Path) -> dict[Path, Path]:
    """Return the images in and below a folder by relative path without suffix.

    Raises:
        UserError: two images have the same name.
    """
    by_name: dict[Path, Path] = {}
    for path in find_images(folder).paths:
        name = path.relative_to(folder).with_suffix("")
        if name in by_name:
            raise UserError(
                f"{by_name[name]} and {path} have the same name, by which pairs are matched; "
                "remove one of them"
            )
        by_name[name] = path
    return by_name


@dataclass(frozen=True)
class PairDecoder(ImageDecoder):
    """Decodes both images of a pair to uint8 (channels, side, side), A's channels before B's.

    Args:
        partners: file of A -> file of B; a file without a partner has A as its left half and B as
            its right half.
    """

    partners: dict[Path, Path]

    def __call__(self, path: Path) -> Tensor:
        single = ImageDecoder(channels=self.channels // 2, side=self.side, crop=self.crop)
        if path in self.partners:
            return torch.cat([single(path), single(self.partners[path])])
        with open_image(path) as image:
            both = ImageOps.exif_transpose(image)
            middle, height = both.width // 2, both.height
            halves = [both.crop((left, 0, left + middle, height)) for left in (0, middle)]
        return torch.cat([single.to_pixels(half) for half in halves])

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path, self.partners[path]) if path in self.partners else (path,)


@dataclass(kw_only=True, eq=False)
class PairedFolder(ImageFolder):
    """Pairs in a folder: A|B side by side in a file, or same-named files in two folders.

    Side by side: Isola et al. 2017. Both layouts may be in train/, val/ and test/. The flip
    (`flip`) and the jitter apply to both images together.

    Args:
        direction: from which domain to which: A is the left half, B the right.
        jitter: fraction by which training pairs are enlarged before a part of their old size is cut
            out anywhere (https://arxiv.org/abs/1611.07004, section 6.2: 256 to 286).
    """

    direction: Direction = "AtoB"
    jitter: NonNegative = 0.0
    name = "paired_folder"

    def __post_init__(self) -> None:
        self.partners: dict[Path, Path] = {}
        super().__post_init__()
        channels, *sides = self.spec.shape
        one_image = replace(self.spec, shape=(channels // 2, *sides))
        self.spec = replace(one_image, source=one_image, task="translate")

    def list_splits(self, folder: Path) -> dict[str, ImageFiles]:
        """Return the images of A, or the files A|B, by split; B's are added to `partners`."""
        folders_a, folders_b = (domain_folders(folder, domain) for domain in "AB")
        if not folders_a:
            splits = super().list_splits(folder)
            return {split: ImageFiles(files.paths) for split, files in splits.items()}
        listed = {}
        for split, sub in folders_a.items():
            images_a = images_by_name(sub)
            images_b = images_by_name(folders_b[split]) if split in folders_b else {}
            if unpaired := [path for name, path in images_a.items() if name not in images_b]:
                raise UserError(
                    f"{unpaired[0]} does not have a partner of the same name among the {split} "
                    f"images of B in {folder}"
                )
            self.partners |= {path: images_b[name] for name, path in images_a.items()}
            listed[split] = ImageFiles(list(images_a.values()))
        if not self.partners:
            raise UserError(
                f"no image of A in {folder.resolve()}; paired_folder looks for files A|B, or "
                f"{LAYOUTS}"
            )
        return listed

    def make_decoder(self, headers: dict[Path, ImageHeader]) -> ImageDecoder:
        if self.partners:
            paths = list(self.partners.values())
            unreadable = UnreadableImages(paths[0].parent, strict=self.strict)
            partner_headers = zip(paths, read_headers(paths, unreadable), strict=True)
            headers = headers | {path: header for path, header in partner_headers if header}
        else:
            if odd := [path for path, header in headers.items() if header.width % 2]:
                raise UserError(
                    f"{odd[0]} is not a pair A|B side by side, because its width is odd; "
                    f"or give {LAYOUTS}"
                )
            headers = {path: replace(h, width=h.width // 2) for path, h in headers.items()}
        decoder = super().make_decoder(headers)
        return PairDecoder(2 * decoder.channels, decoder.side, decoder.crop, self.partners)

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if augment and self.jitter:
            x = jitter_size(x, self.jitter, generator)
        source, target = self.split_pair(self.preprocess(x, generator, augment=augment))
        return Batch(target, y, source)

    def head_bytes(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        batch = super().head_bytes(split, n, seed=seed)
        return Batch(self.split_pair(batch.x)[1], batch.y)

    def split_pair(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return sources and targets (B, C, H, W) of pairs (B, 2C, H, W)."""
        a, b = pairs.chunk(2, dim=1)
        return (a, b) if self.direction == "AtoB" else (b, a)


def jitter_size(x: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return uint8 images (B, C, H, W), enlarged and randomly cropped to the old size."""
    height, width = x.shape[-2:]
    size = [round(side * (1 + fraction)) for side in (height, width)]
    larger = interpolate(x.float(), size=size, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    return random_crop(larger, height, generator, width)


# --- no pairs -------------------------------------------------------------------------------------


def list_unpaired_domain(folder: Path, domain: str) -> dict[str, ImageFiles]:
    """Return the images of one domain by split.

    Raises:
        UserError: the domain does not have training images.
    """
    splits = list_domain(folder, domain)
    if "train" not in splits or not splits["train"].paths:
        raise UserError(
            f"no training images of {domain} in {folder.resolve()}; looked for {LAYOUTS}"
        )
    return splits


@dataclass(kw_only=True, eq=False)
class SingleDomain(ImageFolder):
    """The images of one domain, A or B."""

    domain: str
    name = "unpaired_folders"

    def list_splits(self, folder: Path) -> dict[str, ImageFiles]:
        return list_unpaired_domain(folder, self.domain)


@dataclass(kw_only=True, eq=False)
class UnpairedFolders(ImageFolder):
    """Images x of one domain, each with an unrelated image of the other domain (`cond`).

    In training both are drawn independently, each domain with its own epochs. An ordered pass has
    source i with target i, and repeats the sources if there are fewer of them.

    Args:
        direction: from which domain to which.
    """

    direction: Direction = "AtoB"
    name = "unpaired_folders"
    paired = False

    def __post_init__(self) -> None:
        options = {field.name: self.__dict__[field.name] for field in fields(ImageFolder)}
        super().__post_init__()
        self.sources = SingleDomain(**options, domain=self.direction[0])
        self.source_files = [*self.source_files, *self.sources.source_files]
        source_spec = replace(self.sources.spec, num_classes=0)
        self.spec = replace(self.spec, source=source_spec, task="translate")

    def list_splits(self, folder: Path) -> dict[str, ImageFiles]:
        return list_unpaired_domain(folder, self.direction[-1])

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        index_fn: IndexFn | None = None,
        **options: Any,
    ) -> Iterator[Batch]:
        targets = super().batches(
            split, batch_size, seed=seed, shuffle=shuffle, index_fn=index_fn, **options
        )
        if not shuffle:
            return targets  # its chunks have their sources already
        sources = self.sources.batches(
            split, batch_size, seed=derive_seed(seed, SOURCE_STREAM), **options
        )
        return add_sources(targets, sources)

    def _preprocessed_chunks(
        self, split: str, order: Tensor, seed: int, device: torch.device, *, first: int = 0
    ) -> Iterator[Batch]:
        source_order = order % len(self.sources.splits[split])
        sources = self.sources._preprocessed_chunks(split, source_order, seed, device, first=first)
        targets = super()._preprocessed_chunks(split, order, seed, device, first=first)
        return add_sources(targets, sources)

    def report(self) -> list[str]:
        return super().report() + self.sources.report()


def add_sources(targets: Iterator[Batch], sources: Iterator[Batch]) -> Iterator[Batch]:
    """Yield each batch of targets with the items of a batch of sources as its `cond`."""
    for target, source in zip(targets, sources, strict=True):
        yield Batch(target.x, target.y, source.x)
