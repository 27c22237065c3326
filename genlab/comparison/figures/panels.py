"""Panels: samples, codes and reconstructions of each run, one column a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.comparison.figures.registry import FigureRun, make_table_lines
from genlab.errors import UserError
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.viz import item_pictures
from genlab.viz.figures import DATA_COLOR, SAMPLE_COLOR, canvas_to_picture, make_canvas_and_axes
from genlab.viz.latents import project_to_plane
from genlab.viz.picture import Picture, make_grid
from genlab.viz.slides import CELL_SIDE, Cell, Slide, render_slide

Panel = Literal["samples", "codes", "reconstructions", "manifold"]
NAMES: dict[Panel, str] = {
    "samples": "samples",
    "codes": "codes of held-out items",
    "reconstructions": "held-out items and reconstructions",
    "manifold": "decoded grid of codes",
}
CLASS_COLORS = 10
NUM_CODES = 500
PRIOR_RADII = (1.0, 2.0)  # standard deviations of the prior that circles show
MANIFOLD_HALF_WIDTH = 2.0  # standard deviations of the prior


def draw_panels(
    runs: list[FigureRun],
    *,
    show: tuple[Panel, ...],
    numbers: tuple[str, ...] = (),
    data: bool = False,
    side: Positive = 6,
    seed: Count = 0,
) -> Picture:
    """Return panels of each run, one column a run, with its numbers below.

    Args:
        show: samples | codes | reconstructions | manifold, from top to bottom. A code is one draw
            of q(z|x) if the model has a posterior; circles show the prior at 1 and 2 standard
            deviations.
        numbers: rows of the table.
        data: show held-out items in a first column, with the real-vs-real numbers.
        side: images in a row of a panel.
        seed: of the items and of the samples.
    """
    drawings: dict[Panel, Callable[[FigureRun, int, int], Cell | None]] = {
        "samples": draw_samples,
        "codes": draw_codes,
        "reconstructions": draw_reconstructions,
        "manifold": draw_manifold,
    }
    rows: list[list[Cell | None]] = []
    for panel in show:
        cells: list[Cell | None] = [drawings[panel](run, side, seed) for run in runs]
        if all(cell is None for cell in cells):
            raise UserError(f"figures: none of the models has what show=[{panel}] needs")
        if data:
            cells.insert(0, draw_data(runs[0].run, side, seed) if panel == "samples" else None)
        rows.append(cells)
    spec = runs[0].run.spec
    legend = {}
    if "codes" in show and spec.num_classes:
        legend = {f"class {spec.class_name(k)}": class_color(k) for k in range(spec.num_classes)}
    return render_slide(
        Slide(
            rows,
            [*(["data"] if data else []), *(run.label for run in runs)],
            [NAMES[panel] for panel in show] if len(show) > 1 else (),
            make_table_lines(runs, numbers, data=data),
            legend,
        )
    )


def class_color(k: int) -> str:
    """Return the color of a class."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["tab10"](k % CLASS_COLORS))


@torch.no_grad()
def draw_samples(run: FigureRun, side: int, seed: int) -> Cell | None:
    """Return samples of a run's model; None if it does not sample."""
    model = run.run.model
    if "sample" not in abilities(model):
        return None
    torch.manual_seed(seed)
    spec = run.run.spec
    n = side * side if spec.kind == "image" else NUM_CODES
    y = None
    if model.conditional:
        y = torch.arange(n, device=run.run.device.torch) % spec.num_classes
    x = model.sample(n, y, **run.sampler).float().cpu()
    if spec.kind == "image":
        return image_cell(x, run.run, side)
    real = run.run.dataset.head("test", NUM_CODES, seed=seed).x
    return scatter_cell({"data": real, "samples": x})


def draw_data(run: LoadedRun, side: int, seed: int) -> Cell:
    """Return held-out items."""
    if run.spec.kind == "image":
        return image_cell(run.dataset.head("test", side * side, seed=seed).x, run, side)
    return scatter_cell({"data": run.dataset.head("test", NUM_CODES, seed=seed).x})


