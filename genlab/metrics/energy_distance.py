"""The energy distance of generated and held-out items, zero only for equal distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics.base import Row, require_min_items
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space

NUM_BOOTSTRAPS = 200
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


def energy_distance_and_error(x: Tensor, y: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Return the energy distance of x (N, D) and y (M, D), and its bootstrap standard error.

    2 E|X − Y| − E|X − X'| − E|Y − Y'|, unbiased: Székely & Rizzo 2013, "Energy statistics",
    equation 5. Distances are Euclidean, in the units of the data.

    Raises:
        NotMeasurableError: a set has fewer than two items.
    """
    n, m = len(x), len(y)
    require_min_items("an energy distance", 2, samples=n, real_items=m)
    both = torch.cat([x, y]).double()
    # (N + M, N + M)
    distance = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")

    def statistic(a: Tensor, b: Tensor) -> Tensor:
        """Return the distance (…) where item i of x counts a_i (…, N) times, of y b_j (…, M)."""
        # Pairs of an item with itself, or with its bootstrap copies, have distance 0 and are not
        # counted as pairs.
        cross = torch.einsum("...i,ij,...j->...", a, distance[:n, n:], b) / (n * m)
        pairs_x, pairs_y = n * n - (a * a).sum(-1), m * m - (b * b).sum(-1)
        within_x = torch.einsum("...i,ij,...j->...", a, distance[:n, :n], a) / pairs_x
        within_y = torch.einsum("...i,ij,...j->...", b, distance[n:, n:], b) / pairs_y
        return 2 * cross - within_x - within_y

    generator = torch.Generator().manual_seed(seed)
    a = bootstrap_counts(n, generator)
    b = bootstrap_counts(m, generator)
    values = statistic(a, b)  # NaN where a set's few items are all the same one
    error = values[values.isfinite()].std().item()
    return statistic(torch.ones(n).double(), torch.ones(m).double()).item(), error


def bootstrap_counts(n: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n items is drawn in each bootstrap sample (NUM_BOOTSTRAPS, n)."""
    drawn = torch.randint(n, (NUM_BOOTSTRAPS, n), generator=generator)
    counts = torch.zeros(NUM_BOOTSTRAPS, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones(1).double().expand_as(drawn))


def measure(context: MetricContext) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space."""
    rows, seed = [], context.settings.seed
    for space in requested_or_value_spaces(context):
        generated, real = (
            context.features(space, which)[:MAX_ITEMS] for which in ("generated", "real")
        )
        value, error = energy_distance_and_error(generated, real, seed=seed)
        halves = context.distance_between_heldout_halves(
            space,
            2,
            lambda a, b: energy_distance_and_error(a[:MAX_ITEMS], b[:MAX_ITEMS], seed=seed),
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
                halves and halves[0],
                conditions=conditions,
            )
        )
    return rows
