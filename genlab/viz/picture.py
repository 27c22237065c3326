"""A picture before it is written: images in a grid, or the pixels of a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BACKGROUND_LEVEL = 96  # gray level between the images of a grid
GAP = 2  # pixels between the images of a sheet


@dataclass(frozen=True)
class Picture:
    """Images in a grid, with the names of its rows and columns; or a plot.

    Attributes:
        images: bytes (N, H, W, 1 or 3); a plot is a single one.
        columns: images in a row.
        gap: pixels between images.
        row_names: one beside each row, or none.
        column_names: one above each column, or none.
        note: a sentence that says what is shown, for the caption.
        is_plot: whether the pixels are those of a figure or a text, which is never enlarged.
        background: gray level between the images.
    """

    images: np.ndarray
    columns: int
    gap: int = GAP
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    note: str = ""
    is_plot: bool = False
    background: int = BACKGROUND_LEVEL

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return math.ceil(len(self.images) / self.columns)

    @property
    def grid_without_names(self) -> np.ndarray:
        """The picture (H', W', 3) without names, each value of an image as one pixel."""
        return make_grid(
            self.images,
            columns=self.columns,
            gap=min(self.gap, 1),
            background=self.background,
        )


def make_picture(
    images: np.ndarray,
    *,
    columns: int | None = None,
    gap: int = GAP,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    note: str = "",
) -> Picture:
    """Return images (N, H, W, 1 or 3) as a picture, by default about as wide as high."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    return Picture(images, columns, gap, row_names, column_names, note)


def make_plot_picture(pixels: np.ndarray, note: str = "") -> Picture:
    """Return the pixels (H, W, 3) of a figure or a text as a picture."""
    return Picture(pixels[None], 1, gap=0, note=note, is_plot=True)


def make_grid(
    images: np.ndarray,
    *,
    columns: int,
    gap: int = GAP,
    scale: int = 1,
    background: int = BACKGROUND_LEVEL,
) -> np.ndarray:
    """Arrange images (N, H, W, 1 or 3) in a grid (H', W', 3), each enlarged `scale` times."""
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, c = images.shape
    if c == 1:
        images = images.repeat(3, axis=3)
    rows, h, w = math.ceil(n / columns), h + gap, w + gap
    grid = np.full((rows * h + gap, columns * w + gap, 3), background, np.uint8)
    for i, image in enumerate(images[..., :3]):
        top, left = gap + i // columns * h, gap + i % columns * w
        grid[top : top + h - gap, left : left + w - gap] = image
    return grid
