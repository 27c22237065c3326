"""Plots of a GAN's training: densities, D and D*, and the value function over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genlab.viz.densities import LABEL_SIZE, enlarge_labels
from genlab.viz.figures import DATA_COLOR, DPI, SAMPLE_COLOR, canvas_to_picture
from genlab.viz.picture import Picture

D_COLOR, OPTIMAL_COLOR = "#c8501e", "#1b7f4d"
PANEL_SIDE = 3.5  # inches
MAP_LINES = 21  # codes whose image is drawn
LINE_BINS = 120  # of the histogram of G(z) on the line
MIN_DENSITY = 1e-3  # relative to the largest: where D* is drawn


@dataclass(frozen=True)
class StateArrays:
    """What is drawn of a step; arrays over the grid have its shape.

    Attributes:
        p, q: densities of data and samples.
        d, d_optimal: D and D*; a critic's score and None if D is not a probability.
        codes, images: codes of a one-dimensional prior and G of them, or None.
        samples: of G (K, D).
        value, best_value: V(D, G), or None, and 2 JS − log 4, in nats.
    """

    step: int
    p: np.ndarray
    q: np.ndarray
    d: np.ndarray
    d_optimal: np.ndarray | None
    codes: np.ndarray | None
    images: np.ndarray | None
    samples: np.ndarray
    value: float | None
    best_value: float


@dataclass(frozen=True)
class Plot:
    """The axes and data that all panels share.

    Attributes:
        edges: of the cells along each axis.
        limits: what the axes of the plots show, (low, high) of each axis.
        data: points (N, D).
        history: the states of all steps, whose values are drawn.
        top: the upper end of the axis of densities on the line.
    """

    edges: Sequence[np.ndarray]
    limits: Sequence[tuple[float, float]]
    data: np.ndarray
    history: Sequence[StateArrays]
    top: float


def plot_dynamics_strip(states: Sequence[StateArrays], plot: Plot, *, note: str = "") -> Picture:
    """Return states side by side, and the values of the game over the steps below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = panel_heights(plot)
    n = len(states)
    size = (max(PANEL_SIDE * n, 9), sum(heights) + 2.9)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=DPI, layout="constrained"))
    grid = canvas.figure.add_gridspec(len(heights) + 1, n, height_ratios=[*heights, 2.5])
    for j, state in enumerate(states):
        panels = [canvas.figure.add_subplot(grid[i, j]) for i in range(len(heights))]
        draw_state(panels, state, plot, is_first=j == 0, is_last=j == n - 1)
        panels[0].set_title(f"step {state.step:,}", fontsize=LABEL_SIZE)
    add_legend_of_line(canvas.figure, plot)
    below = canvas.figure.add_subplot(grid[-1, :])
    draw_values(below, plot)
    return canvas_to_picture(canvas, note)


