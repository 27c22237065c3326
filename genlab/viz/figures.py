"""Matplotlib figures without a display: create, fill and save them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genlab.viz.picture import Picture, make_plot_picture
from genlab.viz.sheets import escape_missing_glyphs, save_picture_as_sheet

DPI = 100
FONT_SIZE = 12  # in points; a page may show a figure at half its size
SIDE = 8  # of a plot of points, in hundreds of pixels
MIN_BINS, MAX_BINS = 10, 60  # of a histogram
HIDDEN_TAIL = 0.002  # fraction of the lowest values left out, which would squeeze the histogram
MAX_LEGEND_ROWS = 16
MAX_PANELS, PANELS_ACROSS = 12, 3  # histograms of a table's columns
SAMPLE_COLOR, DATA_COLOR = "#1f4e9c", "0.7"


def make_canvas_and_axes(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """Return a canvas of width × height in hundreds of pixels, and its axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI, layout="constrained"))
    panel_axes = canvas.figure.subplots(1, panels, squeeze=False)[0]
    for axes in panel_axes:
        axes.tick_params(labelsize=FONT_SIZE)
        axes.xaxis.label.set_size(FONT_SIZE)
        axes.yaxis.label.set_size(FONT_SIZE)
    return canvas, panel_axes


def canvas_to_picture(canvas: Any, note: str = "") -> Picture:
    """Return a canvas as a picture."""
    canvas.draw()
    return make_plot_picture(np.asarray(canvas.buffer_rgba())[..., :3].copy(), note)


def save_canvas_as_png(canvas: Any, path: Path, *, caption: str = "") -> None:
    """Write a canvas as a PNG file, with a caption above it."""
    save_picture_as_sheet(canvas_to_picture(canvas), path, caption=caption)


def escape_figure_label(text: Any) -> str:
    """Return a text as a figure draws it: no mathematics, missing characters escaped."""
    text = escape_missing_glyphs(str(text)).replace("$", r"\$")
    # matplotlib hides labels with a leading underscore from a legend
    return "\N{ZERO WIDTH SPACE}" + text if text.startswith("_") else text


def num_histogram_bins(values: Mapping[str, Any]) -> int:
    """Return the number of bins for named values (N,): more for more values."""
    n = min(map(len, values.values()))
    return min(MAX_BINS, max(MIN_BINS, round(2 * n**0.5)))


def plot_histograms(axes: Any, values: dict[str, Tensor], label: str) -> None:
    """Draw histograms of named values (N,) over the same bins, without the lowest 0.2%."""
    everything = np.concatenate([part.numpy() for part in values.values()])
    if len(everything) > 1:
        low, high = np.quantile(everything, [HIDDEN_TAIL, 1])
    else:
        low, high = everything.min() - 1, everything.max() + 1
    bins = np.linspace(low, high if high > low else low + 1, num_histogram_bins(values))
    for name, part in values.items():
        axes.hist(part.numpy(), bins=bins, alpha=0.6, density=True, label=escape_figure_label(name))
    axes.set_xlabel(escape_figure_label(label))
    axes.set_ylabel("density")
    axes.legend(fontsize=9)


def plot_points(points: dict[str, np.ndarray]) -> Picture:
    """Plot the first two coordinates of named points (N, D), the data in gray.

    A single coordinate is a histogram, and three are points in space.
    """
    dimensions = next(iter(points.values())).shape[1]
    if dimensions == 3:
        return plot_points_in_space(points)
    canvas, (axes,) = make_canvas_and_axes(SIDE, SIDE)
    if dimensions == 1:
        draw_data_and_sample_histograms(axes, {name: x[:, 0] for name, x in points.items()})
        axes.set(xlabel="x", ylabel="density")
    else:
        for name, x in points.items():
            color = DATA_COLOR if name == "data" else SAMPLE_COLOR
            alpha = 1.0 if name == "data" else 0.6
            style = {"s": 12, "linewidths": 0, "color": color, "alpha": alpha}
            axes.scatter(x[:, 0], x[:, 1], label=escape_figure_label(name), **style)
        axes.set(xlabel="x₁", ylabel="x₂")
        axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.25)
    add_legend(axes, len(points))
    note = f"the first 2 of {dimensions} coordinates" if dimensions > 2 else ""
    return canvas_to_picture(canvas, note)


