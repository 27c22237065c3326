"""genlab density: the density of points as a map or a curve, beside the truth."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from genlab.abilities import abilities
from genlab.batching import map_batched
from genlab.errors import UserError
from genlab.inference.density_grids import Grid, kl_divergence, total_variation
from genlab.inference.items_and_codes import (
    ItemSelection,
    Split,
    load_selected_items_and_indices,
)
from genlab.inference.likelihood_scores import (
    MAPPED_SCORES,
    Score,
    ScoreSources,
    find_supported_score,
    score_items,
)
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, Positive
from genlab.tables import print_table
from genlab.viz.densities import (
    plot_cells,
    plot_density_curves,
    plot_density_map,
    plot_gaussian_components,
)
from genlab.viz.picture import Picture

CELLS = {1: 2000, 2: 200}  # along each axis, by the number of dimensions
Cells = Annotated[int, Interval(ge=10, le=20_000)]


@torch.no_grad()
def density(
    run: LoadedRun,
    *,
    score: Literal["density", "ode", "bound", "energy"] | None = None,
    range: tuple[float, float] | None = None,
    cells: Cells | None = None,
    n: Positive = 1000,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    split: Split = "test",
    seed: Count = 0,
    batch_size: Positive = 2000,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Draw the density of a model of points, the truth if it is known, and the difference.

    The record has the integral over the plotted range by the midpoint rule. With a known truth it
    also has the total variation distance and KL(truth ‖ model), both over the plotted range.

    Args:
        score: the kind of score to draw; None is the first that the model supports.
        range: of each axis; None covers the split, with a margin.
        cells: along each axis; None is 2000 on the line and 200 in the plane.
        n: number of data points in the picture.

    Raises:
        UserError: the model does not support it, or the data has more than two dimensions.
    """
    request = CommandRequest.from_command_call(density, [run], locals())
    available = require_command_support(run, "density")
    if run.spec.dim not in CELLS:
        raise UserError(
            f"genlab density draws points on the line or in the plane, but {run.dataset_name} has "
            f"{run.spec.dim} coordinates; genlab likelihood gives the numbers, and genlab "
            "reconstruct or genlab traverse shows a surface in space"
        )
    if range is not None and not range[0] < range[1]:
        raise UserError(f"range={list(range)}: the lower bound must come first")
    everything = load_selected_items_and_indices(run, ItemSelection(None, None, split, seed))[0].x
    grid = Grid.around(everything.flatten(1), cells or CELLS[run.spec.dim], range)
    shown = load_selected_items_and_indices(run, ItemSelection(n, None, split, seed))[0].x
    torch.manual_seed(seed)

    images: dict[str, Picture] = {}
    arrays: dict[str, Any] = {f"x{i}": center for i, center in enumerate(grid.centers, start=1)}
    record: dict[str, Any] = {"range": grid.ranges, "cells": list(grid.shape)}
    sources: ScoreSources = {score: MAPPED_SCORES[score]} if score else MAPPED_SCORES
    if score or any(verbs <= available for group in sources.values() for verbs in group):
        found = find_supported_score(
            run,
            sources,
            iwae_samples=iwae_samples,
            elbo_timesteps=elbo_timesteps,
            purpose=f"score of the kind {score}" if score else "score",
        )
        log_p = score_grid(run, found, grid, batch_size=batch_size)
        numbers, maps = measure_density(run, found, grid, log_p)
        record |= numbers
        arrays |= {"log_prob": log_p} | {f"{key}_density": value for key, value in maps.items()}
        images[""] = render_density(run, grid, maps, shown, describe_numbers(found, numbers))
    if picture := render_components_or_cells(run, grid, shown, batch_size=batch_size):
        images["components" if images else ""] = picture
    results = Results("density", seed, record=record, images=images, arrays=arrays)
    return write_results(run, request, results, output_dir)


def score_grid(run: LoadedRun, score: Score, grid: Grid, *, batch_size: int) -> Tensor:
    """Return the score (*grid.shape), float64, at the centers of the cells."""
    x = grid.points().to(next(run.model.parameters()).dtype).view(-1, *run.spec.shape)
    return score_items(run, score, Batch(x), batch_size=batch_size).view(grid.shape)


