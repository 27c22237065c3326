"""Items as pictures: images as a grid, films as strips, points as a scatter plot, text as lines, all else as rows of grey."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genlab.fileio import naming, write_whole
from genlab.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

TEXTS = FILMS = 16  # in a picture, at most
CELL = 48  # pixels of a captioned image's side, at least
COLUMNS, LINES = 100, 200  # characters of a line, and lines, in a picture of text


def to_bytes(x: Tensor, spec: Spec) -> np.ndarray:
    """Return images (N, C, H, W) in the range of `spec` as bytes (N, H, W, 1 or 3); a mask beside the colours is left out.

    The frames of a film (N, T, C, H, W) stand side by side.
    """
    low, high = spec.range
    if spec.kind == "video":
        x = x.permute(0, 2, 3, 1, 4).flatten(3)  # (N, C, H, T·W)
    x = x[:, : 1 if x.shape[1] < 3 else 3]
    unit = ((x.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    return (unit * 255).round().byte().permute(0, 2, 3, 1).numpy()


def grid(images: np.ndarray, *, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Return images (N, H, W, C) side by side as one picture (H', W', 3), small ones enlarged by whole factors."""
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, 48 // max(h, w))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    if c == 1:
        images = images.repeat(3, axis=3)
    h, w = h * scale + gap, w * scale + gap
    sheet = np.full((rows * h + gap, columns * w + gap, 3), 96, np.uint8)
    for i, image in enumerate(images[..., :3]):
        top, left = gap + i // columns * h, gap + i % columns * w
        sheet[top : top + h - gap, left : left + w - gap] = image
    return sheet


def rows(*sets: Tensor) -> np.ndarray:
    """Return sets of bytes uint8 (N, C, H, W) as one picture, a row a set, so that items that belong together stand together."""
    images = np.concatenate([x.permute(0, 2, 3, 1).numpy() for x in sets])
    return grid(images, columns=len(sets[0]))


def compared(parts: list[tuple[Tensor, Spec]], names: list[str]) -> np.ndarray:
    """Return sets of items that belong together as one picture with a caption a row: source, output, truth.

    A row is a set of images, small ones enlarged by a whole factor to the size of the largest; of films it is one film.
    """
    sets = [to_bytes(x, spec) for x, spec in parts]
    film = parts[0][1].kind == "video"
    tall, wide = (max(x.shape[axis] for x in sets) for axis in (1, 2))
    cells = []
    for x in sets:
        factor = 1 if film else max(1, min(tall // x.shape[1], wide // x.shape[2]))
        x = x.repeat(factor, 1).repeat(factor, 2)
        x = np.broadcast_to(x, (*x.shape[:3], 3))
        around = ((0, 0), (0, tall - x.shape[1]), (0, wide - x.shape[2]), (0, 0))
        cells.append(np.pad(x, around, constant_values=96))
    n = len(cells[0])
    ordered = np.stack(cells, 1).reshape(-1, tall, wide, 3) if film else np.concatenate(cells)
    return captioned(grid(ordered, columns=1 if film else n), rows=names * (n if film else 1))


def captioned(
    sheet: np.ndarray, *, rows: list[str] | None = None, columns: list[str] | None = None
) -> np.ndarray:
    """Return a grid of images (H, W, 3) with a caption beside each row and above each column, where longer ones are cut off.

    A grid of small images is enlarged by a whole factor, so that captions have room.
    """
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)  # comes with matplotlib
    rows, columns = rows or [], columns or []
    height, width = sheet.shape[:2]
    cell = width / len(columns) if columns else height / len(rows)
    factor = math.ceil(CELL / cell)
    sheet = sheet.repeat(factor, 0).repeat(factor, 1)
    height, width = sheet.shape[:2]
    left = max((round(font.getlength(text)) + 10 for text in rows), default=0)
    top = 20 if columns else 0
    whole = Image.new("RGB", (left + width, top + height), "white")
    draw = ImageDraw.Draw(whole)
    for i, text in enumerate(rows):
        draw.text((5, top + (i + 0.5) * height / len(rows)), text, "black", font, anchor="lm")
    for i, text in enumerate(columns):
        while len(text) > 1 and font.getlength(text) > width / len(columns):
            text = text[:-1]
        draw.text(
            (left + (i + 0.5) * width / len(columns), top - 4), text, "black", font, anchor="ms"
        )
    whole.paste(Image.fromarray(sheet), (left, top))
    return np.asarray(whole)


def scatter(x: np.ndarray, *, reals: np.ndarray | None = None) -> np.ndarray:
    """Return points (N, D) as a picture (H', W', 3) of their first two coordinates, real ones in grey behind."""
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


def texts(x: Tensor, spec: Spec) -> list[str]:
    """Return the text of each sequence of tokens (N, T)."""
    return [spec.to_text(tokens) for tokens in x.long().tolist()]


def listed(texts: list[str]) -> str:
    """Return texts one after another, a line between two of them."""
    return f"\n{'-' * COLUMNS}\n".join(texts) + "\n"


def written(text: str) -> np.ndarray:
    """Return a text as a picture (H', W', 3) of black on white, of at most `LINES` lines of `COLUMNS` characters."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(
        font_manager.findfont("DejaVu Sans Mono"), 13
    )  # comes with matplotlib
    seen = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
    lines = [
        line[i : i + COLUMNS]
        for line in seen.split("\n")
        for i in range(0, max(1, len(line)), COLUMNS)
    ][:LINES]
    sheet = Image.new(
        "RGB", (round(font.getlength("m") * COLUMNS) + 16, 17 * len(lines) + 16), "white"
    )
    ImageDraw.Draw(sheet).multiline_text((8, 8), "\n".join(lines), "black", font, spacing=17 - 13)
    return np.asarray(sheet)


def picture(x: Tensor, spec: Spec, *, reals: Tensor | None = None) -> np.ndarray:
    """Return items as one picture (H', W', 3) of bytes."""
    if spec.kind == "image":
        return grid(to_bytes(x, spec))
    if spec.kind == "video":
        return grid(to_bytes(x[:FILMS], spec), columns=1)
    if spec.kind == "points":
        return scatter(
            x.detach().float().cpu().numpy(),
            reals=None if reals is None else reals.float().cpu().numpy(),
        )
    if spec.kind == "tokens":
        return written(listed(texts(x[:TEXTS], spec)))
    rows = x.detach().float().cpu().reshape(len(x), 1, 1, -1)
    top = max(1.0, float(rows.max()))
    return grid((rows / top * 255).byte().permute(0, 2, 3, 1).numpy(), columns=1)


def save(image: np.ndarray, path: Path) -> Path:
    """Write a picture (H, W, 1 or 3) of bytes as PNG and return its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
    return path


def write(x: Tensor, spec: Spec, path: Path, *, reals: Tensor | None = None) -> np.ndarray:
    """Write items as a PNG, and all of them as .txt beside it where they are text; return the picture."""
    if spec.kind == "tokens":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(".txt"), listed(texts(x, spec)).encode("utf-8", "replace"))
    image = picture(x, spec, reals=reals)
    save(image, path)
    return image
