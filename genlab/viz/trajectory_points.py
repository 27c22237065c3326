"""Trajectories of points: scatter plots on the same axes, and a grid of codes as it bends.

Points are colored by where they start. A single coordinate is drawn as a histogram.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from genlab.abilities import TrajectoryState
from genlab.viz.figures import DATA_COLOR, FONT_SIZE, SAMPLE_COLOR, num_histogram_bins
from genlab.viz.picture import Picture, make_plot_picture
from genlab.viz.trajectory_numbers import TrajectoryPicture, shared_number_lines

PLOT_SIDE = 2.1  # of a panel, in hundreds of pixels
FRAME_PLOT_SIDE = 4.2  # the same in an animation
LIMIT_QUANTILE = 0.998  # share of the points that the axes contain
MAX_SPREAD = 1.5  # of states that are not scaled down, relative to the data's
TITLE_SIZE = 14  # of letters, in points
GRID_COLOR = "#1f4e9c"


def plot_point_strip(
    states: Sequence[TrajectoryState], about: TrajectoryPicture, *, color_by_start: bool = True
) -> Picture:
    """Return scatter plots of states side by side with the same axes, or histograms.

    Guesses, and the grid of codes, have a row of their own below.

    Args:
        color_by_start: give points the color of the place where they start.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    states, grids = split_grids(states, about.side)
    has_guess = any(state.guess is not None for state in states)
    rows = 1 + has_guess + bool(grids)
    lines = shared_number_lines(states, averages=True)
    height = (PLOT_SIDE + 0.1) * rows + 0.45 + 0.2 * (2 + len(lines))
    size = (PLOT_SIDE * len(states) + 0.7, height)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.02)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=100, layout=layout))
    panels = canvas.figure.subplots(rows, len(states), squeeze=False)
    view = PointView.of(states, about, color_by_start=color_by_start)
    for j, state in enumerate(states):
        column = list(panels[:, j])
        view.draw(column[0], state.x, view.colors)
        column[0].set_title(with_scale(state.name, view.scale_of(state.x)), fontsize=TITLE_SIZE)
        if has_guess:
            view.draw(column[1], state.guess, view.colors)
        if grids:
            view.draw_grid(column[-1], grids[j], about.side, view.scale_of(state.x))
        texts = [f"{line.name} = {line.texts[j]}" for line in lines if line.texts[j]]
        column[-1].set_xlabel("\n".join([view.x_name, *texts]), fontsize=FONT_SIZE)
        for axes in column:
            axes.tick_params(labelsize=11, labelbottom=axes is column[-1], labelleft=j == 0)
            axes.locator_params(nbins=5)
    names = [
        f"{about.sample_name}s",
        *([about.guess_name] * has_guess),
        *(["grid of codes"] * bool(grids)),
    ]
    for name, axes in zip(names, panels[:, 0], strict=True):
        axes.set_ylabel(f"{name}\n{view.y_name}", fontsize=FONT_SIZE)
    canvas.draw()
    note = view.note(about)
    if any(view.scale_of(state.x) > 1 for state in states):
        note += "; ÷ s: the coordinates are divided by s to fit the axes"
    return make_plot_picture(np.asarray(canvas.buffer_rgba())[..., :3].copy(), note)


