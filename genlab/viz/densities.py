"""Plots of densities on the line and in the plane, of mixtures and of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from genlab.viz.figures import DATA_COLOR, DPI, SAMPLE_COLOR, canvas_to_picture, escape_figure_label
from genlab.viz.picture import Picture

LABEL_SIZE, TITLE_SIZE = 15, 17  # in points: panels are shown side by side on a slide
PANEL_SIDE = 6.2  # inches
TRUTH_COLOR = "#c8501e"
CONTOUR_LEVELS = 6
MAX_LEGEND_COMPONENTS = 12
BASE_COLORS = 20  # of the colormap of components


def make_panels(
    rows: int, columns: int, *, width: float, height: float, **layout: Any
) -> tuple[Any, Any]:
    """Return a canvas of width × height inches, and its axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI, layout="constrained"))
    axes = canvas.figure.subplots(rows, columns, squeeze=False, **layout)
    for panel in axes.flat:
        enlarge_labels(panel)
    return canvas, axes


def enlarge_labels(axes: Any) -> None:
    """Set the size of the labels of axes so that a slide shows them readably."""
    axes.tick_params(labelsize=LABEL_SIZE - 2)
    axes.xaxis.label.set_size(LABEL_SIZE)
    axes.yaxis.label.set_size(LABEL_SIZE)
    axes.title.set_size(TITLE_SIZE)


def component_color(i: int) -> Any:
    """Return the color of component i."""
    from matplotlib import colormaps

    return colormaps["tab10" if i < 10 else "tab20"](i % BASE_COLORS)


# --- densities ------------------------------------------------------------------------------------


def plot_density_map(
    edges: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    points: np.ndarray,
    *,
    note: str = "",
) -> Picture:
    """Plot densities in the plane as heat maps with contours, the data over them.

    Args:
        edges: of the cells along both axes.
        maps: name -> density (cells, cells). Of two, model and truth, the difference is shown too.
        points: data (N, 2).
    """
    names, densities = list(maps), list(maps.values())
    panels = len(maps) + (len(maps) == 2)
    canvas, axes = make_panels(1, panels, width=PANEL_SIDE * panels, height=PANEL_SIDE * 0.95)
    top = max(float(density.max()) for density in densities)
    centers = [(e[1:] + e[:-1]) / 2 for e in edges]
    for panel, name, density in zip(axes[0], names, densities, strict=False):
        mesh = panel.pcolormesh(*edges, density.T, cmap="Blues", vmin=0, vmax=top)
        levels = top * np.linspace(0, 1, CONTOUR_LEVELS + 1)[1:-1] ** 2
        panel.contour(*centers, density.T, levels=levels, colors="#1d222b", linewidths=0.6)
        panel.scatter(*points.T, s=5, color="#1d222b", alpha=0.35, linewidths=0, label="data")
        panel.set_title(escape_figure_label(name))
        panel.legend(loc="upper right", fontsize=LABEL_SIZE - 2, markerscale=3)
        add_colorbar(canvas, mesh, panel, "density")
    if len(maps) == 2:
        difference = densities[0] - densities[1]
        limit = float(np.abs(difference).max()) or 1.0
        panel = axes[0][2]
        mesh = panel.pcolormesh(*edges, difference.T, cmap="RdBu", vmin=-limit, vmax=limit)
        panel.set_title("model − truth")
        add_colorbar(canvas, mesh, panel, "difference")
    for panel in axes[0]:
        label_plane(panel, edges)
    return canvas_to_picture(canvas, note)


