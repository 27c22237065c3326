"""Masks that hide a part of an item, and noise added to items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genlab.data.image_decoding import DECODE_ERRORS, open_image
from genlab.errors import UserError
from genlab.spec import DataSpec

Half = Literal["left", "right", "top", "bottom"]
NoiseKind = Literal["gaussian", "masking", "salt_and_pepper"]
Box = tuple[int, int, int, int]  # top, left, height, width
WHITE_LEVEL = 128  # a mask file hides the pixels with at least this gray level


@dataclass(frozen=True)
class Mask:
    """The part of an item that is hidden.

    Args:
        kind: "box", "half", "random", or the path of an image file whose white pixels are hidden.
        box: the hidden box of an image; None is a centered box with half of each side.
        half: the hidden half.
        ratio: the fraction of pixels hidden by "random".
    """

    kind: str = "box"
    box: Box | None = None
    half: Half = "bottom"
    ratio: float = 0.5


def hidden_value_mask(mask: Mask, spec: DataSpec, n: int, *, seed: int) -> Tensor:
    """Return which values of n items are hidden, as bool (n, *shape).

    All channels of a pixel are hidden together. Every item has the same mask, except for "random".
    The halves of a point are its first ("left") and last ("right") coordinates.

    Raises:
        UserError: the box is not inside the image, the mask is only for images, or its file is
            missing.
    """
    is_image = spec.kind == "image"
    height, width = spec.shape[-2:] if is_image else (1, spec.dim)
    plane = (height, width)
    if mask.kind == "random":
        pixels = height * width
        order = torch.rand(n, pixels, generator=torch.Generator().manual_seed(seed))
        rank = order.argsort(1).argsort(1)  # (n, H·W): the place of each pixel in a random order
        hidden = (rank < round(mask.ratio * pixels)).view(n, *plane)
    elif mask.kind == "half":
        if not is_image and mask.half in ("top", "bottom"):
            raise UserError(
                f"half={mask.half}: a point has a left half (its first coordinates) and a right"
            )
        hidden = half_mask(plane, mask.half).expand(n, *plane)
    elif not is_image:
        raise UserError(
            f"mask={mask.kind} is for images; mask=half and mask=random work for points too"
        )
    elif mask.kind == "box":
        hidden = box_mask(plane, mask.box).expand(n, *plane)
    else:
        hidden = read_mask_image(plane, mask.kind).expand(n, *plane)
    if is_image:
        return hidden[:, None].expand(n, *spec.shape)
    return hidden.reshape(n, *spec.shape)


def half_mask(plane: tuple[int, int], half: Half) -> Tensor:
    """Return the pixels (H, W) in one half; an odd middle belongs to bottom or right."""
    height, width = plane
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    masks = {
        "top": rows < height // 2,
        "bottom": rows >= height // 2,
        "left": columns < width // 2,
        "right": columns >= width // 2,
    }
    return masks[half].expand(plane)


def box_mask(plane: tuple[int, int], box: Box | None) -> Tensor:
    """Return the pixels (H, W) in a box; None is a centered box with half of each side."""
    height, width = plane
    top, left, h, w = box or (height // 4, width // 4, height // 2, width // 2)
    if not (h and w and top + h <= height and left + w <= width):
        raise UserError(
            f"box={[top, left, h, w]} ([top, left, height, width]) is not inside an image of "
            f"{height}×{width}"
        )
    mask = torch.zeros(plane, dtype=torch.bool)
    mask[top : top + h, left : left + w] = True
    return mask


def read_mask_image(plane: tuple[int, int], file: str) -> Tensor:
    """Return the pixels (H, W) that are white in an image file (gray level 128 or more).

    Raises:
        UserError: the file is missing or unreadable, or has another size than the data.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"mask={file} is not box, half or random, and an image file of that name does not exist"
        )
    try:
        with open_image(path) as image:
            gray = image.convert("L")
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"mask={file} cannot be read as an image: {reason}") from error
    if gray.size != plane[::-1]:
        raise UserError(
            f"mask={file} has {gray.height}×{gray.width} pixels, but the data has "
            f"{plane[0]}×{plane[1]}"
        )
    levels = torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8)
    return levels.view(plane) >= WHITE_LEVEL


def add_noise(x: Tensor, spec: DataSpec, noise: NoiseKind, level: float) -> Tensor:
    """Return x (N, *shape) with noise, drawn with the global random state.

    The kinds of Vincent et al. 2010, section 3.3: Gaussian noise with standard deviation `level`
    (as a fraction of the range of images, in the unit of points); a fraction `level` of the values
    set to the lowest value (to 0 for points); or that fraction set to the lowest or highest at
    random.
    """
    is_image = spec.kind == "image"
    low, high = spec.range if is_image else (x.min().item(), x.max().item())
    if noise == "gaussian":
        return x + level * noise_level_unit(spec) * torch.randn_like(x)
    hit = torch.rand_like(x) < level
    if noise == "masking":
        return torch.where(hit, low if is_image else 0.0, x)
    return torch.where(hit, torch.where(torch.rand_like(x) < 0.5, low, high).to(x), x)


def noise_level_unit(spec: DataSpec) -> float:
    """Return the unit of a noise level: the range of images, 1 for points."""
    return spec.range[1] - spec.range[0] if spec.kind == "image" else 1.0
