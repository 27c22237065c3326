"""Plots of a latent space: codes of data, a manifold of decoded codes, reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.abilities import abilities
from genlab.model import GenerativeModel
from genlab.spec import DataSpec
from genlab.viz import item_pictures
from genlab.viz.figures import (
    FONT_SIZE,
    SIDE,
    add_legend,
    canvas_to_picture,
    escape_figure_label,
    make_canvas_and_axes,
)
from genlab.viz.picture import Picture, make_picture

MANIFOLD_SIDE = 20  # codes along each axis of a manifold
# a manifold covers the quantiles of the prior that N(0, 1) has at ± this many standard deviations
MANIFOLD_SIGMAS = 2.0
NUM_PRIOR_CODES = 100_000  # codes from which the quantiles of a prior are computed
MAX_RECONSTRUCTIONS = 40
RECONSTRUCTION_COLUMNS = 10
ENCODE_BATCH_SIZE = 250
MAX_LEGEND_CLASSES = 30  # a larger legend would hide the codes
BLUE = "#1f4e9c"
MAX_CODE_DISTANCE = 1.2 / MANIFOLD_SIDE  # of a surface from the codes of data, per axis length
SURFACE_REFINEMENT = 3  # times as many codes along each axis of a surface
SURFACE_VIEWS = ((62, -70), (22, -60))  # elevation and azimuth in degrees


def plot_codes(
    z: np.ndarray, y: np.ndarray | None = None, *, class_names: Sequence[str] = ()
) -> Picture:
    """Return a scatter plot of codes z (N, …), colored by the label y (N,).

    Two dimensions are shown as they are. More are projected to their first two principal
    components; the title has the fraction of the variance that these explain. A single dimension
    is plotted against the label.
    """
    from matplotlib import colormaps

    z = np.asarray(z, np.float64).reshape(len(z), -1)  # (N, d)
    plane, title, names = project_to_plane(z, y)
    canvas, (axes,) = make_canvas_and_axes(SIDE, SIDE)
    if y is None:
        axes.scatter(plane[:, 0], plane[:, 1], s=16, c=BLUE, alpha=0.7, linewidths=0)
    else:
        classes = np.unique(y)
        is_categorical = len(classes) <= 10
        colormap = colormaps["tab10" if is_categorical else "turbo"]
        for i, label in enumerate(classes):
            color = colormap(i if is_categorical else i / (len(classes) - 1))
            points = plane[y == label]
            style = {"s": 20, "color": color, "alpha": 0.8, "linewidths": 0}
            name = escape_figure_label(class_names[label] if class_names else label)
            axes.scatter(points[:, 0], points[:, 1], label=name, **style)
        if len(classes) <= MAX_LEGEND_CLASSES:
            add_legend(axes, len(classes), title="class")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(
        title, fontsize=FONT_SIZE, pad=32 if y is not None and len(np.unique(y)) <= 4 else 6
    )
    axes.grid(alpha=0.25)
    if z.shape[1] > 1:
        axes.set_aspect("equal", "datalim")
    return canvas_to_picture(canvas)


def project_to_plane(
    z: np.ndarray, y: np.ndarray | None
) -> tuple[np.ndarray, str, tuple[str, str]]:
    """Return codes z (N, d) in a plane (N, 2), the plane's description, and axis names."""
    d = z.shape[1]
    if d == 1:
        if y is None:
            return np.stack([z[:, 0], np.zeros(len(z))], 1), "the code", ("code", "")
        return np.stack([z[:, 0], y], 1), "the code against the label", ("code", "label")
    if d == 2:
        return z, "the 2 dimensions of the code", ("code dimension 0", "code dimension 1")
    centered = z - z.mean(0)
    # the rows of `axes` are the principal directions; a single code needs the full matrices
    _, s, axes = np.linalg.svd(centered, full_matrices=len(z) < 2)
    explained = (s[:2] ** 2).sum() / max((s**2).sum(), np.finfo(float).tiny)
    title = f"first 2 principal components of {d}, {explained:.0%} of the variance"
    return centered @ axes[:2].T, title, ("principal component 1", "principal component 2")


