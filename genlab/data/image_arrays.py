"""Arrays of images in .npy and .npz files, with labels and splits by the arrays' names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from genlab.data.folder_layout import split_from_folder_name
from genlab.data.image_dataset import RESIZE_BATCH_SIZE, resize_images
from genlab.data.image_decoding import Crop, Depth, Range, scale_to_bytes
from genlab.data.image_files import normalize_to_nfc, sort_class_names
from genlab.data.npy_files import read_numpy_arrays
from genlab.data.pixel_ranges import BINARY_RANGE, BYTE_RANGE, choose_pixel_range_and_note
from genlab.errors import UserError

ARRAY_SUFFIXES = (".npy", ".npz")
IMAGE_NAMES = ("x", "images", "image", "imgs", "img", "data", "samples", "arr_0")
LABEL_NAMES = ("y", "labels", "label", "targets", "target", "arr_1")
CLASS_NAMES = ("class_names", "classes", "label_names")  # of the array with the names of classes
CHANNELS = (1, 3, 4)
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in gray (ITU-R 601), as Pillow's
CHUNK = 1024  # images converted at once

Arrays = dict[str, np.ndarray]


@dataclass
class ImageArrays:
    """The images of a file.

    Attributes:
        splits: split -> (pixels uint8 (N, C, H, W), labels int64 (N,) or None).
        notes: decisions made while reading, each one sentence.
        unused: names of the arrays that are not used.
    """

    splits: dict[str, tuple[Tensor, Tensor | None]]
    num_classes: int = 0
    class_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def read_image_arrays(
    file: Path, file_range: Range | None = None, *, use_labels: bool = True
) -> ImageArrays:
    """Return the images of a .npy or .npz file.

    The images are (N, H, W), (N, H, W, C) or (N, C, H, W), named x, images or arr_0; the labels y
    or labels. Names such as x_train and test_labels give the splits.

    Args:
        file_range: the values that are black and white; None decides by the values.

    Raises:
        UserError: the file cannot be read, or it is not clear what it contains.
    """
    what = f"dataset.path={file}"
    arrays = read_numpy_arrays(file, what, allow_text=True)
    named_splits = {name: split_and_role_from_name(name, array) for name, array in arrays.items()}
    images = arrays_of_role_by_split(arrays, named_splits, "images")
    labels = arrays_of_role_by_split(arrays, named_splits, "labels") if use_labels else {}
    if "train" not in images:
        images = {"train": arrays[name_of_only_image_array(arrays, what)], **images}
    names = next((arrays[name] for name in CLASS_NAMES if name in arrays), None)
    used = {id(a) for a in (*images.values(), *labels.values(), names, arrays.get("range"))}
    found = ImageArrays({}, unused=[name for name in arrays if id(arrays[name]) not in used])
    pixels = {split: to_channels_last(array, what) for split, array in images.items()}
    if any(array.ndim == 4 and array.shape[3] not in CHANNELS for array in images.values()):
        found.notes.append("the arrays of images are read as (N, C, H, W)")
    if len(shapes := {array.shape[1:] for array in pixels.values()}) > 1:
        raise UserError(f"{what}: the splits have images of different shapes {sorted(shapes)}")
    if next(iter(shapes))[-1] == 4:
        found.notes.append("the fourth channel is transparency, which is laid over white")
    if file_range is None and "range" in arrays:  # as `genlab sample` writes it
        file_range = parse_recorded_range(arrays["range"], what)
        found.notes.append(f"{file_range[0]:g} is black and {file_range[1]:g} white: its `range`")
    range_, note = find_pixel_range_and_note(pixels, file_range, file.name)
    found.notes += [note] if note else []
    for split, y in labels_to_class_numbers(found, labels, names, what).items():
        if split in pixels and len(y) != len(pixels[split]):
            raise UserError(
                f"{what} has {len(pixels[split]):,} images and {len(y):,} labels of {split}; "
                "dataset.labels=false ignores the labels"
            )
        labels[split] = y
    if labels and (unlabeled := pixels.keys() - labels.keys()):
        raise UserError(
            f"{what}: the images of {sorted(unlabeled)[0]} do not have labels, but others do; "
            "dataset.labels=false ignores the labels"
        )
    for split, array in pixels.items():
        y_tensor = torch.from_numpy(labels[split]) if labels else None
        found.splits[split] = to_uint8_channels_first(array, range_), y_tensor
    return found


# --- which array is what --------------------------------------------------------------------------


def split_and_role_from_name(
    name: str, array: np.ndarray
) -> tuple[str, Literal["images", "labels"]] | None:
    """Return the split and the role that an array's name says; None for other arrays."""
    words = [word for word in re.split(r"[_\-./ ]+", name.lower()) if word]
    splits = [split for word in words if (split := split_from_folder_name(word))]
    rest = "_".join(word for word in words if not split_from_folder_name(word))
    split = splits[0] if splits else "train"
    if rest in LABEL_NAMES and array.ndim <= 2:
        return split, "labels"
    if rest in IMAGE_NAMES or (not rest and array.ndim > 2):
        return split, "images"
    return None