def add_colorbar(canvas: Any, mesh: Any, axes: Any, label: str) -> None:
    """Add the scale of a heat map beside it."""
    bar = canvas.figure.colorbar(mesh, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label(label, size=LABEL_SIZE)
    bar.ax.tick_params(labelsize=LABEL_SIZE - 3)


def label_plane(axes: Any, edges: Sequence[np.ndarray]) -> None:
    """Name the two axes of the plane, and limit them to the cells."""
    axes.set(xlabel="x₁", ylabel="x₂")
    axes.set(xlim=(edges[0][0], edges[0][-1]), ylim=(edges[1][0], edges[1][-1]))
    axes.set_aspect("equal")


def plot_density_curves(
    edges: np.ndarray,
    curves: Mapping[str, np.ndarray],
    points: np.ndarray,
    *,
    note: str = "",
) -> Picture:
    """Plot densities on the line over a histogram of the data.

    Args:
        edges: of the cells.
        curves: name -> density (cells,). Of two, model and truth, the difference is shown too.
        points: data (N,).
    """
    x = (edges[1:] + edges[:-1]) / 2
    rows = len(curves)
    canvas, axes = make_panels(
        rows,
        1,
        width=9,
        height=5.4 + 2 * (rows - 1),
        sharex=True,
        height_ratios=[3, 1][:rows],
    )
    top = axes[0][0]
    draw_histogram(top, points, edges)
    for (name, density), color, style in zip(
        curves.items(), (SAMPLE_COLOR, TRUTH_COLOR), ("-", "--"), strict=False
    ):
        top.plot(x, density, style, lw=2.4, color=color, label=escape_figure_label(name))
    top.set(ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, None))
    top.legend(fontsize=LABEL_SIZE - 1, frameon=False)
    if rows == 2:
        model, truth = curves.values()
        axes[1][0].axhline(0, color="0.6", lw=1)
        axes[1][0].fill_between(x, model - truth, color=SAMPLE_COLOR, alpha=0.6, lw=0)
        axes[1][0].set(ylabel="model − truth")
    axes[-1][0].set(xlabel="x")
    for panel in axes[:, 0]:
        panel.grid(alpha=0.25)
    return canvas_to_picture(canvas, note)


def draw_histogram(axes: Any, points: np.ndarray, edges: np.ndarray) -> None:
    """Draw a histogram of data (N,) in gray, in about 60 bins over the range of the edges."""
    bins = np.linspace(edges[0], edges[-1], 61)
    axes.hist(points, bins, density=True, color=DATA_COLOR, alpha=0.7, label="data")


# --- components and cells -------------------------------------------------------------------------


def plot_gaussian_components(
    points: np.ndarray,
    categories: np.ndarray | None,
    components: tuple[np.ndarray, np.ndarray, np.ndarray],
    edges: Sequence[np.ndarray],
    *,
    note: str = "",
) -> Picture:
    """Plot the components of a mixture: ellipses of 1 and 2 standard deviations, or curves.

    Args:
        points: data (N, D) on the line or in the plane.
        categories: the most probable component (N,) of each.
        components: weights (K,), means (K, D) and covariances (K, D, D).
        edges: of the plotted range along each axis.
    """
    weights, means, covariances = components
    if points.shape[1] == 1:
        return plot_component_curves(points[:, 0], components, edges[0], note=note)
    from matplotlib.patches import Ellipse

    has_legend = len(weights) <= MAX_LEGEND_COMPONENTS
    canvas, ((axes,),) = make_panels(1, 1, width=10.4 if has_legend else 8, height=7.2)
    draw_points_by_category(axes, points, categories)
    for k, (weight, mean, covariance) in enumerate(zip(weights, means, covariances, strict=True)):
        variances, vectors = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        color = component_color(k)
        for sigmas in (1, 2):
            width, height = 2 * sigmas * np.sqrt(variances[::-1].clip(0))
            style = {"fill": False, "ec": color, "lw": 2.6 if sigmas == 1 else 1.4}
            axes.add_patch(Ellipse(mean, width, height, angle=angle, **style))
        name = f"component {k}: {weight:.1%}" if has_legend else None
        style = {"color": color, "marker": "+", "s": 120, "linewidths": 2.5}
        axes.scatter(*mean, **style, label=name)
    label_plane(axes, edges)
    if has_legend:
        place_legend(axes)
    return canvas_to_picture(canvas, note)