def plot_decoded_code_grid(
    decode: Callable[[Tensor], Tensor],
    spec: DataSpec,
    axes: tuple[Tensor, Tensor],
    *,
    data: Tensor | None = None,
    codes: Tensor | None = None,
) -> Picture:
    """Return the decoded items of a grid of two-dimensional codes as a picture.

    Images are shown in their places, points as a bent grid, points in space as a surface.

    Args:
        decode: maps codes (B, 2) to items (B, *shape).
        axes: coordinates of the codes along the width and, upward, along the height.
        data: points (N, D) to show behind the grid; not for images.
        codes: codes (N, 2) of data; a surface ends where there are none.
    """
    x, y = axes
    if spec.kind == "points" and spec.dim == 3:
        x, y = (refine_axis(axis, SURFACE_REFINEMENT) for axis in axes)
    # (len(y) len(x), 2), top row first
    codes = torch.stack([x.repeat(len(y)), y.flip(0).repeat_interleave(len(x))], 1)
    with torch.no_grad():
        items = decode(codes)
    if spec.kind == "image":
        return make_picture(item_pictures.to_uint8_images(items, spec), columns=len(x), gap=0)
    lines = items.detach().float().cpu().numpy().reshape(len(y), len(x), -1)
    points = None if data is None else data.detach().flatten(1).float().cpu().numpy()
    if lines.shape[2] == 3:
        if codes is not None:
            lines[~is_near_codes((x, y), codes)] = np.nan
        return plot_decoded_surface(lines, points)
    lines = lines[..., :2]
    canvas, (plot,) = make_canvas_and_axes(SIDE, SIDE)
    if points is not None:
        plot.scatter(points[:, 0], points[:, lines.shape[-1] - 1], s=9, c="0.75", linewidths=0)
    for line in (*lines, *lines.swapaxes(0, 1)):
        plot.plot(line[:, 0], line[:, -1], lw=0.7, c=BLUE)
    label_data_axes(plot, lines.shape[-1])
    return canvas_to_picture(canvas)


def refine_axis(axis: Tensor, times: int) -> Tensor:
    """Return an axis (n,) with `times` − 1 coordinates between each two: (times·(n−1) + 1,)."""
    weights = torch.arange(times, dtype=axis.dtype, device=axis.device) / times
    between = axis[:-1, None] + weights * axis.diff()[:, None]
    return torch.cat([between.flatten(), axis[-1:]])


def is_near_codes(axes: tuple[Tensor, Tensor], codes: Tensor) -> np.ndarray:
    """Return whether each code of a grid, top row first (height, width), has a code near it.

    Near is within MAX_CODE_DISTANCE of the extent of each axis.

    Args:
        axes: coordinates along the width and, upward, along the height.
        codes: (N, 2).
    """
    x, y = (axis.double().cpu() for axis in axes)
    extent = torch.stack([axis[-1] - axis[0] for axis in (x, y)])
    grid = torch.stack([x.repeat(len(y)), y.flip(0).repeat_interleave(len(x))], 1)
    distance = torch.cdist(grid / extent, codes.double().cpu() / extent).amin(1)
    return (distance < MAX_CODE_DISTANCE).view(len(y), len(x)).numpy()


def plot_decoded_surface(grid: np.ndarray, points: np.ndarray | None) -> Picture:
    """Return a surface in space (height, width, 3) as a picture, from two sides.

    The color along it is the first dimension of the code.

    Args:
        points: data (N, 3) around it.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(13, 6.6), dpi=100, layout="constrained"))
    layout: Any = canvas.figure.get_layout_engine()
    layout.set(rect=(0, 0, 0.97, 1))  # room for the label of the third axis
    everything = grid[~np.isnan(grid).any(2)] if points is None else points
    low, high = everything.min(0), everything.max(0)
    colors = np.broadcast_to(
        colormaps["viridis"](np.linspace(0, 1, grid.shape[1] - 1)),
        (grid.shape[0] - 1, grid.shape[1] - 1, 4),
    )
    for i, (elevation, azimuth) in enumerate(SURFACE_VIEWS):
        axes: Any = canvas.figure.add_subplot(1, 2, i + 1, projection="3d")
        if points is not None:
            axes.scatter(*points.T, s=7, c="0.35", alpha=0.45, linewidths=0, label="data")
        axes.plot_surface(
            *np.moveaxis(grid, 2, 0),
            facecolors=colors,
            rstride=1,
            cstride=1,
            alpha=0.75,
            edgecolor="#1d222b",
            linewidth=0.1,
            shade=False,
        )
        axes.set(xlabel="x₁", ylabel="x₂", zlabel="x₃")
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axes.set_box_aspect(high - low)
        axes.view_init(elevation, azimuth)
        axes.tick_params(labelsize=FONT_SIZE - 2)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.label.set_size(FONT_SIZE + 2)
    note = "the decoded grid of the code as a surface among the data, from two sides"
    return canvas_to_picture(canvas, f"{note}; the color is the code's first dimension")


def label_data_axes(axes: Any, dimensions: int) -> None:
    """Name the axes of a plot in the data's first two coordinates."""
    axes.set(xlabel="x₁", ylabel="x₂" if dimensions > 1 else "x₁")
    axes.grid(alpha=0.25)
    axes.set_aspect("equal", "datalim")


def prior_quantile_axes(codes: Tensor, side: int = MANIFOLD_SIDE) -> tuple[Tensor, Tensor]:
    """Return two axes (side,) over the quantiles of prior samples (N, 2).

    They are spaced evenly in probability: for N(0, I) from −2σ to 2σ.
    """
    sigmas = torch.tensor(-MANIFOLD_SIGMAS, dtype=torch.float64)
    edge = torch.special.ndtr(sigmas).item()
    levels = torch.linspace(edge, 1 - edge, side, dtype=codes.dtype, device=codes.device)
    a, b = codes.T
    return torch.quantile(a, levels), torch.quantile(b, levels)