def plot_dynamics_frames(plot: Plot) -> list[np.ndarray]:
    """Return a frame (H, W, 3) of each state: its panels, and the values so far beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = panel_heights(plot)
    is_line = len(plot.edges) == 1
    frames = []
    for k, state in enumerate(plot.history):
        size = (11.0, sum(heights) + 1.2) if is_line else (12.5, 8.2)
        canvas = FigureCanvasAgg(Figure(figsize=size, dpi=80, layout="constrained"))
        if is_line:
            grid = canvas.figure.add_gridspec(len(heights), 2, height_ratios=heights)
            panels = [canvas.figure.add_subplot(grid[i, 0]) for i in range(len(heights))]
            right = canvas.figure.add_subplot(grid[:, 1])
        else:
            grid = canvas.figure.add_gridspec(2, len(heights), height_ratios=[1.7, 1])
            panels = [canvas.figure.add_subplot(grid[0, i]) for i in range(len(heights))]
            right = canvas.figure.add_subplot(grid[1, :])
        draw_state(panels, state, plot, is_first=True, is_last=is_line)
        add_legend_of_line(canvas.figure, plot)
        panels[0].set_title(f"step {state.step:,}", fontsize=LABEL_SIZE)
        draw_values(right, plot, up_to=k)
        frames.append(canvas_to_picture(canvas).images[0])
    return frames


def panel_heights(plot: Plot) -> list[float]:
    """Return the heights in inches of the panels of a state."""
    first = plot.history[0]
    if len(plot.edges) == 1:
        return [3.4] + [1.5] * (first.codes is not None)
    return [PANEL_SIDE] * (2 + (first.d_optimal is not None))


def draw_state(
    panels: Sequence[Any], state: StateArrays, plot: Plot, *, is_first: bool, is_last: bool
) -> None:
    """Draw a state into its panels, with the names of axes where it is the first or the last."""
    if len(plot.edges) == 2:
        draw_plane(panels, state, plot, is_first=is_first)
        return
    draw_line(panels[0], state, plot, is_first=is_first, is_last=is_last)
    if state.codes is not None:
        draw_code_map(panels[1], state, plot)


def draw_line(axes: Any, state: StateArrays, plot: Plot, *, is_first: bool, is_last: bool) -> None:
    """Draw the densities of data and samples on the line, and D and D* over them."""
    edges = plot.edges[0]
    x = (edges[1:] + edges[:-1]) / 2
    low, high = plot.limits[0]
    axes.fill_between(x, state.p, color=DATA_COLOR, lw=0, label="data p(x)")
    bins = np.linspace(low, high, LINE_BINS + 1)
    masses = state.q * np.diff(edges)
    heights, _ = np.histogram(x, bins, weights=masses)
    axes.stairs(
        heights / np.diff(bins), bins, fill=True, color=SAMPLE_COLOR, alpha=0.45, label="G(z): q(x)"
    )
    axes.set(xlim=(low, high), ylim=(0, plot.top), xlabel="x")
    right = axes.twinx()
    shown = (x >= low) & (x <= high)
    name = "D(x)" if state.d_optimal is not None else "critic"
    right.plot(x[shown], state.d[shown], color=D_COLOR, lw=2.2, label=name)
    if state.d_optimal is not None:
        is_known = shown & (state.p + state.q > MIN_DENSITY * (state.p + state.q).max())
        optimal = np.where(is_known, state.d_optimal, np.nan)
        right.plot(x, optimal, "--", color=OPTIMAL_COLOR, lw=1.8, label="D* = p/(p + q)")
        right.axhline(0.5, color="0.6", lw=0.8, ls=":")
        right.set_ylim(-0.02, 1.02)
    enlarge_labels(axes)
    right.tick_params(labelsize=LABEL_SIZE - 2, labelright=is_last)
    axes.tick_params(labelleft=is_first)
    if is_first:
        axes.set_ylabel("density", fontsize=LABEL_SIZE)
    if is_last:
        right.set_ylabel(name, fontsize=LABEL_SIZE, color=D_COLOR)


def draw_code_map(axes: Any, state: StateArrays, plot: Plot) -> None:
    """Draw lines from codes z at equal quantiles to G(z), as in figure 1 of Goodfellow et al."""
    assert state.codes is not None and state.images is not None
    places = np.linspace(0, len(state.codes) - 1, MAP_LINES + 2).round().astype(int)[1:-1]
    z, x = state.codes[places], state.images[places]
    low, high = plot.limits[0]
    largest = float(np.abs(z).max())
    middle, half = (low + high) / 2, (high - low) / 2
    for start, stop in zip(middle + 0.8 * half * z / largest, x, strict=True):
        if not low <= stop <= high:
            continue
        axes.annotate(
            "",
            (stop, 1),
            (start, 0),
            arrowprops={"arrowstyle": "->", "color": SAMPLE_COLOR, "lw": 0.9},
            annotation_clip=False,
        )
    axes.set(xlim=(low, high), ylim=(0, 1), yticks=[0, 1], xticks=[])
    axes.set_yticklabels(["z", "G(z)"], fontsize=LABEL_SIZE - 2)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)


def draw_plane(panels: Sequence[Any], state: StateArrays, plot: Plot, *, is_first: bool) -> None:
    """Draw samples over data in the plane, and below them D and D* as heat maps."""
    style = {"s": 4, "linewidths": 0}
    panels[0].scatter(*plot.data.T, color="0.72", label="data", **style)
    panels[0].scatter(*state.samples.T, color=SAMPLE_COLOR, label="G(z)", alpha=0.6, **style)
    names = ["data and samples", "D(x)" if state.d_optimal is not None else "critic"]
    if state.d_optimal is not None:
        names.append("D* = p/(p + q)")
    optimal = None
    if state.d_optimal is not None:
        density = state.p + state.q
        optimal = np.where(density > MIN_DENSITY * density.max(), state.d_optimal, np.nan)
    for axes, field in zip(panels[1:], (state.d, optimal), strict=False):
        if field is None:
            continue
        limits = (0, 1) if state.d_optimal is not None else (None, None)
        axes.pcolormesh(*plot.edges, field.T, cmap="RdBu", vmin=limits[0], vmax=limits[1])
        axes.set_facecolor("0.85")
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        axes.set(xlim=plot.limits[0], ylim=plot.limits[1])
        axes.set_aspect("equal")
        enlarge_labels(axes)
        if is_first:
            axes.set_ylabel(f"{name}\nx₂", fontsize=LABEL_SIZE)
        axes.set_xlabel("x₁" if i == len(panels) - 1 else "", fontsize=LABEL_SIZE)


def draw_values(axes: Any, plot: Plot, *, up_to: int | None = None) -> None:
    """Draw V(D, G) and 2 JS − log 4 over the steps, up to a state and a mark at it."""
    steps = np.array([state.step for state in plot.history])
    best = np.array([state.best_value for state in plot.history])
    values = [state.value for state in plot.history]
    stop = len(steps) if up_to is None else up_to + 1
    marker = "." if len(steps) < 60 else None
    style = {"lw": 2.2, "marker": marker, "ms": 8}
    axes.plot(
        steps[:stop], best[:stop], color=OPTIMAL_COLOR, label="2 JS − log 4 = V(D*, G)", **style
    )
    bottom = -math.log(4)
    lowest = bottom
    if None not in values:
        axes.plot(steps[:stop], values[:stop], color=D_COLOR, label="V(D, G)", **style)
        finite = np.array(values, float)
        lowest = max(min(bottom, float(finite.min())), -4.0)
    axes.axhline(bottom, color="0.4", lw=1, ls="--", label="−log 4: q = p")
    axes.axhline(0, color="0.75", lw=1, ls=":")
    if up_to is not None:
        axes.plot(steps[up_to], best[up_to], "o", ms=10, color=OPTIMAL_COLOR)
    highest = max(0.0, float(best.max())) if best.max() > -0.5 else float(best.max())
    height = highest - lowest
    pad = 0.02 * (steps[-1] - steps[0]) or 1
    axes.set(
        xlim=(steps[0] - pad, steps[-1] + pad), ylim=(lowest - 0.1 * height, highest + 0.1 * height)
    )
    axes.set(xlabel="step", ylabel="nats")
    enlarge_labels(axes)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=LABEL_SIZE - 2, loc="upper right", framealpha=0.85)


def add_legend_of_line(figure: Any, plot: Plot) -> None:
    """Add the legend of the panels of densities on the line above a figure."""
    if len(plot.edges) == 2:
        handles, labels = figure.axes[0].get_legend_handles_labels()
    else:
        found = [axes.get_legend_handles_labels() for axes in figure.axes]
        named = {label: handle for hs, ls in found for handle, label in zip(hs, ls, strict=True)}
        labels, handles = list(named), list(named.values())
    style = {"ncols": 4, "fontsize": LABEL_SIZE - 1, "frameon": False}
    scale = 5 if len(plot.edges) == 2 else 1  # of the points
    figure.legend(handles, labels, loc="outside upper center", markerscale=scale, **style)
