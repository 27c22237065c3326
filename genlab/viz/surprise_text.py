"""Pictures of texts whose characters are shaded by their surprise −log₂ p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genlab.viz.picture import Picture, make_plot_picture
from genlab.viz.sheets import INK, MARGIN, SOFT_INK, font_code_points, load_font, text_width

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

MAX_BITS = 8.0  # of the darkest shade: one in 256
LETTER_SIZE, LABEL_SIZE = 26, 18  # in pixels; a slide shows a picture at half its size
COLUMNS = 60  # characters in a line
MAX_LINES = 30  # of all texts in a picture
LINE_HEIGHT, LABEL_HEIGHT = 40, 30
BAR_WIDTH, BAR_HEIGHT = 420, 18  # of the legend
# From no surprise to MAX_BITS; on darker shades letters are white.
SHADES = ((255, 255, 255), (255, 226, 170), (247, 148, 72), (204, 50, 40), (96, 10, 30))
WHITE_LETTERS_FROM = 0.62  # share of MAX_BITS
FONT = "DejaVuSansMono.ttf"
LINE_BREAK, MISSING = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{WHITE SQUARE}"


@dataclass(frozen=True)
class ScoredText:
    """A text with the surprise of each of its characters.

    Attributes:
        title: a line above it.
        characters: in their order.
        bits: −log₂ p of each; None for one that the model does not know.
    """

    title: str
    characters: Sequence[str]
    bits: Sequence[float | None]


def draw_scored_texts(texts: Sequence[ScoredText]) -> Picture:
    """Draw texts below each other, each character on a shade of its surprise, with a legend."""
    from PIL import Image, ImageDraw

    blocks, lines_left = [], MAX_LINES
    for text in texts:
        lines = wrap_characters(text.characters)
        blocks.append((text, lines[:lines_left]))
        lines_left -= len(blocks[-1][1])
    shown = sum(stop - start for _, lines in blocks for start, stop in lines)
    total = sum(len(text.characters) for text in texts)
    cell = text_width("m", load_font(FONT, LETTER_SIZE)) + 1
    width = 2 * MARGIN + COLUMNS * cell
    drawn = [(text, lines) for text, lines in blocks if lines]
    height = sum(LABEL_HEIGHT + len(lines) * LINE_HEIGHT + MARGIN for _, lines in drawn)
    sheet = Image.new("RGB", (width, 70 + height), "white")
    draw = ImageDraw.Draw(sheet)
    has_unknown = any(bits is None for text in texts for bits in text.bits)
    draw_legend(draw, MARGIN, MARGIN, has_unknown=has_unknown)
    y = 70
    for text, lines in drawn:
        draw.text((MARGIN, y), text.title, INK, load_font("DejaVuSans-Bold.ttf", LABEL_SIZE))
        y += LABEL_HEIGHT
        for start, stop in lines:
            for column, i in enumerate(range(start, stop)):
                place = (MARGIN + column * cell, y)
                draw_character(draw, place, cell, text.characters[i], text.bits[i])
            y += LINE_HEIGHT
        y += MARGIN
    hidden = f"the first {shown:,} of {total:,} characters" if shown < total else ""
    return make_plot_picture(np.asarray(sheet), hidden)


def wrap_characters(characters: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first and last + 1 character of each line: broken at line ends and spaces."""
    lines, start = [], 0
    while start < len(characters):
        stop = min(start + COLUMNS, len(characters))
        ends = [i + 1 for i in range(start, stop) if characters[i] == "\n"]
        spaces = [i + 1 for i in range(start, stop) if characters[i] == " "]
        if ends:
            stop = ends[0]
        elif stop < len(characters) and spaces:
            stop = spaces[-1]
        lines.append((start, stop))
        start = stop
    return lines


def draw_character(
    draw: ImageDraw, place: tuple[int, int], width: int, character: str, bits: float | None
) -> None:
    """Draw a character on its shade; one without a probability is struck out on gray."""
    x, y = place
    box = (x, y, x + width - 1, y + LINE_HEIGHT - 6)
    draw.rectangle(box, "#e4e6ea" if bits is None else shade(bits))
    ink = SOFT_INK if bits is None else "white" if bits > WHITE_LETTERS_FROM * MAX_BITS else INK
    glyph = LINE_BREAK if character == "\n" else character
    if not glyph.isprintable() or len(glyph) != 1 or ord(glyph) not in font_code_points(FONT):
        glyph = MISSING
    middle = (x + width / 2, y + (LINE_HEIGHT - 6) / 2)
    draw.text(middle, glyph, ink, load_font(FONT, LETTER_SIZE), anchor="mm")
    if bits is None:
        draw.line((x, middle[1], x + width - 1, middle[1]), SOFT_INK, width=2)


def draw_legend(draw: ImageDraw, x: int, y: int, *, has_unknown: bool) -> None:
    """Draw the scale of the shades, and say what is struck out."""
    font = load_font("DejaVuSans.ttf", LABEL_SIZE)
    for i in range(BAR_WIDTH):
        draw.line((x + i, y, x + i, y + BAR_HEIGHT), shade(i / BAR_WIDTH * MAX_BITS))
    draw.rectangle((x, y, x + BAR_WIDTH, y + BAR_HEIGHT), outline=SOFT_INK)
    for bits in range(0, int(MAX_BITS) + 1, 2):
        place = (x + bits / MAX_BITS * BAR_WIDTH, y + BAR_HEIGHT + 4)
        label = f"≥ {bits}" if bits == MAX_BITS else str(bits)
        draw.text(place, label, SOFT_INK, font, anchor="ma" if bits else "la")
    lines = ["surprise of a character in bits, −log₂ p"]
    lines += ["struck out: unknown to the model"] if has_unknown else []
    draw.multiline_text((x + BAR_WIDTH + 40, y), "\n".join(lines), SOFT_INK, font)


def shade(bits: float) -> tuple[int, int, int]:
    """Return the color of a surprise."""
    place = min(max(bits / MAX_BITS, 0.0), 1.0) * (len(SHADES) - 1)
    low = min(int(place), len(SHADES) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - low))
        for a, b in zip(SHADES[low], SHADES[low + 1], strict=True)
    )
    return red, green, blue
