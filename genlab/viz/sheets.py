"""Sheets: pictures enlarged by whole numbers, with names of rows and a caption.

A sheet's PNG file says where its images are, so that they can be read back pixel for pixel.
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Interval

from genlab.fileio import atomic_open
from genlab.viz.picture import Picture, make_grid

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

MIN_IMAGE_PIXELS = 100  # smaller images are enlarged to about this side
MAX_GRID_PIXELS = 1600  # but the grid not beyond this side
MIN_SHEET_WIDTH = 480  # so that a caption has room
MAX_ROW_NAME_WIDTH = 240
MARGIN = 10
CAPTION_SIZE, NAME_SIZE = 15, 14  # of letters, in pixels
LINE_SPACING = 1.35
TEXT_COLUMNS = 100  # characters in a line of a picture of text
MAX_TEXT_LINES = 200  # lines in a picture of text
TEXT_SIZE = 14
INK, SOFT_INK = "#1d222b", "#5b6472"
PNG_KEY = "genlab"  # of the text in a PNG file that says where the images are
VALUES_KEY = "genlab-values"  # of the text with the values that a plot shows
MAX_VALUES = 10**6  # numbers in such a text


@dataclass(frozen=True)
class SheetLayout:
    """Where the images of a sheet are, in pixels, and how many times they are enlarged."""

    n: Annotated[int, Interval(ge=1, le=10**6)]
    columns: Annotated[int, Interval(ge=1, le=10**6)]
    height: Annotated[int, Interval(ge=1, le=10**5)]  # of an image before it is enlarged
    width: Annotated[int, Interval(ge=1, le=10**5)]
    scale: Annotated[int, Interval(ge=1, le=10**4)]
    gap: Annotated[int, Interval(ge=0, le=10**4)]
    left: Annotated[int, Interval(ge=0, le=10**5)]  # of the grid
    top: Annotated[int, Interval(ge=0, le=10**5)]
    background: Annotated[int, Interval(ge=0, le=255)]
    is_plot: bool


# --- drawing --------------------------------------------------------------------------------------


def choose_image_enlargement(picture: Picture) -> int:
    """Return how many times the images of a picture are enlarged."""
    if picture.is_plot:
        return 1
    _, height, width, _ = picture.images.shape
    limit = min(
        MAX_GRID_PIXELS // (picture.columns * width), MAX_GRID_PIXELS // (picture.num_rows * height)
    )
    return max(1, min(math.ceil(MIN_IMAGE_PIXELS / min(height, width)), limit))


def draw_sheet_and_layout(picture: Picture, caption: str = "") -> tuple[np.ndarray, SheetLayout]:
    """Return a picture with its names and captions (H', W', 3), and where its images are.

    Args:
        caption: above the picture in bold; the picture's note follows. Long lines are wrapped.
    """
    from PIL import Image, ImageDraw

    caption = "\n".join(filter(None, (caption, picture.note)))
    scale = choose_image_enlargement(picture)
    n, image_height, image_width, _ = picture.images.shape
    grid = make_grid(
        picture.images,
        columns=picture.columns,
        gap=picture.gap,
        scale=scale,
        background=picture.background,
    )
    font = load_font("DejaVuSans.ttf", NAME_SIZE)
    rows = [wrap_text(name, MAX_ROW_NAME_WIDTH, font) for name in picture.row_names]
    left = max((text_width(line, font) + MARGIN for lines in rows for line in lines), default=0)
    cell_width = image_width * scale + picture.gap
    columns = [wrap_text(name, cell_width - 4, font) for name in picture.column_names]
    names_height = text_height(max(map(len, columns), default=0), font)
    margin = MARGIN if left or columns or caption else 0
    left += margin
    width = max(left + grid.shape[1] + margin, MIN_SHEET_WIDTH if caption else 0)
    header = draw_caption_image(caption, width) if caption else None
    top = (header.height if header else margin) + names_height
    sheet = Image.new("RGB", (width, top + grid.shape[0] + margin), "white")
    draw = ImageDraw.Draw(sheet)
    if header:
        sheet.paste(header, (0, 0))
    sheet.paste(Image.fromarray(grid), (left, top))
    row_height = image_height * scale + picture.gap
    for i, lines in enumerate(rows):
        place = (left - MARGIN // 2, top + (i + 0.5) * row_height)
        draw.multiline_text(
            place, "\n".join(lines), INK, font, anchor="rm", align="right", spacing=4
        )
    for i, lines in enumerate(columns):
        place = (left + picture.gap / 2 + (i + 0.5) * cell_width, top - 4)
        draw.multiline_text(
            place, "\n".join(lines), INK, font, anchor="md", align="center", spacing=4
        )
    layout = SheetLayout(
        n,
        picture.columns,
        image_height,
        image_width,
        scale,
        picture.gap,
        left,
        top,
        picture.background,
        picture.is_plot,
    )
    return np.asarray(sheet), layout


def draw_caption_image(caption: str, width: int) -> Image:
    """Return a caption as an image of a width: the first line in bold, the others in gray."""
    from PIL import Image, ImageDraw

    first, *others = caption.split("\n")
    styles = [("DejaVuSans-Bold.ttf", CAPTION_SIZE, INK, [first])]
    styles += [("DejaVuSans.ttf", NAME_SIZE, SOFT_INK, others)]
    lines = []
    for name, size, color, texts in styles:
        font = load_font(name, size)
        for text in texts:
            lines += [(line, font, color) for line in wrap_text(text, width - 2 * MARGIN, font)]
    heights = [round(LINE_SPACING * font.size) for _, font, _ in lines]
    image = Image.new("RGB", (width, sum(heights) + 2 * MARGIN - 4), "white")
    draw = ImageDraw.Draw(image)
    y = MARGIN
    for (line, font, color), height in zip(lines, heights, strict=True):
        draw.text((MARGIN, y), line, color, font)
        y += height
    return image


def draw_text_image(text: str) -> np.ndarray:
    """Draw a text as an image (H', W', 3) of up to MAX_TEXT_LINES lines, black on white."""
    from PIL import Image, ImageDraw

    font = load_font("DejaVuSansMono.ttf", TEXT_SIZE)
    lines = [
        line[i : i + TEXT_COLUMNS]
        for line in (escape_missing_glyphs(part, font) for part in text.split("\n"))
        for i in range(0, max(1, len(line)), TEXT_COLUMNS)
    ][:MAX_TEXT_LINES]
    size = (text_width("m" * TEXT_COLUMNS, font) + 2 * MARGIN, text_height(len(lines), font) + 16)
    sheet = Image.new("RGB", size, "white")
    step = text_height(1, font)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + i * step), line, INK, font)
    return np.asarray(sheet)


# --- fonts ----------------------------------------------------------------------------------------


@cache
def load_font(name: str, size: int) -> FreeTypeFont:
    """Return a font that is installed with matplotlib, which need not be imported."""
    from PIL import ImageFont

    return ImageFont.truetype(str(font_path(name)), size)


def font_path(name: str) -> Path:
    """Return the file of a font that is installed with matplotlib."""
    spec = find_spec("matplotlib")
    assert spec and spec.origin, "matplotlib is a dependency"
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name


@cache
def font_code_points(name: str) -> frozenset[int]:
    """Return the code points that a font has a glyph for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_path(name))).get_charmap())


