"""Films in image files, such as an animated GIF: read the frames, and write them as a GIF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.data.image_decoding import (
    DECODE_ERRORS,
    image_to_uint8_tensor,
    open_image,
    pixel_depth,
    to_8bit_gray_or_rgb,
)
from genlab.data.image_files import one_line_error_message
from genlab.errors import UserError
from genlab.fileio import add_path_to_os_errors

MAX_FILM_PIXELS = 2**28  # of all frames: a small file can unpack to any size
DEFAULT_DURATION_MS = 100  # of a frame whose file does not say it, as of the pages of a TIFF
PALETTE_COLORS = 256  # of a frame in a GIF


@dataclass(frozen=True)
class Film:
    """Frames with the time that each is shown.

    Attributes:
        frames: bytes uint8 (T, C, H, W), gray or RGB.
        durations_ms: of each frame.
        loop: how often the film is repeated after it was shown; 0 without end, None not at all.
    """

    frames: Tensor
    durations_ms: list[int]
    loop: int | None = 0


def read_film(path: Path, channels: int, option: str) -> Film:
    """Return the film in a file with several images: GIF, WebP, PNG or TIFF.

    Args:
        channels: 1 for gray, 3 for RGB.
        option: that names the file, for messages.

    Raises:
        UserError: the file does not exist, cannot be read, or has one image only.
    """
    if not path.is_file():
        raise UserError(f"{option}={path}: no such file; give an animated GIF, WebP or PNG")
    frames, durations = [], []
    try:
        with open_image(path) as image:
            count = getattr(image, "n_frames", 1)
            if count * image.width * image.height > MAX_FILM_PIXELS:
                raise ValueError(f"{count:,} frames of {image.width}×{image.height} are too many")
            loop = image.info.get("loop")
            for number in range(count):
                image.seek(number)
                frame = to_8bit_gray_or_rgb(image.copy(), channels, pixel_depth(image))
                frames.append(image_to_uint8_tensor(frame))
                # of a WebP, Pillow knows the time of a frame only when it has decoded it
                durations.append(round(image.info.get("duration", DEFAULT_DURATION_MS)))
        film = torch.stack(frames)  # fails if the pages of a TIFF have different sizes
    except (*DECODE_ERRORS, RuntimeError) as error:
        where = f" at frame {len(frames)}" if frames else ""
        raise UserError(
            f"{option}={path} is unreadable{where}: {one_line_error_message(error)}"
        ) from error
    if len(film) < 2:
        raise UserError(
            f"{option}={path} has one image; for single images give input_dir=, a folder of them"
        )
    return Film(film, durations, loop if isinstance(loop, int) or loop is None else 0)


def write_film_as_gif(film: Film, path: Path) -> Path:
    """Write a film as an animated GIF, and return its path.

    A frame of up to 256 colors is stored exactly; others get a palette of 256, without dithering,
    which would flicker. A GIF counts in hundredths of a second. Equal neighbors are stored once,
    for the sum of their times.
    """
    pages = [make_palette_image(frame.permute(1, 2, 0).numpy()) for frame in film.frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    repeat = {} if film.loop is None else {"loop": film.loop}
    with add_path_to_os_errors(path):
        pages[0].save(
            path,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=film.durations_ms,
            optimize=False,
            **repeat,
        )
    return path


def make_palette_image(frame: np.ndarray) -> Image.Image:
    """Return a frame (H, W, 1 or 3) of bytes with a palette of up to 256 colors."""
    if frame.shape[-1] == 1:
        return Image.fromarray(frame[..., 0])
    colors, places = np.unique(frame.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colors) > PALETTE_COLORS:
        image = Image.fromarray(frame)
        return image.quantize(PALETTE_COLORS, dither=Image.Dither.NONE)
    page = Image.fromarray(places.reshape(frame.shape[:2]).astype(np.uint8))
    page.putpalette(colors.astype(np.uint8).tobytes())
    return page