def code_range_axes(codes: Tensor, side: int = MANIFOLD_SIDE) -> tuple[Tensor, Tensor]:
    """Return two axes (side,) spaced evenly over the range of codes (N, 2)."""
    a, b = (
        torch.linspace(z.min().item(), z.max().item(), side, dtype=z.dtype, device=z.device)
        for z in codes.T
    )
    return a, b


def plot_reconstructions(
    x: Tensor,
    reconstructions: Tensor,
    spec: DataSpec,
    *,
    columns: int = RECONSTRUCTION_COLUMNS,
) -> Picture:
    """Return items x (N, *shape) with their reconstructions as a picture.

    Images are shown in pairs of rows, each original above its reconstruction. Points are shown in
    gray behind their reconstructions.
    """
    if spec.kind == "points":
        return item_pictures.render_items_as_picture(
            reconstructions, spec, reals=x, name="reconstructions"
        )
    full = len(x) // columns * columns or len(x)  # complete rows, or all if there are fewer
    columns = min(columns, len(x))
    rows = [part[:full].unflatten(0, (-1, columns)) for part in (x, reconstructions)]
    pairs = torch.stack(rows, 1)  # (rows, 2, columns, C, H, W)
    return make_picture(
        item_pictures.to_uint8_images(pairs.flatten(0, 2), spec),
        columns=columns,
        row_names=["item", "reconstruction"] * len(pairs),
    )


def plot_paths(paths: Tensor, names: Sequence[str], background: Tensor | None = None) -> Picture:
    """Return a plot of paths (n, T, D) in data space, in the first two coordinates.

    Args:
        names: of the paths, for the legend.
        background: items (N, D) to show in gray behind the paths.
    """
    from matplotlib import colormaps

    canvas, (axes,) = make_canvas_and_axes(SIDE, SIDE)
    if background is not None:
        x = background.flatten(1).float().cpu().numpy()
        second = min(1, x.shape[1] - 1)
        axes.scatter(x[:, 0], x[:, second], s=9, c="0.75", linewidths=0, label="data")
    for i, path in enumerate(paths.detach().flatten(2).float().cpu().numpy()):
        color = colormaps["tab10"](i % 10)
        second = min(1, path.shape[1] - 1)
        style = {"marker": ".", "ms": 6, "lw": 1.2, "color": color, "alpha": 0.8}
        axes.plot(path[:, 0], path[:, second], label=escape_figure_label(names[i]), **style)
    label_data_axes(axes, paths[0, 0].numel())
    if len(paths) <= MAX_LEGEND_CLASSES:
        add_legend(axes, len(paths) + (background is not None))
    return canvas_to_picture(canvas)


@torch.no_grad()
def latent_space_plots(
    model: Any,
    dataset: Any,
    *,
    n: int,
    seed: int,
    device: torch.device | str = "cpu",
    split: str = "test",
) -> dict[str, Picture]:
    """Return the pictures of a latent space that the model supports, by name.

    "latent" shows the codes of n held-out items. If the model decodes, "reconstructions" shows
    reconstructed items, and "manifold" decodes a grid of two-dimensional codes: over the prior if
    there is one, otherwise over the range of the codes. There are none for a model without
    `encode`. If the code of an image is noise of the same size, as in diffusion models, "latent" is
    left out, since two dimensions of it are not informative.
    """
    supported, spec = abilities(model), dataset.spec
    if "encode" not in supported:
        return {}
    is_noise = spec.kind == "image" and encodes_by_reversed_sampling(model)
    batch = dataset.head(split, min(n, MAX_RECONSTRUCTIONS) if is_noise else n, seed=seed)
    dtype = next(model.parameters()).dtype
    parts = batch.x.split(ENCODE_BATCH_SIZE)
    z = torch.cat([model.encode(part.to(device, dtype)) for part in parts])
    y = None if batch.y is None else batch.y.cpu().numpy()
    plots = {}
    if not is_noise:
        codes = z.flatten(1).cpu().numpy()
        plots["latent"] = plot_codes(codes, y, class_names=spec.class_names)
    if "decode" not in supported or spec.kind not in ("image", "points"):
        return plots
    shown = MAX_RECONSTRUCTIONS if spec.kind == "image" else len(z)
    decoded = model.decode(z[:shown])
    plots["reconstructions"] = plot_reconstructions(batch.x[:shown], decoded, spec)
    if z.shape[1:] == (2,):
        torch.manual_seed(seed)
        if "prior" in supported:
            axes = prior_quantile_axes(model.prior(NUM_PRIOR_CODES))
        else:
            axes = code_range_axes(z)
        data = batch.x if spec.kind == "points" else None
        plots["manifold"] = plot_decoded_code_grid(
            model.decode, spec, axes, data=data, codes=z.flatten(1)
        )
    return plots


def encodes_by_reversed_sampling(model: nn.Module) -> bool:
    """Whether `encode` follows the sampler backward in many steps, from data to noise."""
    return (
        isinstance(model, GenerativeModel)
        and model.step_by_step
        and model.latent_interpolation == "spherical"
    )
