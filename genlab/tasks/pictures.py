"""Items as pictures: images as a grid, points as a scatter plot, text as written lines, anything else as rows of grey."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genlab.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

TEXTS = 16  # in a picture, at most
COLUMNS, LINES = 100, 200  # characters of a line, and lines, in a picture of text


def to_bytes(x: Tensor, spec: Spec) -> np.ndarray:
    """Return images (N, C, H, W) in the range of `spec` as bytes (N, H, W, C), C = 1 or 3."""
    low, high = spec.range
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

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), 13)  # comes with matplotlib
    seen = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
    lines = [line[i : i + COLUMNS] for line in seen.split("\n") for i in range(0, max(1, len(line)), COLUMNS)][:LINES]
    sheet = Image.new("RGB", (round(font.getlength("m") * COLUMNS) + 16, 17 * len(lines) + 16), "white")
    ImageDraw.Draw(sheet).multiline_text((8, 8), "\n".join(lines), "black", font, spacing=17 - 13)
    return np.asarray(sheet)


def picture(x: Tensor, spec: Spec, *, reals: Tensor | None = None) -> np.ndarray:
    """Return items as one picture (H', W', 3) of bytes."""
    if spec.kind == "image":
        return grid(to_bytes(x, spec))
    if spec.kind == "points":
        return scatter(x.detach().float().cpu().numpy(), reals=None if reals is None else reals.float().cpu().numpy())
    if spec.kind == "tokens":
        return written(listed(texts(x[:TEXTS], spec)))
    rows = x.detach().float().cpu().reshape(len(x), 1, 1, -1)
    top = max(1.0, float(rows.max()))
    return grid((rows / top * 255).byte().permute(0, 2, 3, 1).numpy(), columns=1)


def save(image: np.ndarray, path: Path) -> Path:
    """Write a picture (H, W, 1 or 3) of bytes as PNG and return its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
    return path


def write(x: Tensor, spec: Spec, path: Path, *, reals: Tensor | None = None) -> np.ndarray:
    """Write items as a PNG, and all of them as .txt beside it where they are text; return the picture."""
    if spec.kind == "tokens":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(listed(texts(x, spec)))
    image = picture(x, spec, reals=reals)
    save(image, path)
    return image
