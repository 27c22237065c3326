"""A machine from inside, as pictures: what each hidden unit looks at, and where the model's own chains wander."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.spec import Spec
from genlab.viz import image_grids

FILTERS = 100  # shown, at most: those with the largest weights
CHAINS = 10
STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # at which a chain is shown


def filters(weights: Tensor, spec: Spec) -> np.ndarray:
    """Return weights (n, *shape) as a picture (H', W', 3): each from black to white through grey, where it is 0."""
    size = weights.flatten(1).norm(dim=1)
    largest = weights[size.argsort(descending=True)[:FILTERS]]
    low, high = spec.range
    unit = largest / largest.flatten(1).abs().amax(1).clamp(min=1e-12).view(
        -1, *[1] * len(spec.shape)
    )  # −1 … 1
    return image_grids.grid(image_grids.to_bytes(low + (high - low) * (unit + 1) / 2, spec))


def chains(model: nn.Module, x: Tensor, spec: Spec) -> np.ndarray:
    """Return the Gibbs chains that begin at the items x (n, *shape), a row a chain: its states after 0, 1, 2, 5, … steps."""
    seen = [x]
    for before, after in pairwise(STEPS):
        seen.append(model.walk(seen[-1], after - before))
    images = image_grids.to_bytes(torch.stack(seen, 1).flatten(0, 1), spec)
    return image_grids.grid(images, columns=len(STEPS))


@torch.no_grad()
def machine_pictures(
    model: nn.Module,
    dataset: Any,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    split: str = "test",
) -> dict[str, np.ndarray]:
    """Return the pictures (H', W', 3) that fit, by name: "filters" of a model that has `filters`, "chains" of one with `walk`.

    `filters()` gives the weights (n, *shape) between the data and each unit of the first layer; `walk(x, k)` the items
    (B, *shape) that k steps of the model's own Markov chain make of x.
    """
    spec, found = dataset.spec, {}
    if spec.kind != "image":
        return found
    if callable(getattr(model, "filters", None)) and len(weights := model.filters()):
        found["filters"] = filters(weights, spec)
    if callable(getattr(model, "walk", None)):
        like = next(model.parameters())
        torch.manual_seed(seed)
        found["chains"] = chains(
            model, dataset.take(split, CHAINS, seed=seed).x.to(device, like.dtype), spec
        )
    return found