def arrays_of_role_by_split(
    arrays: Arrays,
    roles: Mapping[str, tuple[str, str] | None],
    role: str,
) -> Arrays:
    """Return the first array of a role for each split."""
    found: Arrays = {}
    for name, split_and_role in roles.items():
        if split_and_role is not None and split_and_role[1] == role:
            found.setdefault(split_and_role[0], arrays[name])
    return found


def name_of_only_image_array(arrays: Arrays, what: str) -> str:
    """Return the name of the only array that may have images.

    Raises:
        UserError: there is none, or there are several.
    """
    names = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    if len(names) != 1:
        listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no array"
        raise UserError(
            f"{what} has {listed}: name the training images x or x_train, as (N, H, W) or "
            "(N, H, W, C), and their labels y or y_train"
        )
    return names[0]


def to_channels_last(x: np.ndarray, what: str) -> np.ndarray:
    """Return images as (N, H, W, C).

    Raises:
        UserError: the shape is not that of images.
    """
    if x.dtype.kind == "U":
        raise UserError(f"{what}: the images are text")
    if x.ndim == 3 and x.shape[2] in (3, 4) and x.shape[1] != x.shape[2]:
        raise UserError(
            f"{what} has the shape {x.shape}, which is one image, or {x.shape[0]} images of "
            f"{x.shape[2]}×{x.shape[1]}: give (N, H, W, C)"
        )
    if x.ndim == 3 and len(x):
        return x[..., None]
    if x.ndim == 4 and len(x) and x.shape[3] in CHANNELS:
        return x
    if x.ndim == 4 and len(x) and x.shape[1] in CHANNELS:
        return x.transpose(0, 2, 3, 1)
    hint = ""
    if x.ndim == 2 and (side := math.isqrt(x.shape[1])) ** 2 == x.shape[1]:
        hint = f"; reshape the rows to {(len(x), side, side)}"
    raise UserError(
        f"{what} has the shape {x.shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W) with "
        f"1 or 3 channels, or 4 with transparency{hint}"
    )


# --- labels ---------------------------------------------------------------------------------------


def labels_to_class_numbers(
    found: ImageArrays, labels: Arrays, names: np.ndarray | None, what: str
) -> Arrays:
    """Return the labels of each split as numbers int64 (N,), and set the classes of `found`.

    Args:
        names: the names of the classes in the file, if it has them.

    Raises:
        UserError: the labels are not one class per image.
    """
    if not labels:
        return {}
    flat = {split: labels_to_1d(y, found.notes, what) for split, y in labels.items()}
    values, inverse = np.unique(np.concatenate(list(flat.values())), return_inverse=True)
    if len(values) > max(10, sum(map(len, flat.values())) // 2):
        raise UserError(
            f"{what}: the labels have {len(values):,} different values for "
            f"{sum(map(len, flat.values())):,} images; dataset.labels=false ignores them"
        )
    if values.dtype.kind == "U":
        found.class_names = sort_class_names(values.tolist())
        order = [found.class_names.index(normalize_to_nfc(value)) for value in values.tolist()]
        inverse = np.array(order)[inverse]
    elif values[0] != 0 or values[-1] != len(values) - 1:
        found.class_names = [str(value) for value in values.tolist()]
    elif names is not None and names.dtype.kind == "U" and names.shape == values.shape:
        found.class_names = [normalize_to_nfc(name) for name in names.tolist()]
    found.num_classes = len(values)
    ends = np.cumsum([len(y) for y in flat.values()])[:-1]
    return dict(zip(flat, np.split(inverse.astype(np.int64), ends), strict=True))


def labels_to_1d(y: np.ndarray, notes: list[str], what: str) -> np.ndarray:
    """Return labels (N,), integers or text, of labels (N,), (N, 1) or one-hot (N, K).

    Raises:
        UserError: the labels are not one class per image.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    is_binary = y.ndim == 2 and y.dtype.kind != "U" and ((y == 0) | (y == 1)).all()
    if is_binary and (y.sum(1) == 1).all():
        notes.append("the labels are one-hot vectors")
        return y.argmax(1)
    ignore = "dataset.labels=false ignores them"
    if y.ndim != 1:
        raise UserError(f"{what}: the labels are {y.shape}, not one per image; {ignore}")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.rint(y)).any():
            raise UserError(f"{what}: some labels are not integers; {ignore}")
        y = y.astype(np.int64)
    return y if y.dtype.kind == "U" else y.astype(np.int64)


# --- pixels ---------------------------------------------------------------------------------------


def find_pixel_range_and_note(
    pixels: Arrays, file_range: Range | None, what: str
) -> tuple[Range, str]:
    """Return the values that are black and white, and a note about them; "" for bytes.

    Args:
        what: the file, for messages.

    Raises:
        UserError: they cannot be known, or a value is not finite.
    """
    kinds = {array.dtype.kind for array in pixels.values()}
    is_bytes = all(array.dtype == np.uint8 for array in pixels.values())
    if "f" in kinds and not all(
        np.isfinite(part).all() for array in pixels.values() for part in iterate_chunks(array)
    ):
        raise UserError(f"{what} has pixels that are not finite (NaN or infinite)")
    if file_range is not None:
        return file_range, ""
    extent = (
        min(float(array.min()) for array in pixels.values()),
        max(float(array.max()) for array in pixels.values()),
    )
    if kinds == {"b"}:
        return BINARY_RANGE, ""
    if is_bytes and extent[1] != 1:
        return choose_pixel_range_and_note("8-bit", extent, f"the images of {what}")[0], ""
    depth: Depth = "float" if "f" in kinds else "32-bit"
    if all(array.dtype == np.uint16 for array in pixels.values()):
        depth = "16-bit"
    return choose_pixel_range_and_note(depth, extent, f"the images of {what}")


def parse_recorded_range(values: np.ndarray, what: str) -> Range:
    """Return the range of the pixels that a file states.

    Raises:
        UserError: it is not two numbers, the lower first.
    """
    numbers = values.reshape(-1).tolist()
    if len(numbers) != 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
        raise UserError(f"{what}: its range is {numbers}; it must be two numbers, the lower first")
    return float(numbers[0]), float(numbers[1])


def iterate_chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in parts of CHUNK items."""
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK]