def measure_density(
    run: LoadedRun, score: Score, grid: Grid, log_p: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the numbers of a record, and the densities (*grid.shape) of model and truth.

    Args:
        log_p: the score (*grid.shape).
    """
    numbers: dict[str, Any] = {"score": str(score), "tag": score.tag}
    if score.note:
        numbers["note"] = score.note
    if score.ability == "energy":
        numbers["log_partition_over_range"] = log_partition = log_integral(grid, log_p)
        log_p = log_p - log_partition
    p = log_p.exp()
    numbers["integral"] = grid.integrate(p)
    maps = {"model": p}
    true_log_p = run.dataset.log_prob(grid.points())
    if true_log_p is not None:
        true_log_p = true_log_p.view(grid.shape)
        maps["truth"] = truth = true_log_p.exp()
        numbers |= {
            "integral_of_truth": grid.integrate(truth),
            "total_variation": total_variation(grid, p, truth),
            "kl_to_truth": kl_divergence(grid, truth, true_log_p - log_p),
        }
    rows = [
        [name.replace("_", " "), f"{value:.6f}"]
        for name, value in numbers.items()
        if isinstance(value, float)
    ]
    print(f"{run.name}: {score}, over {format_ranges(grid)}")
    print_table(["", "value"], rows)
    return numbers, maps


def log_integral(grid: Grid, log_p: Tensor) -> float:
    """Return log ∫ exp(log_p) dx over a grid."""
    return float(log_p.flatten().logsumexp(0).item() + np.log(grid.cell_volume))


def format_ranges(grid: Grid) -> str:
    """Return the range of each axis in words."""
    return " × ".join(f"[{low:.4g}, {high:.4g}]" for low, high in grid.ranges)


def describe_numbers(score: Score, numbers: dict[str, Any]) -> str:
    """Return the note of the picture: the score and what its integral is."""
    note = f"{score}; integral over the plotted range {numbers['integral']:.4f}"
    if "kl_to_truth" in numbers:
        note += (
            f" (truth {numbers['integral_of_truth']:.4f}), total variation "
            f"{numbers['total_variation']:.4f}, KL(truth ‖ model) {numbers['kl_to_truth']:.4f} nats"
        )
    return note


def render_density(
    run: LoadedRun, grid: Grid, maps: dict[str, Tensor], shown: Tensor, note: str
) -> Picture:
    """Return the picture of the densities with the data over them."""
    points = shown.flatten(1).double().cpu().numpy()
    names = {"model": f"model: {run.name}", "truth": f"truth: {run.dataset_name}"}
    named = {names[key]: value.numpy() for key, value in maps.items()}
    edges = [e.numpy() for e in grid.edges]
    if run.spec.dim == 1:
        return plot_density_curves(edges[0], named, points[:, 0], note=note)
    return plot_density_map(edges, named, points, note=note)


def render_components_or_cells(
    run: LoadedRun, grid: Grid, shown: Tensor, *, batch_size: int
) -> Picture | None:
    """Return the picture of a mixture's components or a clustering's cells, if it has some.

    Args:
        shown: data (N, D).
    """
    model, available = run.model, abilities(run.model)
    points = shown.flatten(1).double().cpu().numpy()
    edges = [e.numpy() for e in grid.edges]
    has_categories = {"encode", "category"} <= available

    def categories_of(x: Tensor) -> Tensor:
        x = run.device.to_device(Batch(x)).x
        return model.category(model.encode(x)).cpu()

    categories = categories_of(shown).numpy() if has_categories else None
    if "gaussian_components" in available:
        weights, means, covariances = (
            part.double().cpu().numpy() for part in model.gaussian_components()
        )
        note = "ellipses at 1 and 2 standard deviations of each component"
        if categories is not None:
            note += "; points in the color of their most probable component"
        note = "the weighted components" if run.spec.dim == 1 else note
        return plot_gaussian_components(
            points, categories, (weights, means, covariances), edges, note=note
        )
    if categories is None:
        return None
    x = grid.points().to(shown).cpu().view(-1, *run.spec.shape)
    cells = map_batched(categories_of, x, batch_size=batch_size).view(grid.shape).numpy()
    centers = None
    if "decode" in available:
        num_categories = model.encode(shown[:1]).shape[1]
        one_of_each = torch.eye(num_categories, dtype=shown.dtype, device=shown.device)
        centers = model.decode(one_of_each).flatten(1).double().cpu().numpy()
    note = "the cells of the categories, and the data in the color of their cell"
    return plot_cells(points, categories, edges, cells, centers, note=note)