@torch.no_grad()
def draw_reconstructions(run: FigureRun, side: int, seed: int) -> Cell | None:
    """Return pairs of rows: held-out items, and their reconstructions."""
    model, spec = run.run.model, run.run.spec
    if not {"encode", "decode"} <= abilities(model) or spec.kind != "image":
        return None
    num_pairs = max(1, side // 2)
    x = run.run.device.to_device(run.run.dataset.head("test", num_pairs * side, seed=seed)).x
    decoded = model.decode(model.encode(x))
    pairs = torch.stack([part.unflatten(0, (num_pairs, side)) for part in (x, decoded)], 1)
    return image_cell(pairs.flatten(0, 2), run.run, side)


@torch.no_grad()
def draw_manifold(run: FigureRun, side: int, seed: int) -> Cell | None:
    """Return the decoded items of a grid of codes over the prior from −2σ to 2σ."""
    model, spec = run.run.model, run.run.spec
    if "decode" not in abilities(model) or spec.kind != "image":
        return None
    axis = torch.linspace(-MANIFOLD_HALF_WIDTH, MANIFOLD_HALF_WIDTH, side)
    codes = torch.stack([axis.repeat(side), axis.flip(0).repeat_interleave(side)], 1)
    if getattr(model, "latent", 2) != 2:
        return None
    like = next(model.parameters())
    return image_cell(model.decode(codes.to(like)), run.run, side)


@torch.no_grad()
def draw_codes(run: FigureRun, side: int, seed: int) -> Cell | None:
    """Return a scatter plot of codes of held-out items, colored by class."""
    model = run.run.model
    available = abilities(model)
    if "encode" not in available:
        return None
    batch = run.run.device.to_device(run.run.dataset.head("test", NUM_CODES, seed=seed))
    torch.manual_seed(seed)
    if "posterior" in available:
        mean, log_var = model.posterior(batch.x)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
    else:
        z = model.encode(batch.x)
    z_array = z.flatten(1).double().cpu().numpy()
    y = None if batch.y is None else batch.y.cpu().numpy()
    plane, description, _ = project_to_plane(z_array, y)
    canvas, (axes,) = make_canvas_and_axes(CELL_SIDE / 100, CELL_SIDE / 100)
    colors: Any = SAMPLE_COLOR if y is None else [class_color(k) for k in y]
    axes.scatter(plane[:, 0], plane[:, 1], s=14, c=colors, alpha=0.8, linewidths=0)
    if "prior" in available and z_array.shape[1] == 2:
        angle = np.linspace(0, 2 * np.pi, 200)
        for radius in PRIOR_RADII:
            axes.plot(radius * np.cos(angle), radius * np.sin(angle), c="0.3", lw=1.2, ls="--")
    names = ("z₁", "z₂") if z_array.shape[1] == 2 else ("component 1", "component 2")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.25)
    caption = "" if z_array.shape[1] == 2 else description
    return Cell(canvas_to_picture(canvas).images[0], caption, is_plot=True)


def image_cell(x: Tensor, run: LoadedRun, columns: int) -> Cell:
    """Return images (N, C, H, W) as a grid."""
    images = item_pictures.to_uint8_images(x.float().cpu(), run.spec)
    return Cell(make_grid(images, columns=columns, gap=1))


def scatter_cell(points: dict[str, Tensor]) -> Cell:
    """Return named points (N, D) as a plot of two coordinates, the data in gray."""
    canvas, (axes,) = make_canvas_and_axes(CELL_SIDE / 100, CELL_SIDE / 100)
    for name, x in points.items():
        color = DATA_COLOR if name == "data" else SAMPLE_COLOR
        x = x.flatten(1).float().cpu()
        axes.scatter(x[:, 0], x[:, -1], s=8, c=color, linewidths=0, alpha=0.7)
    axes.set(xlabel="x₁", ylabel="x₂")
    axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.25)
    return Cell(canvas_to_picture(canvas).images[0], is_plot=True)
