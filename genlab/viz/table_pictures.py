"""Pictures of tables: a histogram of each column of numbers, bars of each of categories."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from genlab.viz.figures import (
    DATA_COLOR,
    DPI,
    HIDDEN_TAIL,
    MAX_BINS,
    MAX_PANELS,
    PANELS_ACROSS,
    SAMPLE_COLOR,
    canvas_to_picture,
    escape_figure_label,
    num_histogram_bins,
)
from genlab.viz.picture import Picture

MAX_BARS = 8  # categories of a panel; the others share a bar
MAX_WORD = 16  # characters of a category
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.2  # hundreds of pixels


def plot_table_columns(rows: dict[str, np.ndarray], columns: Sequence[Any]) -> Picture:
    """Plot the distribution of each column of named rows (N, D), the data in gray.

    Args:
        columns: of the table, as `MixedColumn`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = columns[:MAX_PANELS]
    across = min(PANELS_ACROSS, len(shown))
    down = -(-len(shown) // across)
    size = (max(6, PANEL_WIDTH * across), PANEL_HEIGHT * down + 0.4)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=DPI, layout="constrained"))
    panels = list(canvas.figure.subplots(down, across, squeeze=False).flat)
    for i, (axes, column) in enumerate(zip(panels, shown, strict=False)):
        if column.is_categorical:
            values = {name: x[:, i] for name, x in rows.items()}
            draw_category_bars(axes, values, column.categories)
        else:
            values = {name: numbers_of_column(x, i, columns) for name, x in rows.items()}
            draw_number_histograms(axes, values, is_integer=column.is_integer)
        axes.set_title(escape_figure_label(textwrap.shorten(column.name, 36, placeholder="…")))
    for axes in panels[len(shown) :]:
        axes.remove()
    handles = canvas.figure.axes[0].get_legend_handles_labels()
    canvas.figure.legend(*handles, loc="outside upper center", ncols=2)
    hidden = len(columns) - len(shown)
    return canvas_to_picture(canvas, f"{hidden} more columns are not shown" if hidden else "")


def numbers_of_column(x: np.ndarray, i: int, columns: Sequence[Any]) -> np.ndarray:
    """Return the numbers of column i of rows x (N, D) in own units, without missing ones."""
    column = columns[i]
    own: np.ndarray = x[:, i] * column.scale + column.mean
    own = own.round() if column.is_integer else own
    for j, other in enumerate(columns):
        if other.presence_of == column.name:
            own = own[x[:, j].round() == 0]
    return own


def draw_number_histograms(axes: Any, values: dict[str, np.ndarray], *, is_integer: bool) -> None:
    """Draw histograms of named numbers (N,); bins of integers end halfway between them."""
    everything = np.concatenate(list(values.values()))
    low, high = (
        np.quantile(everything, [HIDDEN_TAIL, 1 - HIDDEN_TAIL]) if len(everything) else (0, 1)
    )
    if not high > low:
        low, high = low - 0.5, high + 0.5
    if is_integer:
        step = max(1, math.ceil((high - low) / MAX_BINS))
        bins = np.arange(math.floor(low), math.ceil(high) + step + 1, step) - 0.5
    else:
        bins = np.linspace(low, high, num_histogram_bins(values))
    for name, part in values.items():
        color = DATA_COLOR if name == "data" else SAMPLE_COLOR
        weights = np.full(len(part), 1 / max(1, len(part)))
        label = escape_figure_label(name)
        axes.hist(part, bins, weights=weights, alpha=0.7, color=color, label=label)
    axes.set_ylabel("fraction of the rows")


def draw_category_bars(axes: Any, values: dict[str, np.ndarray], categories: Sequence[str]) -> None:
    """Draw the fraction of each category in named columns (N,), the most frequent ones first.

    The order is that of the first column; rare categories share the last bar.
    """
    k = len(categories)
    fractions = {
        name: np.bincount(codes.round().astype(int).clip(0, k - 1), minlength=k) / len(codes)
        for name, codes in values.items()
    }
    order = np.argsort(-next(iter(fractions.values())), kind="stable")
    first, rest = (order, order[:0]) if k <= MAX_BARS else np.split(order, [MAX_BARS - 1])
    words = [name_category(categories[i]) for i in first]
    if len(rest):
        words.append(f"{len(rest)} others")
    height = 0.8 / len(fractions)
    for j, (name, fraction) in enumerate(fractions.items()):
        bars = [*fraction[first], *([fraction[rest].sum()] if len(rest) else [])]
        place = np.arange(len(bars)) + (j + 0.5) * height - 0.4
        color = DATA_COLOR if name == "data" else SAMPLE_COLOR
        axes.barh(place, bars, height, color=color, alpha=0.9, label=escape_figure_label(name))
    axes.set_yticks(np.arange(len(words)), words)
    axes.invert_yaxis()
    axes.set_xlabel("fraction of the rows")


def name_category(word: str) -> str:
    """Return a category's word for an axis, shortened; an empty cell is "(empty)"."""
    word = word if len(word) <= MAX_WORD else f"{word[: MAX_WORD - 1]}…"
    return escape_figure_label(word) or "(empty)"
