"""What a task hides of an item, and the noise that it puts on one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genlab.data.image_decoding import BROKEN, opened
from genlab.errors import UserError
from genlab.spec import Spec

Side = Literal["left", "right", "top", "bottom"]
Noise = Literal["gaussian", "masking", "salt_and_pepper"]


def hidden(
    spec: Spec, mask: str, n: int, *, box: list[int] | None, side: Side, share: float, seed: int
) -> Tensor:
    """Return which values of n items are hidden, bool (n, *shape): a "box", a "half", a "random" share, or an image's white.

    All channels of a pixel are hidden together, and but for "random" the same pixels of every item. A point's halves are
    its first ("left") and last ("right") coordinates.

    Raises:
        UserError: the box does not lie in the image, points were to be hidden as only images can be, or there is no such file.
    """
    image = spec.kind == "image"
    plane = spec.shape[-2:] if image else (1, spec.dim)
    if mask == "random":
        order = torch.rand(
            n,
            spec.dim // spec.shape[0] if image else spec.dim,
            generator=torch.Generator().manual_seed(seed),
        )
        rank = order.argsort(1).argsort(1)  # (n, P): each pixel's place in a random order
        out = (rank < round(share * rank.shape[1])).view(n, *plane)
    elif mask == "half":
        if not image and side in ("top", "bottom"):
            raise UserError(
                f"side={side}: a point has a left half, its first coordinates, and a right one"
            )
        out = half(plane, side).expand(n, *plane)
    elif not image:
        raise UserError(
            f"mask={mask}: points have no such part; mask=half and mask=random are for all data"
        )
    else:
        out = (boxed(plane, box) if mask == "box" else drawn(plane, mask)).expand(n, *plane)
    return out[:, None].expand(n, *spec.shape) if image else out.reshape(n, *spec.shape)


def half(plane: tuple[int, int], side: Side) -> Tensor:
    """Return which pixels (H, W) lie in the half of that side; the middle of an odd length lies in neither's first half."""
    height, width = plane
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    where = {"top": rows < height // 2, "bottom": rows >= height // 2,
             "left": columns < width // 2, "right": columns >= width // 2}  # fmt: skip
    return where[side].expand(plane)


def boxed(plane: tuple[int, int], box: list[int] | None) -> Tensor:
    """Return which pixels (H, W) lie in the box [top, left, height, width]; None: one in the middle, of half the sides."""
    height, width = plane
    top, left, h, w = box or (height // 4, width // 4, height // 2, width // 2)
    if not (h and w and top + h <= height and left + w <= width):
        raise UserError(
            f"box={[top, left, h, w]} ([top, left, height, width]) does not lie in an image of {height}×{width}"
        )
    out = torch.zeros(plane, dtype=torch.bool)
    out[top : top + h, left : left + w] = True
    return out


def drawn(plane: tuple[int, int], file: str) -> Tensor:
    """Return which pixels (H, W) an image file has white (at least 128 of 255)."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"mask={file} is none of box, half and random, and there is no such image file"
        )
    try:
        with opened(path) as image:
            grey = image.convert("L")
    except BROKEN as error:
        raise UserError(
            f"mask={file} is no image that can be read: {' '.join(str(error).split())}"
        ) from error
    if grey.size != plane[::-1]:
        raise UserError(
            f"mask={file} has {grey.height}×{grey.width} pixels, and the data has {plane[0]}×{plane[1]}"
        )
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(plane) >= 128


def noisy(x: Tensor, spec: Spec, noise: Noise, level: float) -> Tensor:
    """Return x (N, *shape) with noise, drawn with the global random state.

    Vincent et al. 2010, section 3.3: Gaussian noise of standard deviation `level` (in ranges of an image, in a point's own
    unit), a share `level` of the values set to the lowest value (of points to 0), or to the lowest or highest at random.
    """
    low, high = spec.range if spec.kind == "image" else (x.min().item(), x.max().item())
    if noise == "gaussian":
        return x + level * (high - low if spec.kind == "image" else 1) * torch.randn_like(x)
    hit = torch.rand_like(x) < level
    if noise == "masking":
        return torch.where(hit, low if spec.kind == "image" else 0.0, x)
    return torch.where(hit, torch.where(torch.rand_like(x) < 0.5, low, high).to(x), x)