def plot_points_in_space(points: dict[str, np.ndarray]) -> Picture:
    """Plot named points (N, 3) side by side with the same axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (max(SIDE, 6.6 * len(points)), 6.8)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=DPI, layout="constrained"))
    reference = points.get("data", next(iter(points.values())))
    low, high = np.quantile(reference, [HIDDEN_TAIL, 1 - HIDDEN_TAIL], axis=0)
    low, high = low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6
    num_outside = 0
    for i, (name, x) in enumerate(points.items()):
        axes: Any = canvas.figure.add_subplot(1, len(points), i + 1, projection="3d")
        is_inside = ((x >= low) & (x <= high)).all(1)
        num_outside += int((~is_inside).sum())
        x = x[is_inside]
        color = "0.45" if name == "data" else SAMPLE_COLOR
        axes.scatter(*x.T, s=8, color=color, alpha=0.5, linewidths=0)
        axes.set(xlabel="x₁", ylabel="x₂", zlabel="x₃", title=escape_figure_label(name))
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axes.set_box_aspect(high - low)
        axes.view_init(62, -70)
        axes.title.set_size(FONT_SIZE + 4)
        axes.tick_params(labelsize=FONT_SIZE - 2)
    note = f"{num_outside:,} points are outside of the axes" if num_outside else ""
    return canvas_to_picture(canvas, note)


def plot_column_histograms(points: dict[str, np.ndarray], columns: Sequence[Any]) -> Picture:
    """Plot a histogram of each column of a table, in its own unit.

    Args:
        points: named standardized rows (N, D).
        columns: name, mean and scale of each column.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = columns[:MAX_PANELS]
    across = min(PANELS_ACROSS, len(shown))
    down = -(-len(shown) // across)
    size = (max(6, 4 * across), 3.2 * down + 0.4)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=DPI, layout="constrained"))
    panels = list(canvas.figure.subplots(down, across, squeeze=False).flat)
    for j, (axes, column) in enumerate(zip(panels, shown, strict=False)):
        values = {name: x[:, j] * column.scale + column.mean for name, x in points.items()}
        draw_data_and_sample_histograms(axes, values)
        axes.set(xlabel=escape_figure_label(column.name), ylabel="density")
    for axes in panels[len(shown) :]:
        axes.remove()
    canvas.figure.legend(
        *canvas.figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2
    )
    hidden = len(columns) - len(shown)
    return canvas_to_picture(canvas, f"{hidden} more columns are not shown" if hidden else "")


def draw_data_and_sample_histograms(axes: Any, values: dict[str, np.ndarray]) -> None:
    """Draw histograms of named values (N,) over the same bins, the data in gray."""
    everything = np.concatenate(list(values.values()))
    everything = everything[np.isfinite(everything)]
    low, high = np.quantile(everything, [HIDDEN_TAIL, 1 - HIDDEN_TAIL])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, num_histogram_bins(values))
    for name, part in values.items():
        color = DATA_COLOR if name == "data" else SAMPLE_COLOR
        style = {"density": True, "alpha": 0.7, "color": color}
        known = part[np.isfinite(part)]
        if len(known):
            axes.hist(known, bins, label=escape_figure_label(name), **style)


def add_legend(axes: Any, entries: int, title: str = "") -> None:
    """Add a legend, below the axes if it has few entries and beside them otherwise."""
    style = {"markerscale": 2, "fontsize": FONT_SIZE, "frameon": False, "title": title or None}
    if entries <= 4:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, entries), **style)
    else:
        columns = -(-entries // MAX_LEGEND_ROWS)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, **style)
