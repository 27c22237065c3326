"""Plots of an RBM: hidden-unit filters and Gibbs chains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genlab.abilities import HasFilters, HasGibbsChain, TrajectoryState
from genlab.nn.broadcast import expand_like
from genlab.spec import DataSpec
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture

MAX_FILTERS = 100  # those with the largest norm
NUM_CHAINS = 10
CHAIN_STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # Gibbs steps at which a chain is shown


def plot_filters(weights: Tensor, spec: DataSpec) -> Picture:
    """Return weights (n, *shape) as a picture, each scaled from black to white.

    A weight of 0 is gray.
    """
    norm = weights.flatten(1).norm(dim=1)
    largest = weights[norm.argsort(descending=True)[:MAX_FILTERS]]
    scale = largest.flatten(1).abs().amax(1).clamp(min=1e-12)
    unit = largest / expand_like(scale, largest)  # −1 … 1
    without_levels = replace(spec, range=(-1.0, 1.0), dequantized=False)
    pixels = item_pictures.to_uint8_images(unit, without_levels)
    note = (
        f"weights of {len(largest)} of {len(weights)} hidden units, the largest first; each scaled "
        "from black (negative) to white (positive)"
    )
    return replace(make_picture(pixels, gap=4, note=note), background=255)


def plot_gibbs_chains(model: HasGibbsChain, x: Tensor, spec: DataSpec) -> Picture:
    """Return the Gibbs chains that start at the items x (n, *shape), one row per chain.

    The columns are its states after `CHAIN_STEPS` steps.
    """
    states: list[Tensor] = []

    def keep_state(state: TrajectoryState) -> None:
        if state.time in CHAIN_STEPS:
            states.append(state.x.clone())

    model.gibbs_chain(x, CHAIN_STEPS[-1], keep_state)
    images = item_pictures.to_uint8_images(torch.stack(states, 1).flatten(0, 1), spec)
    return make_picture(
        images,
        columns=len(CHAIN_STEPS),
        row_names=[f"chain {i + 1}" for i in range(len(x))],
        column_names=["item", *(f"{step:,}" for step in CHAIN_STEPS[1:])],
        note="Gibbs chains that start at held-out items: their states after so many steps",
    )


@torch.no_grad()
def plot_rbm_filters_and_chains(
    model: nn.Module,
    dataset: Any,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    split: str = "test",
) -> dict[str, Picture]:
    """Return the pictures that the model supports, by name; none for data but images.

    They are "filters" of a model with `filters` and "chains" of a model with `gibbs_chain`.
    """
    spec = dataset.spec
    plots: dict[str, Picture] = {}
    if spec.kind != "image":
        return plots
    if isinstance(model, HasFilters):
        weights = model.filters()
        if len(weights):
            plots["filters"] = plot_filters(weights, spec)
    if isinstance(model, HasGibbsChain):
        dtype = next(model.parameters()).dtype
        torch.manual_seed(seed)
        x = dataset.head(split, NUM_CHAINS, seed=seed).x.to(device, dtype)
        plots["chains"] = plot_gibbs_chains(model, x, spec)
    return plots
