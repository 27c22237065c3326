"""Slides: pictures side by side with names, captions, a legend and a table below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from genlab.viz.picture import Picture, make_plot_picture
from genlab.viz.sheets import INK, SOFT_INK, load_font, text_height, text_width, wrap_text

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

CELL_SIDE = 420  # pixels of a picture, unless another size is requested
GAP, MARGIN = 18, 16  # pixels
TITLE_SIZE, TEXT_SIZE, CAPTION_SIZE = 22, 19, 17  # of letters, in pixels
MAX_ROW_NAME_WIDTH = 190
BEST_COLOR = "#1f4e9c"
LINE_COLOR = "#c9ced6"


@dataclass(frozen=True)
class Cell:
    """One picture of a slide; images are enlarged by a whole number, plots are not.

    Attributes:
        pixels: bytes (H, W, 1 or 3).
        caption: the lines below it.
    """

    pixels: np.ndarray
    caption: str = ""
    is_plot: bool = False


@dataclass(frozen=True)
class TableLine:
    """A line of numbers below the pictures, one for each column.

    Attributes:
        best: the columns that are in bold.
    """

    name: str
    texts: Sequence[str]
    best: frozenset[int] = frozenset()


@dataclass
class Slide:
    """Pictures in rows and columns, with what belongs to them.

    Attributes:
        rows: the cells of each row; None leaves a place empty.
        column_names: above each column, in bold.
        row_names: left of each row; "" for none.
        table: the lines of numbers below the pictures.
        legend: name -> color.
        note: a sentence for the caption.
        cell_size: (width, height) of a cell in pixels.
    """

    rows: list[list[Cell | None]]
    column_names: Sequence[str] = ()
    row_names: Sequence[str] = ()
    table: list[TableLine] = field(default_factory=list)
    legend: dict[str, str] = field(default_factory=dict)
    note: str = ""
    cell_size: tuple[int, int] = (CELL_SIDE, CELL_SIDE)


def render_slide(slide: Slide) -> Picture:
    """Return a slide as the picture of a plot."""
    return make_plot_picture(SlideDrawing(slide).draw(), slide.note)


class SlideDrawing:
    """The layout of a slide in pixels, and its drawing from top to bottom."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.title_font = load_font("DejaVuSans-Bold.ttf", TITLE_SIZE)
        self.font = load_font("DejaVuSans.ttf", TEXT_SIZE)
        self.bold = load_font("DejaVuSans-Bold.ttf", TEXT_SIZE)
        self.small = load_font("DejaVuSans.ttf", CAPTION_SIZE)
        self.width, self.height = slide.cell_size
        self.row_names = [wrap_text(n, MAX_ROW_NAME_WIDTH, self.font) for n in slide.row_names]
        self.line_names = [wrap_text(t.name, MAX_ROW_NAME_WIDTH, self.font) for t in slide.table]
        widths = [
            text_width(text, self.font) + GAP
            for lines in (*self.row_names, *self.line_names)
            for text in lines
            if text
        ]
        self.left = MARGIN + max(widths, default=0)
        num_columns = max(map(len, slide.rows))
        self.total_width = self.left + num_columns * (self.width + GAP) - GAP + MARGIN
        self.titles = [wrap_text(n, self.width, self.title_font) for n in slide.column_names]
        self.captions = [
            [wrap_text(cell.caption, self.width, self.small) if cell else [] for cell in row]
            for row in slide.rows
        ]
        self.legend = wrap_legend(slide.legend, self.total_width - self.left - MARGIN)

    def draw(self) -> np.ndarray:
        """Return the pixels (H, W, 3)."""
        from PIL import Image, ImageDraw

        top = MARGIN + text_height(max(map(len, self.titles), default=0), self.title_font)
        height = top + self.rows_height + self.table_height + self.legend_height + MARGIN
        self.image = Image.new("RGB", (self.total_width, height), "white")
        self.canvas = ImageDraw.Draw(self.image)
        for j, lines in enumerate(self.titles):
            self.write((self.column_center(j), MARGIN - 4), lines, self.title_font)
        y = self.draw_rows(top)
        y = self.draw_table(y)
        self.draw_legend(y)
        return np.asarray(self.image)

    def caption_height(self, i: int) -> int:
        """Return the height of the captions of row i."""
        return text_height(
            max((len(c) for c in self.captions[i] if c != [""]), default=0), self.small
        )

    def line_height(self, i: int) -> int:
        """Return the height of line i of the table."""
        texts = [wrap_text(text, self.width, self.bold) for text in self.slide.table[i].texts]
        return text_height(max(map(len, [self.line_names[i], *texts])), self.font) + 4

    @property
    def rows_height(self) -> int:
        """The height of the rows with their captions."""
        count = len(self.slide.rows)
        return count * self.height + sum(map(self.caption_height, range(count))) + GAP * (count - 1)

    @property
    def table_height(self) -> int:
        """The height of the table with the rule above it."""
        lines = range(len(self.slide.table))
        return sum(map(self.line_height, lines)) + (2 * GAP if lines else 0)

    @property
    def legend_height(self) -> int:
        """The height of the legend."""
        return len(self.legend) * text_height(1, self.font) + (GAP if self.legend else 0)

    def column_center(self, j: int) -> float:
        """Return the middle of column j."""
        return self.left + j * (self.width + GAP) + self.width / 2

    def write(
        self,
        place: tuple[float, float],
        lines: Sequence[str],
        font: FreeTypeFont,
        *,
        fill: str = INK,
        anchor: str = "ma",
        align: str = "center",
    ) -> None:
        """Write lines at a place, which is that of their anchor."""
        text = "\n".join(lines)
        self.canvas.multiline_text(
            place, text, fill=fill, font=font, spacing=5, anchor=anchor, align=align
        )

    def draw_rows(self, y: int) -> int:
        """Draw the pictures with captions and names, and return the next free height."""
        from PIL import Image

        for i, row in enumerate(self.slide.rows):
            for j, cell in enumerate(row):
                if cell is None:
                    continue
                pixels = fit_to_cell(cell, self.width, self.height)
                x = round(self.column_center(j) - pixels.shape[1] / 2)
                margin = (self.height - pixels.shape[0]) // 2
                self.image.paste(Image.fromarray(pixels), (x, y + margin))
                below = y + margin + pixels.shape[0] + 3
                self.write(
                    (self.column_center(j), below), self.captions[i][j], self.small, fill=SOFT_INK
                )
            if i < len(self.row_names):
                place = (self.left - GAP, y + self.height / 2)
                self.write(place, self.row_names[i], self.font, anchor="rm", align="right")
            y += self.height + self.caption_height(i) + GAP
        return y

    def draw_table(self, y: int) -> int:
        """Draw the lines of numbers, and return the next free height."""
        if self.slide.table:
            self.canvas.line((MARGIN, y - 2, self.total_width - MARGIN, y - 2), LINE_COLOR, 2)
            y += GAP - 8
        for i, line in enumerate(self.slide.table):
            place = (self.left - GAP, y)
            self.write(place, self.line_names[i], self.font, anchor="ra", align="right")
            for j, text in enumerate(line.texts):
                is_best = j in line.best
                words = wrap_text(text, self.width, self.bold)
                font = self.bold if is_best else self.font
                color = BEST_COLOR if is_best else INK
                self.write((self.column_center(j), y), words, font, fill=color)
            y += self.line_height(i)
        return y

    def draw_legend(self, y: int) -> None:
        """Draw the names of the colors."""
        y += GAP
        for entries in self.legend:
            x = self.left
            for name, color in entries:
                self.canvas.ellipse((x, y + 4, x + 14, y + 18), color)
                self.canvas.text((x + 22, y), name, INK, self.font)
                x += 22 + text_width(name, self.font) + 26
            y += text_height(1, self.font)


def fit_to_cell(cell: Cell, width: int, height: int) -> np.ndarray:
    """Return a cell's pixels (H, W, 3), as large as fits: images by a whole factor."""
    pixels = np.broadcast_to(cell.pixels, (*cell.pixels.shape[:2], 3))
    if cell.is_plot:
        return np.ascontiguousarray(pixels)
    scale = max(1, min(width // pixels.shape[1], height // pixels.shape[0]))
    return pixels.repeat(scale, 0).repeat(scale, 1)


def wrap_legend(legend: dict[str, str], width: int) -> list[list[tuple[str, str]]]:
    """Return the entries (name, color) of each line of a legend."""
    font = load_font("DejaVuSans.ttf", TEXT_SIZE)
    lines: list[list[tuple[str, str]]] = []
    used = width + 1
    for entry in legend.items():
        entry_width = 48 + text_width(entry[0], font)
        if used + entry_width > width:
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += entry_width
    return lines