def to_uint8_channels_first(array: np.ndarray, range_: Range) -> Tensor:
    """Return images (N, H, W, C) as uint8 (N, C, H, W), with transparency laid over white."""
    n, height, width, channels = array.shape
    has_transparency = channels == 4
    x = torch.empty(n, channels - has_transparency, height, width, dtype=torch.uint8)
    for i, part in enumerate(iterate_chunks(array)):
        is_plain = part.dtype == np.uint8 and range_ == BYTE_RANGE
        values = part if is_plain else scale_to_bytes(part, range_)
        if has_transparency:
            opacity = values[..., 3:].astype(np.float32) / 255
            over_white = 255 + (values[..., :3].astype(np.float32) - 255) * opacity
            values = np.rint(over_white).astype(np.uint8)
        x[i * CHUNK : (i + 1) * CHUNK] = torch.from_numpy(values.transpose(0, 3, 1, 2).copy())
    return x


def make_square_images(x: Tensor, side: int | None, crop: Crop | None) -> Tensor:
    """Return square images uint8 (N, C, side, side) of images (N, C, H, W).

    Raises:
        UserError: they are not square, and no option says how to make them square.
    """
    height, width = x.shape[-2:]
    if height != width and (crop is None or (crop == "stretch" and side is None)):
        raise UserError(
            f"the images are not square but {width}×{height}; choose how to make them square: "
            "dataset.crop=center or pad, or dataset.crop=stretch with dataset.size="
            f"{min(height, width)}"
        )
    if height == width or crop == "stretch":
        return resize_images(x, side)
    if crop == "center":
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        return resize_images(x[..., top : top + short, left : left + short].contiguous(), side)
    long = max(height, width)
    size = [max(1, round(edge * (side or long) / long)) for edge in (height, width)]
    if size != [height, width]:
        x = torch.cat(
            [
                interpolate(part, size=size, mode="bilinear", antialias=True)
                for part in x.split(RESIZE_BATCH_SIZE)
            ]
        )
    rows, columns = ((side or long) - edge for edge in size)
    return pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def convert_to_gray_or_rgb(x: Tensor, channels: int | None) -> Tensor:
    """Return uint8 images (N, C, H, W) with 1 or 3 channels; None keeps theirs."""
    if channels in (None, x.shape[1]):
        return x
    if channels == 3:
        return x.repeat(1, 3, 1, 1)
    weights = torch.tensor(LUMA).view(3, 1, 1)
    parts = [(part * weights).sum(1, keepdim=True).round() for part in x.split(CHUNK)]
    return torch.cat(parts).to(torch.uint8)
