"""From an image file to bytes of a stated shape: orientation, depth, transparency, colour, crop and size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

PIXELS = (
    89_478_485  # an image of more is refused as unreadable: a small file can unpack to any size
)
FORMATS = (
    "PNG",
    "JPEG",
    "PPM",
    "BMP",
    "WEBP",
    "TIFF",
)  # what is read, whatever a name says: Pillow has others run programs
GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}  # Pillow's modes without colour
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
)  # what Pillow raises
warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # of files that it reads all the same, and of sizes that are refused below

Crop = Literal["center", "pad", "stretch"]


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded; sizes in pixels."""

    width: int
    height: int
    grey: bool


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Give an image file whose pixels are not decoded yet; raises one of BROKEN."""
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > PIXELS:
            raise ValueError(f"{width}×{height} is over the limit of {PIXELS:,} pixels")
        yield image


def header(path: Path) -> Header:
    """Return the header of an image file; raises one of BROKEN."""
    with opened(path) as image:
        return Header(*image.size, image.mode in GREY)


@dataclass(frozen=True)
class Reader:
    """Decodes a file to uint8 (channels, side, side); None as side leaves a square image's own."""

    channels: int
    side: int | None
    crop: Crop | None

    def __call__(self, path: Path) -> Tensor:
        """Return the image; raises one of BROKEN."""
        with opened(path) as image:
            return self.pixels(ImageOps.exif_transpose(image))

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all files that are read for the one at `path`."""
        return (path,)

    def pixels(self, image: Image.Image) -> Tensor:
        """Return the image of an opened file as it stands upright."""
        return to_tensor(fitted(flat(image, self.channels), self.side, self.crop))


def whole(path: Path, channels: int) -> Tensor:
    """Return an image uint8 (channels, H, W) of its own size, grey or RGB; raises one of BROKEN."""
    with opened(path) as image:
        return to_tensor(flat(ImageOps.exif_transpose(image), channels))


def transparent(path: Path) -> Tensor:
    """Return which pixels (H, W) of an image file are more than half transparent; raises one of BROKEN."""
    with opened(path) as image:
        return (
            torch.from_numpy(
                np.array(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))
            )
            < 128
        )


def to_tensor(image: Image.Image) -> Tensor:
    pixels = np.array(image)
    return (
        torch.from_numpy(pixels.reshape(image.height, image.width, -1))
        .permute(2, 0, 1)
        .contiguous()
    )


def flat(image: Image.Image, channels: int) -> Image.Image:
    """Return 8-bit grey or RGB: 16 bits scaled by 255/65535, transparency laid over white."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fitted(image: Image.Image, side: int | None, crop: Crop | None) -> Image.Image:
    """Return a square image: the middle square, the whole on black, or the whole stretched; antialiased bilinear."""
    width, height = image.size
    box = (0, 0, width, height)
    if crop == "center":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        box, side = (left, top, left + short, top + short), side or short
    elif crop == "pad" and width != height:
        long = max(width, height)
        side = side or long
        inner = (max(1, round(width * side / long)), max(1, round(height * side / long)))
        canvas = Image.new(image.mode, (side, side))
        part = image.resize(inner, Image.Resampling.BILINEAR)
        canvas.paste(part, ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return canvas
    side = side or width
    return (
        image
        if image.size == (side, side)
        else image.resize((side, side), Image.Resampling.BILINEAR, box)
    )


def side_of(head: Header, crop: Crop | None) -> int:
    """Return the side of the square that `fitted` makes of an image when no side is given."""
    return max(head.width, head.height) if crop == "pad" else min(head.width, head.height)