def escape_missing_glyphs(text: str, font: FreeTypeFont | None = None) -> str:
    r"""Return a text that a font can draw: characters without a glyph are escaped, as \u4e2d."""
    if text.isascii() and text.isprintable():
        return text
    name = Path(str(font.path)).name if font else "DejaVuSans.ttf"
    known = font_code_points(name)
    return "".join(
        c if c.isprintable() and ord(c) in known else c.encode("unicode_escape").decode()
        for c in text.encode("utf-8", "replace").decode()
    )


def wrap_text(text: str, width: float, font: FreeTypeFont) -> list[str]:
    """Return the lines of a text of up to `width` pixels; only a longer word is broken."""
    lines = [""]
    for word in escape_missing_glyphs(text, font).split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(longer, font) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and text_width(lines[-1] + character, font) > width:
                lines.append("")
            lines[-1] += character
    return lines


def text_width(text: str, font: FreeTypeFont) -> int:
    """Return the width of a line of text in pixels."""
    return math.ceil(font.getlength(text))


def text_height(lines: int, font: FreeTypeFont) -> int:
    """Return the height of lines of text in pixels."""
    return round(lines * LINE_SPACING * font.size) + (4 if lines else 0)


# --- files ----------------------------------------------------------------------------------------


def save_picture_as_sheet(
    picture: Picture, path: Path, *, caption: str = "", values: np.ndarray | None = None
) -> np.ndarray:
    """Write a picture as a sheet, a PNG file, and return the sheet (H', W', 3).

    Args:
        values: (n, D), which a plot shows; they can be read again from the file.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    sheet, layout = draw_sheet_and_layout(picture, caption)
    info = PngInfo()
    info.add_text(PNG_KEY, json.dumps(asdict(layout)))
    if values is not None:
        info.add_text(VALUES_KEY, json.dumps(encode_values(values)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as f:  # a kill leaves no part of a picture
        Image.fromarray(sheet).save(f, format="PNG", pnginfo=info)
    return sheet


def read_picture_from_sheet_png(png: bytes) -> Picture | None:
    """Return the picture of a sheet without names and captions; None if a file is not a sheet.

    Each value of an image is one pixel again.
    """
    from PIL import Image
    from pydantic import TypeAdapter

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            text: Any = getattr(image, "text", {}).get(PNG_KEY)
            if text is None:
                return None
            layout = TypeAdapter(SheetLayout).validate_json(text)
            images = cut_images_from_sheet(np.asarray(image.convert("RGB")), layout)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return Picture(
        images,
        layout.columns,
        layout.gap,
        is_plot=layout.is_plot,
        background=layout.background,
    )


def encode_values(values: np.ndarray) -> dict[str, Any]:
    """Return values (n, D) as plain values: their shape, and float32 numbers as base64."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return {"shape": list(data.shape), "float32": base64.b64encode(data.tobytes()).decode()}


