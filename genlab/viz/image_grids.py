"""Render items as pictures: grids of images, strips of videos, scatter plots, text.

Data of any other kind becomes rows of gray values.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genlab.fileio import atomic_write, with_filename
from genlab.spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor

MAX_TEXTS = 16  # texts in a picture
MAX_VIDEOS = 16  # videos in a picture
MIN_IMAGE_PIXELS = 48  # smaller images are enlarged to about this side
BACKGROUND_LEVEL = 96  # gray level between the images of a grid
TEXT_COLUMNS = 100  # characters in a line of a picture of text
MAX_TEXT_LINES = 200  # lines in a picture of text


# --- grids of images ------------------------------------------------------------------------------


def to_uint8_images(x: Tensor, spec: DataSpec) -> np.ndarray:
    """Return images (N, C, H, W) in the range of `spec` as bytes (N, H, W, 1 or 3).

    The frames of a video (N, T, C, H, W) are placed side by side. Channels after the colors (a
    mask) are left out.
    """
    low, high = spec.range
    if spec.kind == "video":
        x = x.permute(0, 2, 3, 1, 4).flatten(3)  # (N, C, H, T·W)
    x = x[:, : 1 if x.shape[1] < 3 else 3]
    unit = ((x.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    images: np.ndarray = (unit * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return images


def make_grid(images: np.ndarray, *, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Arrange images (N, H, W, C) in a grid (H', W', 3), enlarging small ones."""
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, MIN_IMAGE_PIXELS // max(h, w))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    if c == 1:
        images = images.repeat(3, axis=3)
    h, w = h * scale + gap, w * scale + gap
    grid = np.full((rows * h + gap, columns * w + gap, 3), BACKGROUND_LEVEL, np.uint8)
    for i, image in enumerate(images[..., :3]):
        top, left = gap + i // columns * h, gap + i % columns * w
        grid[top : top + h - gap, left : left + w - gap] = image
    return grid


def make_row_grid(*sets: Tensor) -> np.ndarray:
    """Arrange sets of bytes uint8 (N, C, H, W) in a grid, one row per set."""
    images = np.concatenate([x.permute(0, 2, 3, 1).numpy() for x in sets])
    return make_grid(images, columns=len(sets[0]))


def make_comparison(parts: list[tuple[Tensor, DataSpec]], names: list[str]) -> np.ndarray:
    """Arrange corresponding items (source, output, truth) in a grid, one captioned row each.

    A row is a set of images, enlarged by a whole factor to the size of the largest set. For videos
    a row is one video.
    """
    sets = [to_uint8_images(x, spec) for x, spec in parts]
    is_video = parts[0][1].kind == "video"
    height, width = (max(x.shape[axis] for x in sets) for axis in (1, 2))
    padded = []
    for x in sets:
        factor = 1 if is_video else max(1, min(height // x.shape[1], width // x.shape[2]))
        x = x.repeat(factor, 1).repeat(factor, 2)
        x = np.broadcast_to(x, (*x.shape[:3], 3))
        margins = ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0))
        padded.append(np.pad(x, margins, constant_values=BACKGROUND_LEVEL))
    n = len(padded[0])
    if is_video:
        images = np.stack(padded, 1).reshape(-1, height, width, 3)
        return add_captions(make_grid(images, columns=1), rows=names * n)
    return add_captions(make_grid(np.concatenate(padded), columns=n), rows=names)


