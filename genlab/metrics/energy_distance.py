"""The energy distance of generated and held-out items, zero only for equal distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics.base import Row, require_min_items
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space
from genlab.metrics.kid_mmd import squared_mmd_and_error

MAX_ITEMS = 2000  # per set: the cost grows with the square


def requested_or_value_spaces(context: MetricContext) -> list[str]:
    """Return the requested spaces; by default the values, which are cheap enough in training."""
    if context.settings.features is None:
        return ["pixels" if context.spec.kind == "image" else "coordinates"]
    return context.feature_spaces


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "sample" not in context.abilities or context.spec.kind not in ("image", "points"):
        return []
    return [
        row_name_in_space("energy_distance", space) for space in requested_or_value_spaces(context)
    ]


def energy_distance_and_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the energy distance of x (N, D) and y (M, D), and its standard error.

    2 E|X − Y| − E|X − X'| − E|Y − Y'|, unbiased: Székely & Rizzo 2013, "Energy statistics",
    equation 5. Distances are Euclidean, in the units of the data. It is the squared MMD of the
    kernel −|x − y| (Sejdinovic et al. 2013, https://arxiv.org/abs/1207.6076). So the error is that
    of a U-statistic, which also holds between equal distributions, where a bootstrap is too wide;
    see `squared_mmd_and_error`.

    Raises:
        NotMeasurableError: a set has fewer than two items.
    """
    require_min_items("an energy distance", 2, samples=len(x), real_items=len(y))
    center = y.double().mean(0)  # the smaller the norms, the less distances are rounded
    return squared_mmd_and_error(x - center, y - center, negative_distance_kernel)


def negative_distance_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return −|x − y| (N, M) of x (N, D) and y (M, D)."""
    return torch.cdist(x, y).neg_()


def measure(context: MetricContext) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space."""
    rows = []
    for space in requested_or_value_spaces(context):
        generated, real = (
            context.features(space, which)[:MAX_ITEMS] for which in ("generated", "real")
        )
        value, error = energy_distance_and_error(generated, real)
        floor = context.floor_distance(
            space,
            2,
            lambda a, b: energy_distance_and_error(a[:MAX_ITEMS], b[:MAX_ITEMS]),
        )
        conditions = context.make_conditions(space)
        if len(generated) < len(context.generated):
            conditions["n"] = f"{len(generated)} against {len(real)}"
        rows.append(
            Row(
                row_name_in_space("energy_distance", space),
                value,
                "distance",
                "estimate",
                error,
                None if floor is None else floor[0],
                conditions=conditions,
            )
        )
    return rows
