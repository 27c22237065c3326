"""Any folder of images, and CelebA, which is such a folder with lists beside it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Split
from genlab.data.folder_layout import FolderLayout, read_images_by_split_v1
from genlab.data.image_arrays import (
    ARRAY_SUFFIXES,
    convert_to_gray_or_rgb,
    make_square_images,
    read_image_arrays,
)
from genlab.data.image_dataset import Images
from genlab.data.image_decoding import (
    FULL_RANGES,
    Crop,
    Depth,
    ImageDecoder,
    ImageHeader,
    Range,
    default_square_side,
    file_range_of_depth,
)
from genlab.data.image_files import (
    ImageFiles,
    StreamedImages,
    UnreadableImages,
    find_min_and_max_pixel,
    read_image_headers,
)
from genlab.data.image_patches import (
    OwnSizeDecoder,
    PatchImages,
    describe_sizes,
    random_crop,
    suggest_patch_size,
)
from genlab.data.pixel_ranges import BYTE_RANGE, DARK_FRACTION, choose_pixel_range_and_note
from genlab.data.shuffling import ShardIndex, seeded_split_indices
from genlab.data.torchvision_sets import ensure_downloaded
from genlab.errors import UserError, did_you_mean
from genlab.spec import Batch, Count, Fraction, Positive
from genlab.untrusted.files import read_text, real_path

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
        class_names: Sequence[str] = (),
        hints: dict[str, str] | None = None,
    ) -> None:
        """Set the files of each split; they are decoded now if the dataset fits into memory."""
        num_images = sum(len(part.paths) for part in parts.values())
        self.source_files = [
            file
            for part in parts.values()
            for path in part.paths
            for file in decoder.files_of_item(path)
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
                x, index = files.decode_all_readable()
                splits[name] = Split(x, None if part.labels is None else part.labels[index])
            else:
                files.record_file_stamps()
        self.set_image_splits(
            splits, shape=shape, num_classes=num_classes, class_names=class_names, hints=hints
        )


@dataclass(kw_only=True, eq=False)
class ImageFolder(DecodedImages):
    """The images in a folder, flat or in class folders, with optional split folders.

    Split folders are train/, val/ and test/. Instead of a folder, the path may be a file with an
    array of images, .npy or .npz.

    Args:
        path: the folder, or the file of an array; required.
        validation, test: fractions held out by the seed `split_seed`, for splits without a folder.
        labels: whether the subfolders are classes; None: they are if there are at least two, and
            fewer images beside them than in them.
        split_folders: whether folders named train, val and test are splits; None: they are if no
            other folder is beside them.
        file_range: the values that are black and white in the files; None: 0 and 255, or 65535 in
            files of 16 bits, and for floats 0 and 1, or 255.
        folder_rules: how folders and pixels are understood; 1 is that of genlab up to 0.7, whose
            runs keep it.
        patch_size: side of the squares that are cut out of the images, each at its own size:
            anywhere in training, else in the middle. None uses complete images.
    """

    path: str | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.1
    labels: bool | None = None
    split_folders: bool | None = None
    file_range: tuple[float, float] | None = None
    folder_rules: Literal[1, 2] = 2
    patch_size: Positive | None = None
    name = "image_folder"
    has_class_folders: ClassVar[bool] = True  # whether subfolders can be classes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file_range is not None and not self.file_range[0] < self.file_range[1]:
            raise UserError(
                f"dataset.file_range={list(self.file_range)}: the value of black comes first, and "
                "is lower than that of white"
            )
        if not self.path:
            raise UserError(f"{self.name} needs the folder of the images: dataset.path=<folder>")
        folder = Path(self.path).expanduser()
        if folder.is_file():
            self.set_splits_from_array_file(folder)
            return
        if not folder.is_dir():
            raise UserError(
                f"dataset.path={self.path}: no such folder (looked for {real_path(folder)})"
            )
        unreadable = UnreadableImages(folder, self.left_out, strict=self.strict)
        readable: dict[str, ImageFiles] = {}
        headers: dict[Path, ImageHeader] = {}
        for split, files in self.list_images_by_split(folder).items():
            found = read_image_headers(files.paths, unreadable)
            index = [i for i, header in enumerate(found) if header]
            readable[split] = files[torch.tensor(index, dtype=torch.int64)]
            headers.update(zip(readable[split].paths, filter(None, found), strict=True))
        if not headers:
            raise UserError(f"{folder}: {'; '.join(self.left_out.lines())}; no image is left")
        if self.patch_size and self.side is None:
            headers = self.leave_out_small_images(headers)
            readable = {
                split: select_files_with_headers(files, headers)
                for split, files in readable.items()
            }
        decoder = self.make_decoder(headers)
        self.add_header_notes(headers, decoder)
        parts = self.add_missing_splits(readable)
        options: dict[str, Any] = {
            "num_classes": len(parts["train"].class_names),
            "class_names": parts["train"].class_names,
            "hints": dict.fromkeys(SPLITS, SPLIT_HINT),
        }
        if decoder.side is None:
            self.set_patch_splits(parts, decoder, unreadable, headers, **options)
        else:
            self.set_file_splits(parts, decoder, unreadable, **options)
        self.refuse_black_images(headers)

    def list_images_by_split(self, folder: Path) -> dict[str, ImageFiles]:
        """Return the images of each split that has a folder; without such folders all are train."""
        if self.folder_rules == 1:
            return read_images_by_split_v1(folder)
        return FolderLayout(
            folder,
            self.left_out,
            self.notes,
            split_folders=self.split_folders,
            labels=self.labels if self.has_class_folders else False,
        ).read_images_by_split()

    def set_splits_from_array_file(self, file: Path) -> None:
        """Set the splits of the images in a .npy or .npz file.

        Raises:
            UserError: it is another file, or the dataset requires a folder.
        """
        if type(self) is not ImageFolder:
            raise UserError(f"dataset.path={self.path} is a file; {self.name} needs a folder")
        if file.suffix.lower() not in ARRAY_SUFFIXES:
            hint = "; for a table, use dataset=table" if file.suffix.lower() == ".csv" else ""
            raise UserError(
                f"dataset.path={self.path} is a file: give a folder of images, or an array of "
                f"images as .npy or .npz{hint}"
            )
        arrays = read_image_arrays(file, self.file_range, use_labels=self.labels is not False)
        self.notes.extend(arrays.notes)
        for name in arrays.unused:
            self.left_out.add("unused array", name)
        self.source_files = [file]
        splits = {}
        for split, (pixels, y) in arrays.splits.items():
            x = make_square_images(pixels, self.side, self.crop)
            splits[split] = Split(convert_to_gray_or_rgb(x, self.channels), y)
        sizes = {split: len(part) for split, part in splits.items()}
        for split, index in self.missing_split_indices(sizes).items():
            splits[split] = splits["train"].subset(index)
        shape = splits["train"].x.shape[1:]
        self.set_image_splits(
            splits,
            shape=tuple(shape),
            num_classes=arrays.num_classes,
            class_names=arrays.class_names,
            hints=dict.fromkeys(SPLITS, SPLIT_HINT),
        )

    def add_missing_splits(self, splits: dict[str, ImageFiles]) -> dict[str, ImageFiles]:
        """Return all three splits; those without a folder are seeded fractions of train."""
        sizes = {split: len(files.paths) for split, files in splits.items()}
        added = self.missing_split_indices(sizes)
        return splits | {split: splits["train"][index] for split, index in added.items()}

    def missing_split_indices(self, sizes: dict[str, int]) -> dict[str, Tensor]:
        """Return the indices in train of the splits that are missing, and of the rest as train.

        Args:
            sizes: number of images of the splits that exist.

        Raises:
            UserError: nothing is left to train on.
        """
        fractions = {"test": self.test, "validation": self.validation}
        missing = [split for split in fractions if split not in sizes]
        n = sizes["train"]
        held_out = [round(fractions[split] * n) for split in missing]
        *indices, rest = seeded_split_indices(n, held_out, self.split_seed)
        if not len(rest):
            raise UserError(
                f"dataset.validation={self.validation:g} and dataset.test={self.test:g} leave none "
                f"of the {n:,} images to train on"
            )
        return {**dict(zip(missing, indices, strict=True)), "train": rest}

    def make_decoder(self, headers: dict[Path, ImageHeader]) -> ImageDecoder:
        """Return a decoder that gives every image the same shape, or its own to cut patches from.

        Raises:
            UserError: an option is needed for that; the message says which.
        """
        channels = self.channels or (1 if all(h.is_gray for h in headers.values()) else 3)
        not_square = {path: h for path, h in headers.items() if h.width != h.height}
        sides = Counter(default_square_side(header, self.crop) for header in headers.values())
        common = sides.most_common(1)[0][0]
        needs_size = self.side is None and len(sides) > 1
        if self.patch_size and self.side is None and (needs_size or not_square):
            if self.crop is not None:
                raise UserError(
                    f"dataset.patch_size={self.patch_size} cuts patches out of images of any "
                    f"shape; leave dataset.crop={self.crop} out, or set dataset.size too"
                )
            return OwnSizeDecoder(
                channels, None, None, ranges=self.find_pixel_range_by_depth(headers)
            )
        patches = ""
        if "patch_size" in {field.name for field in fields(self) if field.init}:
            side = suggest_patch_size(headers)
            patches = f"; or cut squares at their own size: dataset.patch_size={side}"
        if not_square and self.crop is None:
            path, header = next(iter(not_square.items()))
            raise UserError(
                f"{len(not_square):,} of {len(headers):,} images are not square, as {path} of "
                f"{header.width}×{header.height}; choose how to make them square: "
                f"dataset.crop=center{f' dataset.size={common}' if needs_size else ''} "
                f"(or pad, or stretch){patches}"
            )
        is_stretched = bool(not_square) and self.crop == "stretch"
        if self.side is None and (needs_size or is_stretched):
            reason = (
                "stretching needs a size"
                if is_stretched
                else f"the images have {len(sides)} different sizes"
            )
            raise UserError(
                f"{reason}: set their side in pixels, as dataset.size={common}{patches}"
            )
        return ImageDecoder(
            channels=channels,
            side=self.side or next(iter(sides)),
            crop=self.crop,
            ranges=self.find_pixel_range_by_depth(headers),
        )

    # --- patches ----------------------------------------------------------------------------------

    def leave_out_small_images(self, headers: dict[Path, ImageHeader]) -> dict[Path, ImageHeader]:
        """Return the headers of images that a patch fits into; the others are counted.

        Raises:
            UserError: no image is large enough.
        """
        size = self.patch_size or 0
        large = {path: h for path, h in headers.items() if min(h.width, h.height) >= size}
        for path in headers:
            if path not in large:
                self.left_out.add(f"smaller than the patches of {size}×{size}", path.name)
        if not large:
            raise UserError(
                f"dataset.patch_size={size}: none of the {describe_sizes(headers)} is as large; "
                f"set dataset.patch_size={suggest_patch_size(headers)}"
            )
        return large

    def set_patch_splits(
        self,
        parts: dict[str, ImageFiles],
        decoder: ImageDecoder,
        unreadable: UnreadableImages,
        headers: dict[Path, ImageHeader],
        **options: Any,
    ) -> None:
        """Set the files of each split, of which patches are cut at each image's own size."""
        assert self.patch_size is not None
        self.source_files = [path for part in parts.values() for path in part.paths]
        use_memory = self.cache_in_memory
        if use_memory is None:
            num_values = decoder.channels * sum(h.width * h.height for h in headers.values())
            use_memory = num_values / 2**20 <= self.cache_limit_mb
        splits = {}
        for name, part in parts.items():
            files = PatchImages(part.paths, decoder, unreadable, size=self.patch_size)
            splits[name] = Split(files, part.labels)
            if part.paths and use_memory:
                splits[name] = splits[name].subset(files.decode_all_into_memory())
            else:
                files.record_file_stamps()
        shape = (decoder.channels, self.patch_size, self.patch_size)
        self.set_image_splits(splits, shape=shape, **options)
        self.notes.append(
            f"patches of {self.patch_size}×{self.patch_size} from {describe_sizes(headers)}, each "
            "at its own size: anywhere in training, else the middle"
        )

    def set_image_splits(
        self, splits: dict[str, Split], *, shape: tuple[int, ...], **options: Any
    ) -> None:
        if self.patch_size:
            channels, height, width = shape
            if self.patch_size > min(height, width):
                raise UserError(
                    f"dataset.patch_size={self.patch_size} is larger than the images "
                    f"({width}×{height}); set dataset.patch_size={min(height, width)}"
                )
            shape = (channels, self.patch_size, self.patch_size)
        super().set_image_splits(splits, shape=shape, **options)

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if self.patch_size:
            x = random_crop(x, self.patch_size, generator if augment else None)
        return super().make_batch(x, y, generator, augment=augment)

    def words_for_draws(self) -> list[str]:
        patches = ["patches anywhere in the images"] if self.patch_size else []
        return super().words_for_draws() + patches

    def head_as_uint8_images(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        batch = super().head_as_uint8_images(split, n, seed=seed)
        return replace(batch, x=self.crop_middle_patch(batch.x))

    def raw_items_and_labels(self, split: str) -> tuple[Tensor, Tensor | None]:
        source = self._require_nonempty_split(split)
        if not isinstance(source.x, PatchImages):
            x, y = super().raw_items_and_labels(split)
            return self.crop_middle_patch(x), y
        order = ShardIndex(0, -1, torch.arange(len(source)))
        (_, _, x, y), *_ = self._raw_batches(split, iter([order]), torch.device("cpu"))
        return x, y

    def crop_middle_patch(self, x: Tensor) -> Tensor:
        """Return the middle patch of images (N, C, H, W), or the images without a patch size."""
        return random_crop(x, self.patch_size, None) if self.patch_size else x

    # --- pixels -----------------------------------------------------------------------------------

    def find_pixel_range_by_depth(self, headers: dict[Path, ImageHeader]) -> dict[Depth, Range]:
        """Return the values that are black and white, by the depth of the files.

        Raises:
            UserError: they cannot be known; the message says what to set.
        """
        if self.folder_rules == 1:
            wide = FULL_RANGES["16-bit"]
            return {"32-bit": wide, "16-bit inverted": wide, "float": FULL_RANGES["8-bit"]}
        by_depth: dict[Depth, list[Path]] = {}
        for path, header in headers.items():
            by_depth.setdefault(header.depth, []).append(path)
        if self.file_range is not None:
            deep: list[Depth] = [depth for depth in by_depth if depth != "8-bit"]
            return {d: file_range_of_depth(d, self.file_range) for d in deep or ["8-bit"]}
        ranges: dict[Depth, Range] = {}
        for depth, paths in by_depth.items():
            extent = None if depth == "8-bit" else find_min_and_max_pixel(paths)
            if extent is not None:
                kind = "32-bit integer" if depth == "32-bit" else depth
                what = f"the {len(paths):,} {kind} images, as {paths[0].name},"
                ranges[depth], note = choose_pixel_range_and_note(depth, extent, what)
                self.notes.append(note)
        return ranges

    def add_header_notes(self, headers: dict[Path, ImageHeader], decoder: ImageDecoder) -> None:
        """Note what happens to images of several pages, of transparency, or without color."""
        for path, header in headers.items():
            if header.pages > 1:
                self.left_out.add("later pages or frames of a file", path.name, header.pages - 1)
        if transparent := sum(header.has_transparency for header in headers.values()):
            self.notes.append(f"{transparent:,} images have transparency, which is laid over white")
        if profiles := sum(header.has_other_profile for header in headers.values()):
            self.notes.append(
                f"{profiles:,} images have a color profile other than sRGB, which is not applied: "
                "their colors are read as sRGB; convert them to sRGB if they are to be exact"
            )
        gray = sum(header.is_gray for header in headers.values())
        if 0 < gray < len(headers) and self.channels is None:
            self.notes.append(f"{gray:,} of {len(headers):,} images are gray, and read as color")
        if gray < len(headers) and self.channels == 1:
            self.notes.append(f"{len(headers) - gray:,} images have color, and are read as gray")

    def refuse_black_images(self, headers: dict[Path, ImageHeader]) -> None:
        """Refuse files of bytes whose values are only 0 and 1; note those that are nearly black.

        Raises:
            UserError: says what to set.
        """
        x = self.splits["train"].x
        if self.folder_rules == 1 or self.file_range is not None or not isinstance(x, Tensor):
            return
        if not len(x) or any(header.depth != "8-bit" for header in headers.values()):
            return
        top = int(x.max())
        if top == 1:
            raise UserError(
                f"the images of {self.path} have no other values than 0 and 1, and would be black: "
                "set dataset.file_range=[0,1]"
            )
        for what, part in self.name_parts_of_items(x).items():
            top = int(part.max())
            if 0 < top < DARK_FRACTION * BYTE_RANGE[1]:
                self.notes.append(
                    f"the {what} are nearly black: no value is above {top} of 255, as of numbers "
                    f"of classes; if {top} is white, {self.remedy_for_dark_images(top)}"
                )

    def remedy_for_dark_images(self, top: int) -> str:
        """Return what to do if the value `top` is white."""
        return f"set dataset.file_range=[0,{top}]"

    def name_parts_of_items(self, x: Tensor) -> dict[str, Tensor]:
        """Return the raw images that items (N, C, H, W) consist of, by what they are."""
        return {"images": x}


def select_files_with_headers(files: ImageFiles, headers: dict[Path, ImageHeader]) -> ImageFiles:
    """Return the files whose headers are among `headers`."""
    index = [i for i, path in enumerate(files.paths) if path in headers]
    return files[torch.tensor(index, dtype=torch.int64)]


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
        root = Path(self.root).expanduser()
        base = root / "celeba"
        folder = base / "img_align_celeba"
        partition, attributes = base / "list_eval_partition.txt", base / "list_attr_celeba.txt"
        ensure_downloaded(
            self.name,
            root,
            [folder, partition, attributes],
            self.download_with_torchvision if self.download else None,
            f"img_align_celeba/*.jpg, {partition.name} and {attributes.name} into {base}",
        )
        parts = self.read_splits_and_labels(folder, partition, attributes)
        if self.crop is None or (self.crop == "stretch" and self.side is None):
            raise UserError(
                "celeba is 178×218: set dataset.crop=center or pad, or stretch with dataset.size=64"
            )
        header = ImageHeader(CELEBA_WIDTH, CELEBA_HEIGHT, is_gray=False)
        side = self.side or default_square_side(header, self.crop)
        decoder = ImageDecoder(channels=self.channels or 3, side=side, crop=self.crop)
        unreadable = UnreadableImages(folder, self.left_out, strict=self.strict)
        names = [f"not {self.label}", self.label] if self.label else []
        self.set_file_splits(parts, decoder, unreadable, num_classes=len(names), class_names=names)

    def download_with_torchvision(self) -> None:
        """Download the files with torchvision."""
        from torchvision import datasets  # takes two seconds to import: only where it is used

        datasets.CelebA(self.root, download=True)

    def read_splits_and_labels(
        self, folder: Path, partition: Path, attributes: Path
    ) -> dict[str, ImageFiles]:
        """Return the files of each split, with labels by the attribute `label`.

        Raises:
            UserError: a list is damaged, or the attribute does not exist.
        """
        try:
            rows = [line.split() for line in read_text(partition).splitlines() if line.strip()]
            names, numbers = zip(*((name, int(number)) for name, number in rows), strict=True)
            labels = self.read_attribute_labels(attributes)
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

    def read_attribute_labels(self, attributes: Path) -> dict[str, int] | None:
        """Return each file's class by the attribute `label`, or None without a label."""
        if self.label is None:
            return None
        _, names, *rows = read_text(attributes).splitlines()
        known = names.split()
        if self.label not in known:
            raise UserError(
                f"dataset.label={self.label}: no such attribute{did_you_mean(self.label, known)}"
            )
        column = known.index(self.label) + 1
        return {row.split()[0]: int(row.split()[column] == "1") for row in rows if row.strip()}