def read_values_from_sheet_png(png: bytes) -> np.ndarray | None:
    """Return the values (n, D) that a sheet's plot shows; None if the file does not have any."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            text: Any = getattr(image, "text", {}).get(VALUES_KEY)
        if text is None:
            return None
        content = json.loads(text)
        n, dims = content["shape"]
        data = base64.b64decode(content["float32"], validate=True)
        if not (isinstance(n, int) and isinstance(dims, int) and 0 < n * dims <= MAX_VALUES):
            return None
        return np.frombuffer(data, "<f4").reshape(n, dims).copy()
    except (OSError, ValueError, TypeError, KeyError, Image.DecompressionBombError):
        return None


def cut_images_from_sheet(sheet: np.ndarray, layout: SheetLayout) -> np.ndarray:
    """Return the images (N, H, W, 3) of a sheet, not enlarged.

    Raises:
        ValueError: an image is outside the sheet.
    """
    height, width = layout.height * layout.scale, layout.width * layout.scale
    images = []
    for i in range(layout.n):
        row, column = divmod(i, layout.columns)
        top = layout.top + layout.gap + row * (height + layout.gap)
        left = layout.left + layout.gap + column * (width + layout.gap)
        cell = sheet[top : top + height : layout.scale, left : left + width : layout.scale]
        if cell.shape[:2] != (layout.height, layout.width):
            raise ValueError(f"image {i} is outside the sheet")
        images.append(cell)
    return np.stack(images)
