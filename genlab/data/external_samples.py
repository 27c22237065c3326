"""Samples that were drawn elsewhere: a folder of images, or an array in a file."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from genlab.data.image_decoding import DECODE_ERRORS, ImageDecoder
from genlab.data.image_files import find_images
from genlab.data.npy_files import read_arrays
from genlab.errors import UserError
from genlab.spec import Batch, DataSpec

RANGE_TOLERANCE = 0.05  # of the range, by which floats may leave it: samplers overshoot a little


def read_samples(path: Path, spec: DataSpec) -> Batch:
    """Return the samples at `path` in the range of `spec`, with labels if they have any.

    A folder of images (its class folders are the labels, numbered by name); a .npy array; or a .npz
    with the array x (or arr_0, or its only one) and labels y. Bytes are (N, H, W, C) or
    (N, C, H, W) from 0 to 255; floats are in the data's range, or in that of the file's array
    `range`.

    Raises:
        UserError: there is nothing readable, or it has another shape or range than the data.
    """
    if not path.exists():
        raise UserError(f"samples={path}: no such file or folder")
    if path.is_dir():
        return read_sample_folder(path, spec)
    arrays = read_arrays(path, f"samples={path}")
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
    if not x.ndim or not len(x):
        raise UserError(f"samples={path} does not contain samples")
    y = torch.from_numpy(arrays["y"]).long() if "y" in arrays else None
    if y is not None and y.shape != (len(x),):
        raise UserError(f"samples={path}: y is {tuple(y.shape)}, and there are {len(x):,} samples")
    range_: tuple[float, ...] = spec.range
    if "range" in arrays:
        range_ = tuple(arrays["range"].reshape(-1).astype(float).tolist())
    if len(range_) != 2 or not -math.inf < range_[0] < range_[1] < math.inf:
        raise UserError(
            f"samples={path}: its range is {range_}; it must be two numbers, the lower first"
        )
    return Batch(to_model_range(x, range_, spec, path), y)


def read_sample_folder(path: Path, spec: DataSpec) -> Batch:
    """Return the images in and below a folder."""
    files = find_images(path)
    if not files.paths:
        raise UserError(f"samples={path}: no image in that folder")
    if spec.kind != "image":
        raise UserError(
            f"samples={path} has images, and the dataset has {spec.kind}; give an .npz or .npy"
        )
    decoder = ImageDecoder(spec.shape[0], None, "stretch")
    images = []
    for file in files.paths:
        if not file.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"{file} is a link to outside of samples={path}; put the image itself there"
            )
        try:
            images.append(decoder(file))
        except DECODE_ERRORS as error:
            raise UserError(f"unreadable image {file}: {error}") from error
        if images[-1].shape != spec.shape:
            raise UserError(
                f"{file} is {format_shape(images[-1].shape)}, and the dataset "
                f"{format_shape(spec.shape)}; set preprocess.size to measure at the samples' size"
            )
    return Batch(to_model_range(torch.stack(images), spec.range, spec, path), files.labels)


def to_model_range(x: Tensor, range_: tuple[float, ...], spec: DataSpec, path: Path) -> Tensor:
    """Return samples (N, …) of a range as float32 (N, *shape) in the range of `spec`."""
    is_image = spec.kind == "image"
    if is_image and x.ndim == 4 and x.shape[1:] != spec.shape and x.shape[-1] == spec.shape[0]:
        x = x.permute(0, 3, 1, 2)  # channels last
    if tuple(x.shape[1:]) != tuple(spec.shape):
        fix = "; set preprocess.size to measure at the samples' size" if is_image else ""
        raise UserError(
            f"samples={path} are {tuple(x.shape[1:])} each, and the dataset's items {spec.shape}"
            f"{fix}"
        )
    low, high = spec.range
    if x.dtype == torch.uint8 and is_image:
        return low + (high - low) * x.float() / 255
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


def format_shape(shape: tuple[int, ...]) -> str:
    """Return the shape (C, H, W) of an image in words."""
    c, h, w = shape
    return f"{w}×{h} in {c} channel{'' if c == 1 else 's'}"