def plot_component_curves(
    points: np.ndarray,
    components: tuple[np.ndarray, np.ndarray, np.ndarray],
    edges: np.ndarray,
    *,
    note: str = "",
) -> Picture:
    """Plot the weighted densities of a mixture's components on the line."""
    canvas, ((axes,),) = make_panels(1, 1, width=9, height=5.4)
    draw_histogram(axes, points, edges)
    x = (edges[1:] + edges[:-1]) / 2
    total = np.zeros_like(x)
    for k, (weight, mean, covariance) in enumerate(zip(*components, strict=True)):
        std = np.sqrt(covariance[0, 0])
        density = weight * np.exp(-(((x - mean[0]) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
        total += density
        name = f"component {k}: {weight:.1%}" if len(components[0]) <= 6 else None
        axes.plot(x, density, lw=2, color=component_color(k), label=name)
    axes.plot(x, total, lw=2.4, color="#1d222b", label="mixture")
    axes.set(xlabel="x", ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=LABEL_SIZE - 1, frameon=False)
    return canvas_to_picture(canvas, note)


def draw_points_by_category(axes: Any, points: np.ndarray, categories: np.ndarray | None) -> None:
    """Draw points (N, 2) in the colors of their categories (N,), or in gray."""
    colors: Any = DATA_COLOR
    if categories is not None:
        colors = [component_color(k) for k in categories]
    axes.scatter(*points.T, s=9, c=colors, alpha=0.6, linewidths=0)


def place_legend(axes: Any) -> None:
    """Place the legend of components beside the axes."""
    style = {"fontsize": LABEL_SIZE - 2, "frameon": False}
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **style)


def plot_cells(
    points: np.ndarray,
    categories: np.ndarray,
    edges: Sequence[np.ndarray],
    cells: np.ndarray,
    centers: np.ndarray | None,
    *,
    note: str = "",
) -> Picture:
    """Plot the cells of a clustering, with the data in the colors of their cells.

    Args:
        points: data (N, D) on the line or in the plane.
        categories: the category (N,) of each.
        edges: of the cells of the grid along each axis.
        cells: the category (*shape) at each center of the grid.
        centers: the item (K, D) that represents each category, if the model has one.
    """
    if points.shape[1] == 1:
        return plot_intervals(points[:, 0], edges[0], cells, centers, note=note)
    from matplotlib.colors import ListedColormap

    canvas, ((axes,),) = make_panels(1, 1, width=8, height=7.2)
    num = int(max(cells.max(), categories.max())) + 1
    colors = ListedColormap([component_color(k) for k in range(num)])
    style = {"cmap": colors, "vmin": -0.5, "vmax": num - 0.5}
    axes.pcolormesh(*edges, cells.T, alpha=0.22, linewidth=0, rasterized=True, **style)
    middle = [(e[1:] + e[:-1]) / 2 for e in edges]
    for k in range(num):
        axes.contour(
            *middle, np.where(np.isin(cells.T, k), 1.0, 0.0), [0.5], colors="0.35", linewidths=0.8
        )
    draw_points_by_category(axes, points, categories)
    if centers is not None:
        style = {"marker": "X", "s": 170, "color": "#1d222b", "edgecolors": "white"}
        axes.scatter(*centers.T, **style, linewidths=1.5, label="centers")
        axes.legend(loc="upper right", fontsize=LABEL_SIZE - 1)
    label_plane(axes, edges)
    return canvas_to_picture(canvas, note)


def plot_intervals(
    points: np.ndarray,
    edges: np.ndarray,
    cells: np.ndarray,
    centers: np.ndarray | None,
    *,
    note: str = "",
) -> Picture:
    """Plot the intervals of a clustering on the line, over a histogram of the data."""
    canvas, ((axes,),) = make_panels(1, 1, width=9, height=5.4)
    draw_histogram(axes, points, edges)
    borders = [0, *(np.flatnonzero(np.diff(cells)) + 1), len(cells)]
    for start, stop in pairwise(borders):
        color = component_color(int(cells[start]))
        axes.axvspan(edges[start], edges[stop], color=color, alpha=0.22, lw=0)
    if centers is not None:
        for i, center in enumerate(centers[:, 0]):
            label = None if i else "centers"
            axes.axvline(center, color="#1d222b", lw=2, label=label)
    axes.set(xlabel="x", ylabel="density", xlim=(edges[0], edges[-1]))
    axes.legend(fontsize=LABEL_SIZE - 1, frameon=False)
    return canvas_to_picture(canvas, note)
