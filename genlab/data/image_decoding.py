"""Image decoding: from a file to bytes of a fixed shape, size and color format."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from genlab.untrusted.files import open_regular_file

# Pixels above which an image is refused: a small file can unpack to any size.
MAX_PIXELS = 89_478_485
# Formats that are read, whatever a file's name says: Pillow runs external programs for some others.
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
# Pillow's modes without color
GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
FULL_RANGE_FORMATS = ("PNG", "PPM")  # whose 16-bit values Pillow may return in the 32-bit mode I
ORIENTATION_TAG = 0x0112  # of EXIF
WIDTH_TAG, PHOTOMETRIC_TAG = 256, 262  # of TIFF
WHITE_IS_ZERO = 0  # value of PHOTOMETRIC_TAG
QUARTER_TURNS = (5, 6, 7, 8)  # orientations whose width is the upright image's height
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


Depth = Literal["8-bit", "16-bit", "16-bit inverted", "16-bit color", "32-bit", "float"]
Range = tuple[float, float]

# The values that are black and white, in this order, where a format fixes them.
FULL_RANGES: dict[Depth, Range] = {
    "8-bit": (0.0, 255.0),
    "16-bit": (0.0, 65535.0),
    "16-bit inverted": (65535.0, 0.0),  # a TIFF whose 0 is white, as of X-rays
    "16-bit color": (0.0, 255.0),  # Pillow reads the high byte
}


@dataclass(frozen=True)
class ImageHeader:
    """The facts that a file states before its pixels are decoded.

    Attributes:
        width, height: in pixels, of the upright image.
        depth: the numbers of its pixels.
        pages: number of its images, as of a TIFF with pages or an animation; the first is read.
        has_other_profile: whether its colors have an ICC profile that is not that of sRGB.
    """

    width: int
    height: int
    is_gray: bool
    depth: Depth = "8-bit"
    pages: int = 1
    has_transparency: bool = False
    has_other_profile: bool = False


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels; raises one of DECODE_ERRORS."""
    with open_regular_file(path) as file, open_known_format(file) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}×{height} is over the limit of {MAX_PIXELS:,} pixels")
        yield image


def open_known_format(file: BinaryIO) -> Image.Image:
    """Open an image of FORMATS; Pillow's own message would name the stream, not the reason."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"not an image in {', '.join(FORMATS)}") from error


def read_image_header(path: Path) -> ImageHeader:
    """Return the header of an image file; raises one of DECODE_ERRORS."""
    with open_image(path) as image:
        width, height = image.size
        # Pillow decodes a PNG to look for EXIF behind its pixels: here only that before them counts
        may_be_turned = image.format != "PNG" or "exif" in image.info
        if image.format == "TIFF":  # Pillow from 11 has turned the size already
            may_be_turned = width == image.tag_v2.get(WIDTH_TAG)  # type: ignore[attr-defined]
        if may_be_turned and image.getexif().get(ORIENTATION_TAG) in QUARTER_TURNS:
            width, height = height, width
        return ImageHeader(
            width,
            height,
            image.mode in GRAY_MODES,
            depth=pixel_depth(image),
            pages=getattr(image, "n_frames", 1),
            has_transparency=image.has_transparency_data,
            has_other_profile=has_profile_other_than_srgb(image),
        )


def has_profile_other_than_srgb(image: Image.Image) -> bool:
    """Whether the colors of an opened image file have an ICC profile that does not name sRGB."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode in GRAY_MODES:
        return False
    return not any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be"))


def pixel_depth(image: Image.Image) -> Depth:
    """Return the kind of numbers that the pixels of an opened image file have."""
    if image.mode == "F":
        return "float"
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # Pillow inverts such TIFF files up to 8 bits only
        return "16-bit inverted" if tags.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO else "16-bit"
    if image.mode == "I":
        return "16-bit" if image.format in FULL_RANGE_FORMATS else "32-bit"
    for tile in getattr(image, "tile", []):
        raw_mode = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        if ";16" in str(raw_mode):
            return "16-bit color"
    return "8-bit"


