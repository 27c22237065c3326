"""Trajectories: states side by side as a strip, and in turn as frames of a GIF.

Images are in rows, one for each sample. See `trajectory_points` and `trajectory_texts` for other
data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genlab.abilities import TrajectoryState
from genlab.fileio import atomic_open
from genlab.spec import DataSpec
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_grid
from genlab.viz.sheets import draw_text_image
from genlab.viz.slides import GAP, Cell, Slide, render_slide
from genlab.viz.trajectory_numbers import (
    TrajectoryPicture,
    format_number,
    own_numbers,
    shared_number_lines,
)
from genlab.viz.trajectory_points import plot_point_frames, plot_point_strip
from genlab.viz.trajectory_texts import draw_text_states

MAX_STRIP_WIDTH = 1500  # pixels of the pictures of a row
MIN_CELL_SIDE, MAX_CELL_SIDE = 96, 220
UNKNOWN_COLOR = (198, 214, 240)  # of pixels that are not drawn yet
BAR_COLOR, BAR_BACKGROUND = (31, 78, 156), (244, 245, 247)
NEXT_VALUE = "p of the next value, dark to bright"  # name of a row
MIN_FRAME_COLUMNS = 4  # in a frame of less samples, an image is not larger than with so many
FRAME_MS, LAST_FRAME_MS = 120, 1500
BLOCK_SIDE = 330  # pixels of the samples of a step


def plot_strip(states: Sequence[TrajectoryState], about: TrajectoryPicture) -> Picture:
    """Return states side by side, with their names above and their numbers below."""
    if about.spec.kind == "tokens":
        return draw_text_states(states, about)
    if about.spec.kind in ("points", "table"):
        return plot_point_strip(states, about)
    return render_slide(make_image_slide(states, about))


def make_frames(states: Sequence[TrajectoryState], about: TrajectoryPicture) -> list[np.ndarray]:
    """Return a frame (H, W, 3) of the same size for each state."""
    if about.spec.kind in ("points", "table"):
        return plot_point_frames(states, about)
    if about.spec.kind == "tokens":
        return pad_frames([draw_text_states([state], about).images[0] for state in states])
    return pad_frames(make_image_frames(states, about))


def pad_frames(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return frames (H, W, 3) padded by white below and at the right to the largest size."""
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    return [
        np.pad(
            frame,
            ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)),
            constant_values=255,
        )
        for frame in frames
    ]


