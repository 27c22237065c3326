"""Samples that were drawn elsewhere: a folder of images, or an array in a file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genlab.data.image_decoding import (
    DECODE_ERRORS,
    Crop,
    Range,
    crop_pad_or_stretch_to_square,
    image_to_uint8_tensor,
    read_image,
    read_image_header,
)
from genlab.data.image_files import (
    ImageFiles,
    find_images_with_labels,
)
from genlab.data.mixed_table_units import MixedTableUnits, read_mixed_table_samples
from genlab.data.npy_files import read_label_array, read_numpy_arrays
from genlab.data.pixel_ranges import find_pixel_ranges
from genlab.data.summary import LeftOut
from genlab.data.table_samples import read_table_samples
from genlab.data.table_units import TableUnits
from genlab.errors import UserError
from genlab.spec import Batch, DataSpec
from genlab.untrusted.files import is_inside_folder

RANGE_TOLERANCE = 0.05  # of the range, by which floats may leave it: samplers overshoot a little


def read_samples(
    path: Path,
    spec: DataSpec,
    units: TableUnits | None = None,
    *,
    resize: Crop | None = None,
    file_range: Range | None = None,
    notes: list[str] | None = None,
) -> Batch:
    """Return the samples at `path` in the range of `spec`, with labels if they have any.

    A folder of images (its class folders are the labels, numbered by name); a .npy array; or a .npz
    with the array x (or arr_0, or its only one) and labels y. Integers are (N, H, W, C) or
    (N, C, H, W) from 0 to 255, booleans are black and white; floats are in the data's range, or in
    that of the file's array `range`. Samples of a table, whose `units` are given, are read by
    `read_table_samples` or `read_mixed_table_samples`.

    Args:
        resize: how images of another size are made square and resized; None refuses them.
        file_range: the values that are black and white in images of more than 8 bits, as in the
            files of the data; None decides by the values.
        notes: receives a sentence for each decision.

    Raises:
        UserError: there is nothing readable, or it has another shape or range than the data.
    """
    if not path.exists():
        raise UserError(f"samples={path}: no such file or folder")
    if path.is_dir():
        return read_sample_folder(path, spec, resize, file_range, [] if notes is None else notes)
    if resize is not None:
        raise UserError(f"resize={resize} is for a folder of images; samples={path} is a file")
    if isinstance(units, MixedTableUnits):
        return read_mixed_table_samples(path, spec, units)
    if units is not None:
        return read_table_samples(path, spec, units)
    arrays = read_numpy_arrays(path, f"samples={path}")
    name = next(
        (key for key in ("x", "arr_0") if key in arrays),
        next(iter(arrays)) if len(arrays) == 1 else None,
    )
    if name is None:
        raise UserError(
            f"samples={path} has the arrays {', '.join(arrays)}: name the samples x, and their "
            "labels y"
        )
    x = torch.from_numpy(arrays[name])
    if not x.ndim or not x.numel():
        raise UserError(f"samples={path} does not contain samples")
    y = None
    if "y" in arrays:
        what = f"samples={path}"
        y = torch.from_numpy(read_label_array(arrays["y"], len(x), spec.num_classes, what))
    range_: tuple[float, ...] = spec.range
    if "range" not in arrays:
        refuse_ambiguous_unit_range(x, spec, path)
    else:
        range_ = tuple(arrays["range"].reshape(-1).astype(float).tolist())
    if len(range_) != 2 or not -math.inf < range_[0] < range_[1] < math.inf:
        raise UserError(
            f"samples={path}: its range is {range_}; it must be two numbers, the lower first"
        )
    return Batch(scale_to_model_range(x, range_, spec, path), y)


def refuse_ambiguous_unit_range(x: Tensor, spec: DataSpec, path: Path) -> None:
    """Refuse floats in [0, 1] for data in a range around 0, where all would be light gray.

    Raises:
        UserError: says how to state the range.
    """
    if spec.kind != "image" or not x.is_floating_point() or not x.isfinite().all():
        return
    low, high = x.min().item(), x.max().item()
    if spec.range[0] < 0 <= low < high <= 1 and high > 0.5:
        raise UserError(
            f"samples={path} go from {low:.3g} to {high:.3g}, and the data is in "
            f"[{spec.range[0]:g}, {spec.range[1]:g}]: if they are in [0, 1], set "
            "preprocess.range=[0,1]; else state their range as the array `range` of a .npz"
        )


# --- folders of images ----------------------------------------------------------------------------


def read_sample_folder(
    path: Path, spec: DataSpec, resize: Crop | None, file_range: Range | None, notes: list[str]
) -> Batch:
    """Return the images in and below a folder, in their own size or resized as requested."""
    left_out = LeftOut()
    files = find_images_with_labels(path, left_out)
    if not files.paths:
        raise UserError(f"samples={path}: no image in that folder")
    if spec.kind != "image":
        raise UserError(
            f"samples={path} has images, and the dataset has {spec.kind}; give an .npz or .npy"
        )
    notes += left_out.lines()
    ranges = find_pixel_ranges(files.paths, f"samples={path}", notes, file_range)
    sizes: Counter[str] = Counter()
    num_gray = 0
    images = []
    for file in files.paths:
        if not is_inside_folder(file, path):
            raise UserError(
                f"{file} is a link to outside of samples={path}; put the image itself there"
            )
        try:
            header = read_image_header(file)
            image = read_image(file, 3, ranges)  # (3, H, W)
            if header.pages > 1:
                raise ValueError(f"it has {header.pages} images; save each as its own file")
        except DECODE_ERRORS as error:
            raise UserError(f"unreadable image {file}: {error}") from error
        num_gray += header.is_gray
        image = match_channels_to_data(image, spec.shape[0], file)
        if image.shape != spec.shape:
            image = resize_sample_to_data(image, spec, file, resize)
            sizes[f"{header.width}×{header.height}"] += 1
        images.append(image)
    if spec.shape[0] > 1 and num_gray == len(files.paths):
        raise UserError(
            f"samples={path} are gray, and the dataset is in color; convert them to RGB if they "
            "are to be compared with it"
        )
    if sizes:
        found = ", ".join(f"{count:,} of {size}" for size, count in sizes.most_common(5))
        notes.append(f"resized to {spec.shape[2]}×{spec.shape[1]} with resize={resize}: {found}")
    labels = labels_from_class_folders(files, spec, notes)
    return Batch(scale_to_model_range(torch.stack(images), spec.range, spec, path), labels)


def match_channels_to_data(image: Tensor, channels: int, file: Path) -> Tensor:
    """Return an image (3, H, W) with the data's channels.

    Raises:
        UserError: the data is gray, and the image has colors.
    """
    if channels == 1:
        if not (image == image[:1]).all():
            raise UserError(
                f"{file} is in color, and the dataset is gray; convert the samples to gray first"
            )
        return image[:1]
    return image


def resize_sample_to_data(image: Tensor, spec: DataSpec, file: Path, resize: Crop | None) -> Tensor:
    """Return an image of another size with the size of the data.

    Raises:
        UserError: no way to resize is given.
    """
    _, height, width = image.shape
    if resize is None or image.shape[0] != spec.shape[0]:
        size = f"preprocess.size={width} to measure at their size, or " if width == height else ""
        raise UserError(
            f"{file} is {format_image_shape(tuple(image.shape))}, and the dataset "
            f"{format_image_shape(spec.shape)}; set {size}resize=center, pad or stretch to resize "
            "the samples"
        )
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    return image_to_uint8_tensor(crop_pad_or_stretch_to_square(picture, spec.shape[-1], resize))


def labels_from_class_folders(files: ImageFiles, spec: DataSpec, notes: list[str]) -> Tensor | None:
    """Return the classes that folders of samples are named after; None without such folders.

    The folders have the names of the data's classes, if these have names.
    """
    if files.labels is None or not spec.class_names:
        return files.labels
    numbers = {str(name): i for i, name in enumerate(spec.class_names)}
    if unknown := [name for name in files.class_names if name not in numbers]:
        notes.append(
            f"no labels: the folder {unknown[0]} is not a class of the data "
            f"({', '.join(spec.class_names[:10])})"
        )
        return None
    return torch.tensor([numbers[name] for name in files.class_names])[files.labels]


# --- ranges ---------------------------------------------------------------------------------------


def scale_to_model_range(
    x: Tensor, range_: tuple[float, ...], spec: DataSpec, path: Path
) -> Tensor:
    """Return samples (N, …) of a range as float32 (N, *shape) in the range of `spec`."""
    is_image = spec.kind == "image"
    if is_image and x.ndim == 3 and spec.shape[0] == 1:
        x = x.unsqueeze(1)  # (N, H, W)
    if is_image and x.ndim == 4 and x.shape[1:] != spec.shape and x.shape[-1] == spec.shape[0]:
        x = x.permute(0, 3, 1, 2)  # channels last
    if tuple(x.shape[1:]) != tuple(spec.shape):
        fix = "; set preprocess.size to measure at the samples' size" if is_image else ""
        raise UserError(
            f"samples={path} are {tuple(x.shape[1:])} each, and the dataset's items {spec.shape}"
            f"{fix}"
        )
    low, high = spec.range
    if is_image and x.dtype == torch.bool:
        return low + (high - low) * x.float()
    if is_image and not x.is_floating_point():
        return spec.from_bytes(require_byte_levels(x, path).float())
    x = x.float()
    if not x.isfinite().all():
        raise UserError(f"samples={path} has numbers that are not finite")
    if is_image:
        bottom, top = range_
        tolerance = RANGE_TOLERANCE * (top - bottom)
        if x.min() < bottom - tolerance or x.max() > top + tolerance:
            raise UserError(
                f"samples={path} go from {x.min():.3g} to {x.max():.3g}, outside of "
                f"[{bottom:g}, {top:g}]; set preprocess.range to theirs, or give bytes"
            )
        x = low + (high - low) * (x - bottom) / (top - bottom)
    return x


def require_byte_levels(x: Tensor, path: Path) -> Tensor:
    """Return integers that are gray levels from 0 to 255.

    Raises:
        UserError: they are others, or 0 and 1 only, which would be black throughout.
    """
    low, high = int(x.min()), int(x.max())
    if low < 0 or high > 255:
        raise UserError(
            f"samples={path} are integers from {low} to {high}; gray levels are from 0 to 255"
        )
    if high == 1:
        raise UserError(
            f"samples={path} are integers of 0 and 1: save black and white as booleans, or as "
            "bytes 0 and 255"
        )
    return x


def format_image_shape(shape: tuple[int, ...]) -> str:
    """Return the shape (C, H, W) of an image in words."""
    c, h, w = shape
    return f"{w}×{h} in {c} channel{'' if c == 1 else 's'}"