def min_and_max_pixel(path: Path) -> Range:
    """Return the least and the largest pixel value of an image file.

    Raises one of DECODE_ERRORS.
    """
    with open_image(path) as image:
        pixels = np.asarray(image)
        if not np.isfinite(pixels).all():
            raise ValueError("pixels that are not finite")
        return float(pixels.min()), float(pixels.max())


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes a file to uint8 (channels, side, side); side None keeps the image's size.

    Args:
        ranges: the values that are black and white, by depth; FULL_RANGES for others.
    """

    channels: int
    side: int | None
    crop: Crop | None
    ranges: dict[Depth, Range] = field(default_factory=dict, kw_only=True)

    def __call__(self, path: Path) -> Tensor:
        """Return the image; raises one of DECODE_ERRORS."""
        with open_image(path) as image:
            depth = pixel_depth(image)
            return self.to_pixels(ImageOps.exif_transpose(image), depth)

    def files_of_item(self, path: Path) -> tuple[Path, ...]:
        """Return all files that are read for the item at `path`."""
        return (path,)

    def to_pixels(self, image: Image.Image, depth: Depth = "8-bit") -> Tensor:
        """Return the pixels of an opened image that is already upright.

        Args:
            depth: of the file that the image is from.
        """
        gray_or_color = to_8bit_gray_or_rgb(image, self.channels, depth, self.ranges)
        return image_to_uint8_tensor(
            crop_pad_or_stretch_to_square(gray_or_color, self.side, self.crop)
        )


def read_image(path: Path, channels: int, ranges: Mapping[Depth, Range] = FULL_RANGES) -> Tensor:
    """Return an image uint8 (channels, H, W) in its own size, gray or RGB.

    Args:
        ranges: the values that are black and white, by depth; FULL_RANGES for others.

    Raises one of DECODE_ERRORS.
    """
    with open_image(path) as image:
        depth = pixel_depth(image)
        return image_to_uint8_tensor(
            to_8bit_gray_or_rgb(ImageOps.exif_transpose(image), channels, depth, ranges)
        )


def transparency_mask(path: Path) -> Tensor:
    """Return which pixels (H, W) of an image file are more than half transparent.

    Raises one of DECODE_ERRORS.
    """
    with open_image(path) as image:
        alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
        return torch.from_numpy(np.array(alpha)) < 128


def image_to_uint8_tensor(image: Image.Image) -> Tensor:
    """Return the pixels uint8 (C, H, W) of an image."""
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_8bit_gray_or_rgb(
    image: Image.Image,
    channels: int,
    depth: Depth = "8-bit",
    ranges: Mapping[Depth, Range] = FULL_RANGES,
) -> Image.Image:
    """Return the image as 8-bit gray or RGB, with transparency laid over white.

    Args:
        ranges: the values that become 0 and 255, by depth; FULL_RANGES for others.

    Raises:
        ValueError: the values are not finite, or the range of their depth is unknown.
    """
    range_ = ranges.get(depth) or FULL_RANGES.get(depth)
    if range_ is None:
        kind = "floats" if depth == "float" else "32-bit integers"
        raise ValueError(f"pixels are {kind} of unknown range; save it with 8 or 16 bits")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        pixels = scale_to_bytes(values, range_)
        hidden = image.info.get("transparency")  # a PNG may name one transparent value
        if isinstance(hidden, int):
            pixels[values == hidden] = 255
        image = Image.fromarray(pixels)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if depth in ("8-bit", "16-bit color") and range_ != FULL_RANGES[depth]:
        image = Image.fromarray(scale_to_bytes(np.asarray(image), range_))
    return image


def file_range_of_depth(depth: Depth, file_range: Range) -> Range:
    """Return the values of black and white in files of a depth, given those of usual files."""
    low, high = file_range
    return (high, low) if depth == "16-bit inverted" else (low, high)


def scale_to_bytes(values: np.ndarray, range_: Range) -> np.ndarray:
    """Return numbers as bytes, such that the range becomes 0 to 255; others are clipped.

    The range of black and white may fall.

    Raises:
        ValueError: the values are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    low, high = range_
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def crop_pad_or_stretch_to_square(
    image: Image.Image, side: int | None, crop: Crop | None
) -> Image.Image:
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


def default_square_side(header: ImageHeader, crop: Crop | None) -> int:
    """Return the side that `crop_pad_or_stretch_to_square` uses when none is given."""
    return max(header.width, header.height) if crop == "pad" else min(header.width, header.height)