def write_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write frames (H, W, 3) as an animation that repeats, and rests at the last frame."""
    from PIL import Image

    pages = [Image.fromarray(frame) for frame in frames]
    if all((frame == frame[..., :1]).all() for frame in frames):
        pages = [page.convert("L") for page in pages]  # exact, without a palette
    else:  # one palette for all frames, so that colors do not flicker
        some = [frames[0], frames[len(frames) // 2], frames[-1]]
        colors = Image.fromarray(np.concatenate(some)).quantize(256, dither=Image.Dither.NONE)
        pages = [page.quantize(palette=colors, dither=Image.Dither.NONE) for page in pages]
    durations = [FRAME_MS] * (len(pages) - 1) + [LAST_FRAME_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        pages[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=durations,
            loop=0,
        )


# --- images ---------------------------------------------------------------------------------------


def make_image_slide(states: Sequence[TrajectoryState], about: TrajectoryPicture) -> Slide:
    """Return a slide with a column for each state and a row for each sample.

    Guesses and probabilities of the next value have rows below their sample.
    """
    columns = [state_cells(state, about, len(states), numbers=True) for state in states]
    size = columns[0].size
    names = row_names(states, about)
    rows: list[list[Cell | None]] = []
    for i in range(len(states[0].x)):
        rows += [[column.rows[name][i] for column in columns] for name in names]
    notes = [about.note] if about.note else []
    if any(state.known is not None for state in states):
        notes.append("pixels in light blue are not drawn yet")
    if any(display_scale(state.x, about.spec) > 1 for state in states):
        notes.append("states with more contrast than images have are scaled to that of images")
    return Slide(
        rows,
        [state.name for state in states],
        [
            f"{name} {i + 1}" if name == about.sample_name else name
            for i in range(len(states[0].x))
            for name in names
        ],
        shared_number_lines(states),
        note="; ".join(notes),
        cell_size=size,
    )


def make_image_frames(
    states: Sequence[TrajectoryState], about: TrajectoryPicture
) -> list[np.ndarray]:
    """Return a frame (H, W, 3) of each state: the samples side by side, their guesses below."""
    names = row_names(states, about)
    frames = []
    for state in states:
        n = len(state.x)
        cells = state_cells(state, about, max(n, MIN_FRAME_COLUMNS))
        rows = [cells.rows[name] for name in names]
        title = [state.name] + [""] * (n - 1)
        slide = Slide(rows, title, [*names], cell_size=cells.size)
        frames.append(render_slide(slide).images[0])
    return frames


def row_names(states: Sequence[TrajectoryState], about: TrajectoryPicture) -> list[str]:
    """Return the names of the rows of each sample."""
    names = [about.sample_name]
    if any(state.guess is not None for state in states):
        names.append(about.guess_name)
    if any(state.next_probs is not None for state in states):
        names.append(NEXT_VALUE)
    return names


@dataclass(frozen=True)
class StateCells:
    """The cells of a state.

    Attributes:
        rows: name of a row -> a cell of each sample, or None where the state lacks it.
        size: width and height of a cell in pixels.
    """

    rows: dict[str, list[Cell | None]]
    size: tuple[int, int]


def state_cells(
    state: TrajectoryState, about: TrajectoryPicture, columns: int, *, numbers: bool = False
) -> StateCells:
    """Return the cells of a state, in a size of which `columns` are side by side."""
    n = len(state.x)
    images = state_images(state.x, about.spec, state.known)
    height, width = images.shape[1:3]
    side = max(MIN_CELL_SIDE, min(MAX_CELL_SIDE, MAX_STRIP_WIDTH // columns - GAP))
    scale = max(1, side // max(height, width))
    size = (width * scale, height * scale)
    none: list[Cell | None] = [None] * n
    guesses, bars = none, none
    if state.guess is not None:
        guesses = [Cell(image) for image in state_images(state.guess, about.spec)]
    if state.next_probs is not None:
        bars = [bars_cell(p, size) for p in state.next_probs.double().numpy()]
    captions = [own_numbers(state, i) if numbers else "" for i in range(n)]
    samples: list[Cell | None] = [
        Cell(image, caption) for image, caption in zip(images, captions, strict=True)
    ]
    return StateCells(
        {about.sample_name: samples, about.guess_name: guesses, NEXT_VALUE: bars}, size
    )


def display_scale(x: Tensor, spec: DataSpec) -> float:
    """Return by which factor images x have more contrast than their range allows, at least 1."""
    low, high = spec.range
    if not (math.isfinite(low) and math.isfinite(high)):
        return 1.0
    rms = (x.double() - (low + high) / 2).square().mean().sqrt().item()
    # a tenth more is the noise of a few pixels
    return rms / ((high - low) / 2) if rms > 1.1 * (high - low) / 2 else 1.0


def state_images(x: Tensor, spec: DataSpec, known: Tensor | None = None) -> np.ndarray:
    """Return states x (N, *shape) as bytes (N, H, W, 3), with undrawn pixels in light blue."""
    scale = display_scale(x, spec)
    if scale > 1:
        center = sum(spec.range) / 2
        x = center + (x - center) / scale
    images = item_pictures.to_uint8_images(x, spec)
    images = np.broadcast_to(images, (*images.shape[:3], 3)).copy()
    if known is not None:
        is_drawn = known.all(1).numpy()  # (N, H, W)
        images[~is_drawn] = UNKNOWN_COLOR
    return images


def bars_cell(p: np.ndarray, size: tuple[int, int]) -> Cell:
    """Return the next value's probabilities (K,) as bars, in a cell of (width, height) pixels."""
    width, height = size
    top = max(float(p.max()), 1e-12)
    edges = np.linspace(0, width, len(p) + 1).round().astype(int)
    image = np.full((height, width, 3), BAR_BACKGROUND, np.uint8)
    for value, left, right in zip(p, edges[:-1], edges[1:], strict=True):
        bar = round(value / top * (height - 4))
        gap = 1 if right - left > 3 else 0
        image[height - bar :, left : max(right - gap, left + 1)] = BAR_COLOR
    return Cell(image, f"largest {format_number(top)}", is_plot=True)


# --- samples over training ------------------------------------------------------------------------


def plot_training_strip(
    samples: Sequence[Any], names: Sequence[str], about: TrajectoryPicture
) -> Picture:
    """Return a strip of samples at successive steps, with the same noise and axes.

    Args:
        samples: of each step: points (n, D), images (n, H, W, 3) of bytes, or a text.
        names: of the steps.
    """
    if about.spec.kind in ("points", "table"):
        states = [
            TrajectoryState(i, name, x)
            for i, (name, x) in enumerate(zip(names, samples, strict=True))
        ]
        return plot_point_strip(states, about, color_by_start=False)
    if about.spec.kind == "tokens":
        cells = [Cell(draw_text_image(text), is_plot=True) for text in samples]
        height, width = (max(cell.pixels.shape[axis] for cell in cells) for axis in (0, 1))
        return render_slide(
            Slide([[cell] for cell in cells], (), names, note=about.note, cell_size=(width, height))
        )
    blocks = [make_block(images) for images in samples]
    height, width = (max(block.shape[axis] for block in blocks) for axis in (0, 1))
    row: list[Cell | None] = [Cell(block, is_plot=True) for block in blocks]
    return render_slide(Slide([row], names, (), note=about.note, cell_size=(width, height)))


def make_training_frames(
    samples: Sequence[Any], names: Sequence[str], about: TrajectoryPicture
) -> list[np.ndarray]:
    """Return a frame (H, W, 3) of the same size for the samples of each step."""
    if about.spec.kind in ("points", "table"):
        states = [
            TrajectoryState(i, name, x)
            for i, (name, x) in enumerate(zip(names, samples, strict=True))
        ]
        return plot_point_frames(states, about, color_by_start=False)
    return pad_frames(
        [
            plot_training_strip([some], [name], about).images[0]
            for some, name in zip(samples, names, strict=True)
        ]
    )


def make_block(images: np.ndarray) -> np.ndarray:
    """Return images (n, H, W, 3) as one picture (H', W', 3), about as wide as high."""
    columns = max(1, round(math.sqrt(len(images) * images.shape[1] / images.shape[2])))
    scale = max(1, BLOCK_SIDE // (columns * images.shape[2]))
    return make_grid(images, columns=columns, gap=2, scale=scale)
