"""Two domains A and B in folders: pairs A|B of the same thing, or two unpaired sets."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from genlab.data.folder_layout import SPLIT_FOLDERS, split_from_folder_name
from genlab.data.image_decoding import ImageDecoder, ImageHeader, open_image, pixel_depth
from genlab.data.image_files import (
    ImageFiles,
    UnreadableImages,
    find_images_with_labels_v1,
    is_hidden_or_system_name,
    list_images,
    read_image_headers,
)
from genlab.data.image_folder import ImageFolder
from genlab.data.image_patches import random_crop
from genlab.data.shuffling import IndexFn
from genlab.data.summary import DataSummary, LeftOut
from genlab.errors import UserError
from genlab.seeding import derive_seed
from genlab.spec import Batch, NonNegative, Positive
from genlab.untrusted.files import real_path

Direction = Literal["AtoB", "BtoA"]
LAYOUTS = (
    "trainA/ and trainB/ (testA/ …), or A/ and B/ with or without train/, val/ and test/ in them"
)
SINGLE_IMAGES = "; for single images, set dataset=image_folder"
MAX_RATIO_ERROR = 0.02  # of the aspect ratios of a pair, as rounding a scaled size makes
SOURCE_STREAM = 1  # mixed into the seed of the order of the sources


def split_folders_of_domain(folder: Path, domain: str) -> dict[str, Path]:
    """Return the folder of one domain for each split; empty if there is none.

    Names are matched in any letter case, with or without a separator: trainA, train_a, Train/A. A
    domain's folder without folders for splits is train.

    Raises:
        UserError: two folders are the same split of the domain.
    """
    found: dict[str, Path] = {}

    def add(split: str, sub: Path) -> None:
        if split in found:
            raise UserError(
                f"{found[split]} and {sub} are both the {split} images of {domain}; remove one"
            )
        found[split] = sub

    plain: list[Path] = []
    for sub in list_visible_subfolders(folder):
        name = sub.name.lower()
        if name == domain.lower():
            splits = {
                inner: split_from_folder_name(inner.name) for inner in list_visible_subfolders(sub)
            }
            for inner, split in splits.items():
                if split:
                    add(split, inner)
            plain += [] if any(splits.values()) else [sub]
        elif split := split_from_folder_name(name):
            for inner in list_visible_subfolders(sub):
                if inner.name.lower() == domain.lower():
                    add(split, inner)
        elif name.endswith(domain.lower()) and (
            split := split_from_folder_name(name.removesuffix(domain.lower()).rstrip("_-. "))
        ):
            add(split, sub)
    if not found and plain:
        found["train"] = plain[0]
    return found


def list_visible_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones."""
    return sorted(
        p for p in folder.iterdir() if p.is_dir() and not is_hidden_or_system_name(p.name)
    )


def list_images_by_rules(folder: Path, rules: int, left_out: LeftOut | None = None) -> list[Path]:
    """Return the images in and below a folder; see `folder_rules` of `ImageFolder`.

    Args:
        left_out: other files are counted in it.
    """
    return find_images_with_labels_v1(folder).paths if rules == 1 else list_images(folder, left_out)


def select_images_below_folder(folder: Path, images: list[Path]) -> list[Path]:
    """Return those of some images that are in or below a folder."""
    return [path for path in images if path.is_relative_to(folder)]


def count_images_outside_domains(folder: Path, images: list[Path], left_out: LeftOut) -> None:
    """Count the images that are not in a folder of A or B."""
    subs = [sub for domain in "AB" for sub in split_folders_of_domain(folder, domain).values()]
    for path in images:
        if not any(path.is_relative_to(sub) for sub in subs):
            left_out.add("not in a folder of A or B", str(path.relative_to(folder)))


def list_domain_images_by_split(
    folder: Path, domain: str, images: list[Path]
) -> dict[str, ImageFiles]:
    """Return the images of one domain by split; see `split_folders_of_domain`."""
    folders = split_folders_of_domain(folder, domain)
    return {
        split: ImageFiles(select_images_below_folder(sub, images)) for split, sub in folders.items()
    }


# --- pairs ----------------------------------------------------------------------------------------


