"""Samples that were drawn elsewhere: a folder of images, or an array in a file."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from genlab.data.image_decoding import BROKEN, Reader
from genlab.data.image_files import list_images
from genlab.data.npy_files import read_arrays
from genlab.errors import UserError
from genlab.spec import Batch, Spec

SLACK = 0.05  # of the range, by which floats may leave it: samplers overshoot a little


def read_samples(path: Path, spec: Spec) -> Batch:
    """Return the samples at `path` in the range of the data that `spec` describes, with their labels where they have some.

    A folder of images (its class folders are the labels, numbered by name); a .npy array; or a .npz with the array x (or
    arr_0, or its only one) and labels y. Bytes are (N, H, W, C) or (N, C, H, W) from 0 to 255; floats are in the data's
    range, or in the one that the file's own `range` tells.

    Raises:
        UserError: nothing readable is there, or it has another shape or range than the data.
    """
    if not path.exists():
        raise UserError(f"samples={path}: there is no such file or folder")
    if path.is_dir():
        return from_folder(path, spec)
    arrays = read_arrays(path, f"samples={path}")
    name = next(
        (key for key in ("x", "arr_0") if key in arrays),
        next(iter(arrays)) if len(arrays) == 1 else None,
    )
    if name is None:
        raise UserError(
            f"samples={path} holds the arrays {', '.join(arrays)}: call the samples x, and their labels y"
        )
    x = torch.from_numpy(arrays[name])
    if not x.ndim or not len(x):
        raise UserError(f"samples={path} holds no sample")
    y = torch.from_numpy(arrays["y"]).long() if "y" in arrays else None
    if y is not None and y.shape != (len(x),):
        raise UserError(f"samples={path}: y is {tuple(y.shape)}, and there are {len(x):,} samples")
    own = (
        tuple(arrays["range"].reshape(-1).astype(float).tolist())
        if "range" in arrays
        else spec.range
    )
    if len(own) != 2 or not -math.inf < own[0] < own[1] < math.inf:
        raise UserError(
            f"samples={path}: its range is {own}; it must be two numbers, the lower first"
        )
    return Batch(fitted(x, own, spec, path), y)


def from_folder(path: Path, spec: Spec) -> Batch:
    """Return the images in and below a folder."""
    found = list_images(path)
    if not found.paths:
        raise UserError(f"samples={path}: there is no image in that folder")
    if spec.kind != "image":
        raise UserError(
            f"samples={path} holds images, and the data set {spec.kind}s; give an .npz or .npy"
        )
    read = Reader(spec.shape[0], None, "stretch")
    images = []
    for file in found.paths:
        if not file.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{file} is a link out of samples={path}; put there the image itself")
        try:
            images.append(read(file))
        except BROKEN as error:
            raise UserError(f"unreadable image {file}: {error}") from error
        if images[-1].shape != spec.shape:
            raise UserError(f"{file} is {shape_of(images[-1])}, and the data set {shape_of(torch.empty(spec.shape))}; "
                            "set prepare.size to measure at the samples' size")  # fmt: skip
    return Batch(fitted(torch.stack(images), spec.range, spec, path), found.labels)


def fitted(x: Tensor, own: tuple[float, ...], spec: Spec, path: Path) -> Tensor:
    """Return samples (N, …) as float32 (N, *shape) in the range of `spec`."""
    image = spec.kind == "image"
    if image and x.ndim == 4 and x.shape[1:] != spec.shape and x.shape[-1] == spec.shape[0]:
        x = x.permute(0, 3, 1, 2)  # channels last, as pictures are
    if tuple(x.shape[1:]) != tuple(spec.shape):
        mend = "; set prepare.size to measure at the samples' size" if image else ""
        raise UserError(
            f"samples={path} are {tuple(x.shape[1:])} each, and the data set's items {spec.shape}{mend}"
        )
    low, high = spec.range
    if x.dtype == torch.uint8 and image:
        return low + (high - low) * x.float() / 255
    x = x.float()
    if not x.isfinite().all():
        raise UserError(f"samples={path} holds numbers that are not finite")
    if image:
        bottom, top = own
        if x.min() < bottom - SLACK * (top - bottom) or x.max() > top + SLACK * (top - bottom):
            raise UserError(f"samples={path} go from {x.min():.3g} to {x.max():.3g}, outside of [{bottom:g}, {top:g}]; "
                            "set prepare.range to theirs, or give bytes")  # fmt: skip
        x = low + (high - low) * (x - bottom) / (top - bottom)
    return x


def shape_of(x: Tensor) -> str:
    """Return the shape of an image (C, H, W) in words."""
    c, h, w = x.shape
    return f"{w}×{h} in {c} channel{'s' * (c > 1)}"
