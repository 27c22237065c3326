"""Image decoding: from a file to bytes of a fixed shape, size and color format."""

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

# Pixels above which an image is refused: a small file can unpack to any size.
MAX_PIXELS = 89_478_485
# Formats that are read, whatever a file's name says: Pillow runs external programs for some others.
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "TIFF")
GRAY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}  # Pillow's modes without color
# Errors that Pillow raises for a damaged file.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
)
# Pillow warns about files that it reads all the same, and about sizes that are refused below.
warnings.filterwarnings("ignore", module=r"PIL\.")

Crop = Literal["center", "pad", "stretch"]


@dataclass(frozen=True)
class ImageHeader:
    """The facts that a file states before its pixels are decoded; sizes in pixels."""

    width: int
    height: int
    is_gray: bool


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels; raises one of DECODE_ERRORS."""
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}×{height} is over the limit of {MAX_PIXELS:,} pixels")
        yield image


def read_header(path: Path) -> ImageHeader:
    """Return the header of an image file; raises one of DECODE_ERRORS."""
    with open_image(path) as image:
        return ImageHeader(*image.size, image.mode in GRAY_MODES)


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes a file to uint8 (channels, side, side); side None keeps the image's size."""

    channels: int
    side: int | None
    crop: Crop | None

    def __call__(self, path: Path) -> Tensor:
        """Return the image; raises one of DECODE_ERRORS."""
        with open_image(path) as image:
            return self.to_pixels(ImageOps.exif_transpose(image))

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all files that are read for the item at `path`."""
        return (path,)

    def to_pixels(self, image: Image.Image) -> Tensor:
        """Return the pixels of an opened image that is already upright."""
        return to_tensor(make_square(to_8bit(image, self.channels), self.side, self.crop))


def read_image(path: Path, channels: int) -> Tensor:
    """Return an image uint8 (channels, H, W) in its own size, gray or RGB.

    Raises one of DECODE_ERRORS.
    """
    with open_image(path) as image:
        return to_tensor(to_8bit(ImageOps.exif_transpose(image), channels))


def transparency_mask(path: Path) -> Tensor:
    """Return which pixels (H, W) of an image file are more than half transparent.

    Raises one of DECODE_ERRORS.
    """
    with open_image(path) as image:
        alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
        return torch.from_numpy(np.array(alpha)) < 128


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels uint8 (C, H, W) of an image."""
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_8bit(image: Image.Image, channels: int) -> Image.Image:
    """Return the image as 8-bit gray or RGB.

    16 bits are scaled by 255/65535, and transparency is laid over white.
    """
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def make_square(image: Image.Image, side: int | None, crop: Crop | None) -> Image.Image:
    """Return a square image, resized antialiased bilinear.

    It is the middle square, the complete image on black, or the complete image stretched.
    """
    width, height = image.size
    box = (0, 0, width, height)
    if crop == "center":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        box, side = (left, top, left + short, top + short), side or short
    elif crop == "pad" and width != height:
        return pad_to_square(image, side)
    side = side or width
    if image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BILINEAR, box)


def pad_to_square(image: Image.Image, side: int | None) -> Image.Image:
    """Return the complete image in the middle of a black square."""
    width, height = image.size
    long = max(width, height)
    side = side or long
    inner = (max(1, round(width * side / long)), max(1, round(height * side / long)))
    canvas = Image.new(image.mode, (side, side))
    resized = image.resize(inner, Image.Resampling.BILINEAR)
    canvas.paste(resized, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return canvas


def square_side(header: ImageHeader, crop: Crop | None) -> int:
    """Return the side of the square that `make_square` makes when no side is given."""
    return max(header.width, header.height) if crop == "pad" else min(header.width, header.height)
