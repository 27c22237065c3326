"""Trajectories of texts: the tokens so far, and the probabilities of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from genlab.abilities import TrajectoryState
from genlab.viz.picture import Picture, make_plot_picture
from genlab.viz.sheets import (
    INK,
    SOFT_INK,
    escape_missing_glyphs,
    load_font,
    text_height,
    text_width,
)
from genlab.viz.trajectory_numbers import TrajectoryPicture, format_number

if TYPE_CHECKING:
    from PIL import ImageDraw

DRAWN_COLOR = (214, 110, 30)  # of the token that is drawn next
BAR_COLOR, BAR_BACKGROUND = (31, 78, 156), (244, 245, 247)
TEXT_CONTEXT = 44  # characters of a text that are shown before the next one
SLOT, BAR_HEIGHT, ROW_GAP = 66, 34, 22  # pixels: width of a bar with its gap, heights
TOP_TOKENS = 6  # next tokens whose probabilities are shown


def draw_text_states(states: Sequence[TrajectoryState], about: TrajectoryPicture) -> Picture:
    """Return a row for each state: the text so far, and the most probable next tokens."""
    from PIL import Image, ImageDraw

    mono, small = load_font("DejaVuSansMono.ttf", 17), load_font("DejaVuSans.ttf", 14)
    text_left, bars_left = 150, 150 + text_width("m" * (TEXT_CONTEXT + 1), mono) + 24
    margin = 14
    row_height = BAR_HEIGHT + text_height(2, small) + ROW_GAP
    n = len(states[0].x)
    size = (bars_left + TOP_TOKENS * SLOT + margin, margin + n * len(states) * row_height)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for row, (i, state) in enumerate((i, state) for i in range(n) for state in states):
        y = margin + row * row_height
        drawn = state.x[i] if state.known is None else state.x[i][state.known[i]]
        text = visible_text(about.spec.to_text(drawn.tolist()))[-TEXT_CONTEXT:]
        name = state.name if n == 1 else f"text {i + 1}, {state.name}"
        draw.text((margin, y + BAR_HEIGHT / 2), name, SOFT_INK, small, anchor="lm")
        right = text_left + text_width("m" * TEXT_CONTEXT, mono)
        draw.text((right, y + BAR_HEIGHT / 2), text, INK, mono, anchor="rm")
        if state.next_probs is None:
            continue
        draw.text((right + 2, y + BAR_HEIGHT / 2), "?", BAR_COLOR, mono, anchor="lm")
        drawn_next = drawn_token(states, state, i)
        for j, (p, token) in enumerate(likely_tokens(state.next_probs[i], drawn_next)):
            color = DRAWN_COLOR if token == drawn_next else BAR_COLOR
            glyph = visible_text(about.spec.to_text([token]))
            draw_probability(draw, (bars_left + j * SLOT, y), p, glyph, color)
    note = about.note or (
        "the text so far (· is a space, ⏎ a line break), and the most probable next tokens; the "
        "one that is drawn is orange"
    )
    return make_plot_picture(np.asarray(image), note)


def draw_probability(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    p: float,
    glyph: str,
    color: tuple[int, int, int],
) -> None:
    """Draw a probability as a filled bar at a place, with its token and its number below."""
    mono, small = load_font("DejaVuSansMono.ttf", 17), load_font("DejaVuSans.ttf", 14)
    x, y = place
    right, bottom = x + SLOT - 14, y + BAR_HEIGHT
    draw.rectangle((x, y, right, bottom), BAR_BACKGROUND)
    draw.rectangle((x, y + BAR_HEIGHT * (1 - p), right, bottom), color)
    middle = (x + right) / 2
    draw.text((middle, bottom + 3), glyph, INK, mono, anchor="ma")
    number_y = bottom + 5 + text_height(1, small)
    draw.text((middle, number_y), format_number(p), SOFT_INK, small, anchor="ma")


def likely_tokens(probs: Tensor, drawn: int | None) -> list[tuple[float, int]]:
    """Return the most probable tokens with their p, the last of them the drawn one if need be."""
    p, tokens = probs.topk(min(TOP_TOKENS, len(probs)))
    likely = list(zip(p.tolist(), tokens.tolist(), strict=True))
    if drawn is not None and drawn not in tokens.tolist():
        likely[-1] = (probs[drawn].item(), drawn)
    return likely


def drawn_token(states: Sequence[TrajectoryState], state: TrajectoryState, i: int) -> int | None:
    """Return the token of text i that is drawn after a state; None if no later state has it."""
    position, last = round(state.time), states[-1]
    if last.known is not None and not last.known[i, position]:
        return None
    return int(last.x[i, position])


def visible_text(text: str) -> str:
    """Return a text on one line, with signs for spaces and line breaks."""
    text = text.replace("\n", "⏎").replace(" ", "·").replace("\t", "→")
    return escape_missing_glyphs(text)
