"""Fan charts: the past of a series, and the quantiles of its future as nested bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genlab.viz.figures import (
    DPI,
    FONT_SIZE,
    SAMPLE_COLOR,
    canvas_to_picture,
    escape_figure_label,
)
from genlab.viz.picture import Picture

PAST_COLOR, TRUTH_COLOR = "0.35", "#c0392b"
BAND_OPACITY = (0.18, 0.32)  # of the outer and the inner band
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.4  # of several panels, in hundreds of pixels
SINGLE_WIDTH, SINGLE_HEIGHT = 10.0, 4.6
MAX_ACROSS = 2  # panels side by side
MAX_WINDOWS = 16  # drawn over each other
MAX_DATE_TICKS = 9  # 36 months have 9 ticks four months apart
MAX_STEP_TICKS = 5  # of an axis without dates
MAX_POINTS_MARKED = 60  # steps of a truth that is drawn with dots


@dataclass(frozen=True)
class Fan:
    """One panel of a fan chart.

    Attributes:
        times: of the past, then of the future: datetime64 (n + H,), or numbers of rows.
        past: (n,) values.
        quantiles: (5, H): the ends of the outer band, of the inner band, and the median, as
            outer low, inner low, median, inner high, outer high.
        truth: (H,) values of the future, if known.
        name: of the values, with their unit.
        title: of the panel.
    """

    times: np.ndarray
    past: np.ndarray
    quantiles: np.ndarray
    truth: np.ndarray | None = None
    name: str = ""
    title: str = ""


def plot_fans(fans: Sequence[Fan], percents: tuple[int, int], note: str = "") -> Picture:
    """Plot fan charts in a grid, with one legend.

    Args:
        percents: the probability of the outer and of the inner band.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(MAX_ACROSS, len(fans))
    down = -(-len(fans) // across)
    width, height = (
        (SINGLE_WIDTH, SINGLE_HEIGHT)
        if across == 1
        else (PANEL_WIDTH * across, PANEL_HEIGHT * down)
    )
    canvas = FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI, layout="constrained"))
    panels = list(canvas.figure.subplots(down, across, squeeze=False).flat)
    for axes, fan in zip(panels, fans, strict=False):
        draw_fan(axes, fan, percents)
    for axes in panels[len(fans) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes in panels[: len(fans)]:
        handles |= {
            label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    canvas.figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=FONT_SIZE,
    )
    return canvas_to_picture(canvas, note)


def draw_fan(axes: Any, fan: Fan, percents: tuple[int, int]) -> None:
    """Draw one fan chart; the fan begins at the last value of the past."""
    num_past = len(fan.past)
    times = fan.times
    if np.issubdtype(times.dtype, np.datetime64):
        times = times.astype("datetime64[s]").astype(object)
        set_date_axis(axes)
    else:
        axes.locator_params(axis="x", nbins=MAX_STEP_TICKS, integer=True)
        axes.set_xlabel("step", fontsize=FONT_SIZE)
    axes.plot(times[:num_past], fan.past, color=PAST_COLOR, linewidth=1.2, label="past")
    joint = np.repeat(fan.past[-1:], len(fan.quantiles))[:, None]
    quantiles = np.concatenate([joint, fan.quantiles], 1)
    future = times[num_past - 1 :]
    for low, percent, opacity in zip((0, 1), percents, BAND_OPACITY, strict=True):
        axes.fill_between(
            future,
            quantiles[low],
            quantiles[-1 - low],
            color=SAMPLE_COLOR,
            alpha=opacity,
            linewidth=0,
            label=f"{percent}% interval",
        )
    axes.plot(future, quantiles[2], color=SAMPLE_COLOR, linewidth=1.8, label="median")
    if fan.truth is not None:
        style = {"marker": ".", "markersize": 4} if len(fan.truth) <= MAX_POINTS_MARKED else {}
        axes.plot(
            future,
            np.concatenate([fan.past[-1:], fan.truth]),
            color=TRUTH_COLOR,
            linewidth=1.0,
            label="truth",
            **style,
        )
    axes.margins(x=0.01)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.set_ylabel(escape_figure_label(fan.name), fontsize=FONT_SIZE)
    if fan.title:
        axes.set_title(escape_figure_label(fan.title), fontsize=FONT_SIZE)


def set_date_axis(axes: Any) -> None:
    """Label the horizontal axis by dates."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=MAX_DATE_TICKS)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def plot_windows(values: np.ndarray, note: str = "") -> Picture:
    """Plot the first windows of series (N, H, C) over their steps; a panel per column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = values.shape[2]
    height = SINGLE_HEIGHT if num_columns == 1 else PANEL_HEIGHT * num_columns
    canvas = FigureCanvasAgg(
        Figure(figsize=(SINGLE_WIDTH * 0.8, height), dpi=DPI, layout="constrained")
    )
    panels = canvas.figure.subplots(num_columns, 1, squeeze=False)[:, 0]
    steps = np.arange(1, values.shape[1] + 1)
    for c, axes in enumerate(panels):
        axes.plot(steps, values[:MAX_WINDOWS, :, c].T, color=SAMPLE_COLOR, alpha=0.5, linewidth=1)
        axes.margins(x=0.01)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=FONT_SIZE - 1)
        axes.set_ylabel(
            "standardized value" if num_columns == 1 else f"value {c + 1}", fontsize=FONT_SIZE
        )
    panels[-1].set_xlabel("step of the window", fontsize=FONT_SIZE)
    return canvas_to_picture(canvas, note)