def plot_point_frames(
    states: Sequence[TrajectoryState], about: TrajectoryPicture, *, color_by_start: bool = True
) -> list[np.ndarray]:
    """Return a frame (H, W, 3) of each state: samples, with guesses or the grid beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples, grids = split_grids(states, about.side)
    view = PointView.of(samples, about, color_by_start=color_by_start)
    has_guess = any(state.guess is not None for state in samples)
    columns = 1 + has_guess + bool(grids)
    size = (FRAME_PLOT_SIDE * columns + 0.6, FRAME_PLOT_SIDE + 0.6)
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=100))
    panels = canvas.figure.subplots(1, columns, squeeze=False)[0]
    canvas.figure.subplots_adjust(0.6 / size[0], 0.09, 0.99, 0.91, wspace=0.16)
    frames = []
    for j, state in enumerate(samples):
        for axes in panels:
            axes.clear()
        view.draw(panels[0], state.x, view.colors)
        panels[0].set_title(with_scale(state.name, view.scale_of(state.x)), fontsize=TITLE_SIZE)
        if has_guess:
            view.draw(panels[1], state.guess, view.colors)
            panels[1].set_title(about.guess_name, fontsize=TITLE_SIZE)
        if grids:
            view.draw_grid(panels[-1], grids[j], about.side, view.scale_of(state.x))
            panels[-1].set_title("grid of codes", fontsize=TITLE_SIZE)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def split_grids(
    states: Sequence[TrajectoryState], side: int
) -> tuple[list[TrajectoryState], list[Tensor]]:
    """Return the states of the samples, and those of the grid (side², D), which come last."""
    if not side:
        return list(states), []
    n = len(states[0].x) - side**2

    def first(value: float | Tensor) -> float | Tensor:
        return value[:n] if isinstance(value, Tensor) else value

    samples = [
        replace(
            state,
            x=state.x[:n],
            guess=None if state.guess is None else state.guess[:n],
            numbers={name: first(value) for name, value in state.numbers.items()},
        )
        for state in states
    ]
    return samples, [state.x[n:] for state in states]


def with_scale(name: str, scale: float) -> str:
    """Return the name of a state, and by what its coordinates are divided."""
    return f"{name} (÷ {scale:.3g})" if scale > 1 else name


@dataclass(frozen=True)
class PointView:
    """How the states of points are drawn: the same axes and colors for all of them.

    Attributes:
        limit: the axes go from −limit to limit around the center.
        spread: root mean square of the largest state that is not scaled down.
        colors: of the points, by where they start; (n, 4), or one color.
        start: the points (n, 2) of the first state.
        dims: coordinates of a point.
    """

    center: np.ndarray
    limit: float
    spread: float
    colors: Any
    dims: int
    start: np.ndarray
    data: np.ndarray | None

    @classmethod
    def of(
        cls,
        states: Sequence[TrajectoryState],
        about: TrajectoryPicture,
        *,
        color_by_start: bool = True,
    ) -> PointView:
        """Return the view of states (n, D), and of the data behind them."""
        ends = [states[0].x, states[-1].x] if about.data is None else [about.data]
        data = None if about.data is None else to_points(about.data)
        everything = np.concatenate([to_points(x) for x in ends])
        center = (np.quantile(everything, 0.001, 0) + np.quantile(everything, 0.999, 0)) / 2
        spread = MAX_SPREAD * float(np.sqrt(np.square(everything - center).mean()))
        spread = max(spread, 1.05)  # standard normal codes are not scaled
        limit = float(np.quantile(np.abs(everything - center), LIMIT_QUANTILE))
        for state in states:
            x = to_points(state.x)
            scale = max(1.0, float(np.sqrt(np.square(x - center).mean())) / spread)
            far = float(np.quantile(np.abs(x - center) / scale, LIMIT_QUANTILE))
            limit = max(limit, min(far, 3 * spread))
        start = to_points(states[0].x)
        colors = colors_by_place(start) if color_by_start else SAMPLE_COLOR
        return cls(center, 1.05 * limit, spread, colors, everything.shape[1], start, data)

    @property
    def x_name(self) -> str:
        """The name of the horizontal axis."""
        return "x₁" if self.dims > 1 else "x"

    @property
    def y_name(self) -> str:
        """The name of the vertical axis."""
        return "x₂" if self.dims > 1 else "density"

    def scale_of(self, x: Tensor) -> float:
        """Return by what points x (n, D) are divided to fit the axes; 1 if they fit."""
        rms = float(np.sqrt(np.square(to_points(x) - self.center).mean()))
        return rms / self.spread if rms > 1.05 * self.spread else 1.0

    def draw(self, axes: Any, x: Tensor | None, colors: Any) -> None:
        """Draw points (n, D) with the data in gray behind them; None draws the data only."""
        points = np.empty((0, self.dims))
        if x is not None:
            points = self.center + (to_points(x) - self.center) / self.scale_of(x)
        if self.dims == 1:
            low, high = self.center[0] - self.limit, self.center[0] + self.limit
            bins = np.linspace(low, high, num_histogram_bins({"": self.start}) + 1)
            if self.data is not None:
                axes.hist(self.data[:, 0], bins, density=True, color=DATA_COLOR)
            if len(points):
                style = {"density": True, "color": SAMPLE_COLOR, "alpha": 0.7}
                axes.hist(np.clip(points[:, 0], low, high), bins, **style)
            axes.set_xlim(low, high)
            return
        if self.data is not None:
            axes.scatter(*self.data.T, s=4, c=DATA_COLOR, linewidths=0)
        if len(points):
            axes.scatter(*points.T, s=7, c=colors, linewidths=0)
        self.set_limits(axes)

    def draw_grid(self, axes: Any, x: Tensor, side: int, scale: float) -> None:
        """Draw the grid of codes, whose points (side², 2) are at x now, divided by `scale`."""
        from matplotlib.collections import LineCollection

        points = self.center + (to_points(x) - self.center) / scale
        lines = points.reshape(side, side, 2)
        for some in (lines, lines.swapaxes(0, 1)):
            axes.add_collection(LineCollection(list(some), linewidths=0.5, colors=GRID_COLOR))
        self.set_limits(axes)

    def set_limits(self, axes: Any) -> None:
        """Set the same limits on both axes, around the center."""
        x, y = self.center
        axes.set(xlim=(x - self.limit, x + self.limit), ylim=(y - self.limit, y + self.limit))
        axes.set_aspect("equal")
        axes.grid(alpha=0.25)

    def note(self, about: TrajectoryPicture) -> str:
        """Return a sentence for the caption."""
        parts = [about.note] if about.note else []
        if not isinstance(self.colors, str):
            parts.append("points have the color of the place where they start")
        if self.data is not None:
            parts.append("the data is gray")
        if about.spec.dim > 2:
            parts.append(f"the first 2 of {about.spec.dim} coordinates")
        return "; ".join(parts)


def to_points(x: Tensor) -> np.ndarray:
    """Return the first two coordinates (n, 2) of items x (n, …); (n, 1) if there is only one."""
    points: np.ndarray = x.detach().double().cpu().flatten(1)[:, :2].numpy()
    return points


def colors_by_place(points: np.ndarray) -> Any:
    """Return the colors (n, 4) of points (n, 2): the hue is the angle, the center is darker."""
    from matplotlib import colormaps

    if points.shape[1] < 2:
        return SAMPLE_COLOR
    centered = points - np.median(points, 0)
    angle = np.arctan2(centered[:, 1], centered[:, 0]) / (2 * math.pi) % 1
    radius = np.sqrt(np.square(centered).sum(1))
    share = np.minimum(radius / max(float(np.quantile(radius, 0.9)), 1e-12), 1)
    colors = colormaps["hsv"](angle)
    colors[:, :3] *= (0.45 + 0.45 * share)[:, None]
    return colors