def add_captions(
    grid: np.ndarray, *, rows: list[str] | None = None, columns: list[str] | None = None
) -> np.ndarray:
    """Add a caption beside each row and above each column of a grid of images (H, W, 3).

    Captions of columns are cut off at the width of the column. A grid of small images is enlarged
    by a whole factor to make room for the captions.
    """
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    # DejaVu is installed with matplotlib.
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)
    rows, columns = rows or [], columns or []
    height, width = grid.shape[:2]
    cell = width / len(columns) if columns else height / len(rows)
    factor = math.ceil(MIN_IMAGE_PIXELS / cell)
    grid = grid.repeat(factor, 0).repeat(factor, 1)
    height, width = grid.shape[:2]
    left = max((round(font.getlength(text)) + 10 for text in rows), default=0)
    top = 20 if columns else 0
    sheet = Image.new("RGB", (left + width, top + height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(rows):
        draw.text((5, top + (i + 0.5) * height / len(rows)), text, "black", font, anchor="lm")
    for i, text in enumerate(columns):
        while len(text) > 1 and font.getlength(text) > width / len(columns):
            text = text[:-1]
        place = (left + (i + 0.5) * width / len(columns), top - 4)
        draw.text(place, text, "black", font, anchor="ms")
    sheet.paste(Image.fromarray(grid), (left, top))
    return np.asarray(sheet)


# --- points and text ------------------------------------------------------------------------------


def plot_scatter(x: np.ndarray, *, reals: np.ndarray | None = None) -> np.ndarray:
    """Plot the first two coordinates of points (N, D), over real points in gray."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.08, 0.08, 0.9, 0.9))
    second = min(1, x.shape[1] - 1)
    if reals is not None:
        axes.scatter(reals[:, 0], reals[:, second], s=4, c="0.75", linewidths=0)
    axes.scatter(x[:, 0], x[:, second], s=4, c="#1f4e9c", alpha=0.6, linewidths=0)
    if x.shape[1] == 2:
        axes.set_aspect("equal", "datalim")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def decode_texts(x: Tensor, spec: DataSpec) -> list[str]:
    """Return the text of each token sequence (N, T)."""
    return [spec.to_text(tokens) for tokens in x.long().tolist()]


def join_texts(texts: list[str]) -> str:
    """Return texts one after another, separated by a line of dashes."""
    return f"\n{'-' * TEXT_COLUMNS}\n".join(texts) + "\n"


def render_text(text: str) -> np.ndarray:
    """Render a text as a picture (H', W', 3) of up to MAX_TEXT_LINES lines, black on white."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), 13)
    printable = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
    lines = [
        line[i : i + TEXT_COLUMNS]
        for line in printable.split("\n")
        for i in range(0, max(1, len(line)), TEXT_COLUMNS)
    ][:MAX_TEXT_LINES]
    size = (round(font.getlength("m") * TEXT_COLUMNS) + 16, 17 * len(lines) + 16)
    sheet = Image.new("RGB", size, "white")
    ImageDraw.Draw(sheet).multiline_text((8, 8), "\n".join(lines), "black", font, spacing=17 - 13)
    return np.asarray(sheet)


# --- items of any kind ----------------------------------------------------------------------------


def render_items(x: Tensor, spec: DataSpec, *, reals: Tensor | None = None) -> np.ndarray:
    """Render items of any kind as one picture (H', W', 3) of bytes.

    Args:
        reals: real points, shown in gray behind those of x.
    """
    if spec.kind == "image":
        return make_grid(to_uint8_images(x, spec))
    if spec.kind == "video":
        return make_grid(to_uint8_images(x[:MAX_VIDEOS], spec), columns=1)
    if spec.kind == "points":
        return plot_scatter(
            x.detach().float().cpu().numpy(),
            reals=None if reals is None else reals.float().cpu().numpy(),
        )
    if spec.kind == "tokens":
        return render_text(join_texts(decode_texts(x[:MAX_TEXTS], spec)))
    rows = x.detach().float().cpu().reshape(len(x), 1, 1, -1)
    largest = max(1.0, float(rows.max()))
    return make_grid((rows / largest * 255).byte().permute(0, 2, 3, 1).numpy(), columns=1)


def save_png(image: np.ndarray, path: Path) -> Path:
    """Write a picture (H, W, 1 or 3) of bytes as a PNG file, and return its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with with_filename(path):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
    return path


def save_items(x: Tensor, spec: DataSpec, path: Path, *, reals: Tensor | None = None) -> np.ndarray:
    """Write items as a PNG file, and text also as a .txt file beside it; return the picture."""
    if spec.kind == "tokens":
        path.parent.mkdir(parents=True, exist_ok=True)
        text = join_texts(decode_texts(x, spec))
        atomic_write(path.with_suffix(".txt"), text.encode("utf-8", "replace"))
    image = render_items(x, spec, reals=reals)
    save_png(image, path)
    return image
