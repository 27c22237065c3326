"""Render items as pictures: grids of images, strips of videos, scatter plots, text.

Data of any other kind becomes rows of gray values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genlab.fileio import add_path_to_os_errors, atomic_write
from genlab.spec import DataSpec
from genlab.viz.fan_charts import plot_windows
from genlab.viz.figures import plot_column_histograms, plot_points
from genlab.viz.picture import BACKGROUND_LEVEL, Picture, make_grid, make_picture, make_plot_picture
from genlab.viz.sheets import TEXT_COLUMNS, draw_text_image, save_picture_as_sheet
from genlab.viz.table_pictures import plot_table_columns

if TYPE_CHECKING:
    from torch import Tensor

MAX_TEXTS = 16  # texts in a picture
MAX_VIDEOS = 16  # videos in a picture
MIN_FRAME_PIXELS = 48  # smaller frames of an animation are enlarged to about this side


# --- grids of images ------------------------------------------------------------------------------


def to_uint8_images(x: Tensor, spec: DataSpec) -> np.ndarray:
    """Return images (N, C, H, W) in the range of `spec` as bytes (N, H, W, 1 or 3).

    The frames of a video (N, T, C, H, W) are placed side by side. Channels after the colors (a
    mask, actions) are left out.
    """
    if spec.kind == "video":
        x = x.permute(0, 2, 3, 1, 4).flatten(3)  # (N, C, H, T·W)
    x = x[:, : 1 if x.shape[1] - spec.action_channels < 3 else 3]
    images: np.ndarray = spec.to_bytes(x).cpu().permute(0, 2, 3, 1).numpy()
    return images


def make_animation_frame(images: np.ndarray, *, columns: int) -> np.ndarray:
    """Arrange images (N, H, W, 1 or 3) as one frame (H', W', 3) of an animation."""
    scale = max(1, MIN_FRAME_PIXELS // max(images.shape[1:3]))
    return make_grid(images, columns=columns, scale=scale)


def make_picture_of_named_rows(sets: dict[str, Tensor]) -> Picture:
    """Arrange named sets of bytes uint8 (N, C, H, W) in a grid, one row per set."""
    images = np.concatenate([x.permute(0, 2, 3, 1).numpy() for x in sets.values()])
    columns = len(next(iter(sets.values())))
    return make_picture(images, columns=columns, row_names=list(sets))


def make_comparison_picture(parts: list[tuple[Tensor, DataSpec]], names: list[str]) -> Picture:
    """Arrange corresponding items (source, output, truth) in a grid, one named row each.

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
        return make_picture(images, columns=1, row_names=names * n)
    return make_picture(np.concatenate(padded), columns=n, row_names=names)


# --- text -----------------------------------------------------------------------------------------


def decode_tokens_to_texts(x: Tensor, spec: DataSpec) -> list[str]:
    """Return the text of each token sequence (N, T)."""
    return [spec.to_text(tokens) for tokens in x.long().tolist()]


def join_texts_by_dashes(texts: list[str]) -> str:
    """Return texts one after another, separated by a line of dashes."""
    return f"\n{'-' * TEXT_COLUMNS}\n".join(texts) + "\n"


# --- items of any kind ----------------------------------------------------------------------------


def render_items_as_picture(
    x: Tensor,
    spec: DataSpec,
    *,
    reals: Tensor | None = None,
    name: str = "samples",
    columns: Sequence[Any] = (),
) -> Picture:
    """Render items of any kind as one picture.

    Args:
        reals: real points or rows, shown in gray behind those of x.
        name: of the points x in the legend.
        columns: the columns of a table (`Dataset.columns`), whose rows the points are.
    """
    if spec.kind == "image":
        return make_picture(to_uint8_images(x, spec))
    if spec.kind == "video":
        return make_picture(to_uint8_images(x[:MAX_VIDEOS], spec), columns=1)
    if spec.kind in ("points", "table"):
        points = {name: x} if reals is None else {"data": reals, name: x}
        arrays = {key: v.detach().double().cpu().flatten(1).numpy() for key, v in points.items()}
        if spec.kind == "table" and columns:
            return plot_table_columns(arrays, columns)
        return plot_column_histograms(arrays, columns) if columns else plot_points(arrays)
    if spec.kind == "tokens":
        return make_plot_picture(
            draw_text_image(join_texts_by_dashes(decode_tokens_to_texts(x[:MAX_TEXTS], spec)))
        )
    if spec.kind == "series":
        return plot_windows(x.detach().double().cpu().numpy())
    rows = x.detach().float().cpu().reshape(len(x), 1, 1, -1)
    largest = max(1.0, float(rows.max()))
    pixels = (rows / largest * 255).byte().permute(0, 2, 3, 1).numpy()
    return make_picture(pixels, columns=1)


def write_image_as_png(image: np.ndarray, path: Path) -> Path:
    """Write an image (H, W, 1 or 3) of bytes as a PNG file as it is, and return its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with add_path_to_os_errors(path):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
    return path


def save_items_as_sheet(
    x: Tensor,
    spec: DataSpec,
    path: Path,
    *,
    reals: Tensor | None = None,
    name: str = "samples",
    columns: Sequence[Any] = (),
    caption: str = "",
) -> np.ndarray:
    """Write items as a sheet, and text also as a .txt file beside it; return the sheet.

    The file of a plot has the first two coordinates of its points, too.
    """
    if spec.kind == "tokens":
        path.parent.mkdir(parents=True, exist_ok=True)
        text = join_texts_by_dashes(decode_tokens_to_texts(x, spec))
        atomic_write(path.with_suffix(".txt"), text.encode("utf-8", "replace"))
    picture = render_items_as_picture(x, spec, reals=reals, name=name, columns=columns)
    values = None
    if spec.kind in ("points", "table"):  # a plot of another step may have other axes
        values = x.detach().float().cpu().flatten(1)[:, :2].numpy()
    return save_picture_as_sheet(picture, path, caption=caption, values=values)