def index_images_by_name(folder: Path, images: list[Path]) -> dict[Path, Path]:
    """Return the images in and below a folder by relative path without suffix.

    Raises:
        UserError: two images have the same name.
    """
    by_name: dict[Path, Path] = {}
    for path in select_images_below_folder(folder, images):
        name = path.relative_to(folder).with_suffix("")
        if name in by_name:
            raise UserError(
                f"{by_name[name]} and {path} have the same name, by which pairs are matched; "
                "remove one of them"
            )
        by_name[name] = path
    return by_name


def strip_domain_from_names(images: dict[Path, Path], domain: str) -> dict[Path, Path]:
    """Return images by name without the domain at its end: 001_A and 001_B become 001."""
    pattern = re.compile(rf"[_\-. ]?{domain}$", re.IGNORECASE)
    return {
        name.with_name(pattern.sub("", name.name) or name.name): p for name, p in images.items()
    }


@dataclass(frozen=True)
class PairDecoder(ImageDecoder):
    """Decodes both images of a pair to uint8 (channels, side, side), A's channels before B's.

    Args:
        partners: file of A -> file of B; a file without a partner has A as its left half and B as
            its right half.
    """

    partners: dict[Path, Path]

    def __call__(self, path: Path) -> Tensor:
        single = ImageDecoder(self.channels // 2, self.side, self.crop, ranges=self.ranges)
        if path in self.partners:
            return torch.cat([single(path), single(self.partners[path])])
        with open_image(path) as image:
            depth = pixel_depth(image)
            both = ImageOps.exif_transpose(image)
            middle, height = both.width // 2, both.height
            halves = [both.crop((left, 0, left + middle, height)) for left in (0, middle)]
        return torch.cat([single.to_pixels(half, depth) for half in halves])

    def files_of_item(self, path: Path) -> tuple[Path, ...]:
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
    patch_size: Positive | None = field(default=None, init=False)  # a pair has one size
    name = "paired_folder"
    has_class_folders = False

    def __post_init__(self) -> None:
        self.partners: dict[Path, Path] = {}
        super().__post_init__()
        channels, *sides = self.spec.shape
        one_image = replace(self.spec, shape=(channels // 2, *sides))
        self.spec = replace(one_image, source=one_image, task="translate")

    def list_images_by_split(self, folder: Path) -> dict[str, ImageFiles]:
        """Return the images of A, or the files A|B, by split; B's are added to `partners`."""
        folders = {domain: split_folders_of_domain(folder, domain) for domain in "AB"}
        if not folders["A"] and not folders["B"]:
            splits = super().list_images_by_split(folder)
            self.notes.append("each file is a pair side by side: A is its left half, B its right")
            if self.folder_rules > 1:
                self.add_note_of_parallel_folders(splits["train"].paths)
            return {split: ImageFiles(files.paths) for split, files in splits.items()}
        images = list_images_by_rules(folder, self.folder_rules, self.left_out)
        listed = {}
        for split in SPLIT_FOLDERS:
            subs = {domain: folders[domain].get(split) for domain in "AB"}
            if any(subs.values()):
                listed[split] = self.match_pairs(folder, split, subs, images)
        count_images_outside_domains(folder, images, self.left_out)
        if "train" not in listed or not listed["train"].paths:
            raise UserError(
                f"no image of A has a partner of the same name in B, in {real_path(folder)}"
                f"{self.example_names(folder, folders, images)}; paired_folder looks for files "
                f"A|B, or {LAYOUTS}"
            )
        return listed

    def add_note_of_parallel_folders(self, paths: list[Path]) -> None:
        """Note two folders whose images have the same names, as the two domains of pairs have."""
        names: dict[Path, set[str]] = {}
        for path in paths:
            names.setdefault(path.parent, set()).add(path.stem)
        for first, second in combinations(sorted(names), 2):
            if names[first] == names[second]:
                self.notes.append(
                    f"the images in {first.name}/ and {second.name}/ have the same names: if these "
                    "are the pairs, name such folders as trainA/ and trainB/"
                )
                return

    def match_pairs(
        self, folder: Path, split: str, subs: dict[str, Path | None], images: list[Path]
    ) -> ImageFiles:
        """Return the images of A of a split that have a partner; count the others.

        Args:
            subs: domain -> its folder, None if the split does not have one.

        Raises:
            UserError: `strict`, and an image does not have a partner.
        """
        by_name = {
            domain: index_images_by_name(sub, images) if sub else {} for domain, sub in subs.items()
        }
        if not by_name["A"].keys() & by_name["B"].keys():
            shorter = {domain: strip_domain_from_names(by_name[domain], domain) for domain in "AB"}
            if all(len(shorter[domain]) == len(by_name[domain]) for domain in "AB"):
                by_name = shorter
        for domain, other in ("AB", "BA"):
            for name, path in by_name[domain].items():
                if name in by_name[other]:
                    continue
                if self.strict:
                    raise UserError(
                        f"{path} does not have a partner of the same name among the {split} images "
                        f"of {other} in {folder}; dataset.strict=false leaves such images out"
                    )
                self.left_out.add(
                    f"images of {domain} without a partner in {other}",
                    str(path.relative_to(folder)),
                )
        pairs = {path: by_name["B"].get(name) for name, path in by_name["A"].items()}
        self.partners |= {path: partner for path, partner in pairs.items() if partner}
        return ImageFiles([path for path, partner in pairs.items() if partner])

    def example_names(
        self, folder: Path, folders: dict[str, dict[str, Path]], images: list[Path]
    ) -> str:
        """Return the first image of each domain, for a message about names."""
        found = {
            domain: next(iter(select_images_below_folder(subs["train"], images)), None)
            for domain, subs in folders.items()
            if "train" in subs
        }
        shown = [f"{path.relative_to(folder)}" for path in found.values() if path]
        return f" (the first are {' and '.join(shown)})" if len(shown) == 2 else ""

    def make_decoder(self, headers: dict[Path, ImageHeader]) -> ImageDecoder:
        if self.partners:
            headers = self.add_partner_headers(headers)
        else:
            headers = self.halve_headers(headers)
        decoder = super().make_decoder(headers)
        return PairDecoder(
            2 * decoder.channels, decoder.side, decoder.crop, self.partners, ranges=decoder.ranges
        )

    def add_partner_headers(self, headers: dict[Path, ImageHeader]) -> dict[Path, ImageHeader]:
        """Return the headers with those of B; note pairs whose images differ in size.

        Raises:
            UserError: the images of a pair differ in shape, such that they cannot be aligned.
        """
        paths = [self.partners[path] for path in headers if path in self.partners]
        # an unreadable one is counted when its pair is decoded
        ignored = UnreadableImages(paths[0].parent, LeftOut(), strict=False)
        found = zip(paths, read_image_headers(paths, ignored), strict=True)
        of_b = {path: header for path, header in found if header}
        differing = 0
        for path, header in headers.items():
            other = of_b.get(self.partners.get(path, path))
            if other is None or (header.width, header.height) == (other.width, other.height):
                continue
            differing += 1
            ratio = (header.width * other.height) / (header.height * other.width)
            if self.crop != "stretch" and abs(ratio - 1) > MAX_RATIO_ERROR:
                raise UserError(
                    f"{path} is {header.width}×{header.height}, but its partner "
                    f"{self.partners[path]} {other.width}×{other.height}: images of a pair need "
                    "the same shape; crop one of them, or set dataset.crop=stretch"
                )
        if differing:
            self.notes.append(f"the images of {differing:,} pairs differ in size; both are resized")
        return headers | of_b

    def remedy_for_dark_images(self, top: int) -> str:
        return "save them brighter"  # the option is for both domains

    def name_parts_of_items(self, x: Tensor) -> dict[str, Tensor]:
        a, b = x.chunk(2, dim=1)
        return {"images of A": a, "images of B": b}

    def halve_headers(self, headers: dict[Path, ImageHeader]) -> dict[Path, ImageHeader]:
        """Return the headers of the halves of files A|B.

        Raises:
            UserError: the files cannot be halved, or look like single images.
        """
        if odd := [path for path, header in headers.items() if header.width % 2]:
            raise UserError(
                f"{odd[0]} is not a pair A|B side by side, because its width is odd; "
                f"give {LAYOUTS}{SINGLE_IMAGES}"
            )
        halves = {path: replace(h, width=h.width // 2) for path, h in headers.items()}
        tall = [path for path, h in halves.items() if h.width != h.height]
        if tall and self.crop is None:
            header = headers[tall[0]]
            raise UserError(
                f"{tall[0]} of {header.width}×{header.height} is read as a pair A|B side by side, "
                f"whose halves of {header.width // 2}×{header.height} are not square: for pairs, "
                f"set dataset.crop=center dataset.size={halves[tall[0]].width} (or another crop "
                f"and size){SINGLE_IMAGES}"
            )
        return halves

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if augment and self.jitter:
            x = enlarge_and_random_crop(x, self.jitter, generator)
        source, target = self.split_into_source_and_target(
            self.preprocess(x, generator, augment=augment)
        )
        return Batch(target, y, source)

    def head_as_uint8_images(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        batch = super().head_as_uint8_images(split, n, seed=seed)
        return Batch(self.split_into_source_and_target(batch.x)[1], batch.y)

    def words_for_draws(self) -> list[str]:
        return super().words_for_draws() + (["enlarged and cropped"] if self.jitter else [])

    def split_into_source_and_target(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return sources and targets (B, C, H, W) of pairs (B, 2C, H, W)."""
        a, b = pairs.chunk(2, dim=1)
        return (a, b) if self.direction == "AtoB" else (b, a)


def enlarge_and_random_crop(x: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Return uint8 images (B, C, H, W), enlarged and randomly cropped to the old size."""
    height, width = x.shape[-2:]
    size = [round(side * (1 + fraction)) for side in (height, width)]
    larger = interpolate(x.float(), size=size, mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    return random_crop(larger, height, generator, width)


# --- no pairs -------------------------------------------------------------------------------------


def list_unpaired_images_by_split(
    folder: Path, domain: str, images: list[Path]
) -> dict[str, ImageFiles]:
    """Return those of the images that are of one domain by split.

    Raises:
        UserError: the domain does not have training images.
    """
    splits = list_domain_images_by_split(folder, domain, images)
    if "train" not in splits or not splits["train"].paths:
        raise UserError(
            f"no training images of {domain} in {real_path(folder)}; looked for {LAYOUTS}"
        )
    return splits


@dataclass(kw_only=True, eq=False)
class SingleDomain(ImageFolder):
    """The images of one domain, A or B."""

    domain: str
    name = "unpaired_folders"

    def list_images_by_split(self, folder: Path) -> dict[str, ImageFiles]:
        return list_unpaired_images_by_split(
            folder, self.domain, list_images_by_rules(folder, self.folder_rules)
        )


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
        source_spec = replace(self.sources.spec, num_classes=0, class_names=())
        self.spec = replace(self.spec, source=source_spec, task="translate")

    def list_images_by_split(self, folder: Path) -> dict[str, ImageFiles]:
        images = list_images_by_rules(folder, self.folder_rules, self.left_out)
        count_images_outside_domains(folder, images, self.left_out)
        return list_unpaired_images_by_split(folder, self.direction[-1], images)

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
        return attach_sources_to_targets(targets, sources)

    def _preprocessed_chunks(
        self, split: str, order: Tensor, seed: int, device: torch.device, **options: Any
    ) -> Iterator[Batch]:
        source_order = order % len(self.sources.splits[split])
        sources = self.sources._preprocessed_chunks(split, source_order, seed, device, **options)
        targets = super()._preprocessed_chunks(split, order, seed, device, **options)
        return attach_sources_to_targets(targets, sources)

    def describe(self) -> DataSummary:
        return replace(super().describe(), source=self.sources.describe())


def attach_sources_to_targets(
    targets: Iterator[Batch], sources: Iterator[Batch]
) -> Iterator[Batch]:
    """Yield each batch of targets with the items of a batch of sources as its `cond`."""
    for target, source in zip(targets, sources, strict=True):
        yield Batch(target.x, target.y, source.x)
