"""The energy distance between drawn and held-out items: zero only where the two laws are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.metrics import Row, Settings

BOOTSTRAPS = 200
MOST = 2000  # items of each kind: the cost grows with their square


def rows(model: Any, dataset: Any) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = "sample" in abilities(model) and dataset.spec.kind in ("image", "points")
    return ["energy_distance", "energy_distance_floor"] if fits else []


def energy_distance(x: Tensor, y: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Return 2 E|X − Y| − E|X − X'| − E|Y − Y'| of x (N, D) and y (M, D), unbiased, and its bootstrap standard error.

    Székely & Rizzo 2013, "Energy statistics", equation 5. Distances are Euclidean, in the units of the data.
    """
    n, m = len(x), len(y)
    both = torch.cat([x, y]).double()
    distance = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")  # (N + M, N + M)

    def statistic(a: Tensor, b: Tensor) -> Tensor:  # weights (…, N) and (…, M), which count how often each is drawn
        # Pairs of an item with itself, also of its bootstrap copies, are no pairs: their distance is 0 and they are not counted.
        cross = torch.einsum("...i,ij,...j->...", a, distance[:n, n:], b) / (n * m)
        within_x = torch.einsum("...i,ij,...j->...", a, distance[:n, :n], a) / (n * n - (a * a).sum(-1))
        within_y = torch.einsum("...i,ij,...j->...", b, distance[n:, n:], b) / (m * m - (b * b).sum(-1))
        return 2 * cross - within_x - within_y

    generator = torch.Generator().manual_seed(seed)
    a = resampled(n, generator)
    b = resampled(m, generator)
    spread = statistic(a, b).std().item()
    return statistic(torch.ones(n).double(), torch.ones(m).double()).item(), spread


def resampled(n: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n items is drawn in each bootstrap (BOOTSTRAPS, n)."""
    drawn = torch.randint(n, (BOOTSTRAPS, n), generator=generator)
    return torch.zeros(BOOTSTRAPS, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(1).double().expand_as(drawn))


@torch.no_grad()
def measure(model: Any, dataset: Any, settings: Settings) -> list[Row]:
    """Return the distance of n samples to n held-out items, and of one half of those to the other (the floor)."""
    n, size = min(settings.n, MOST), settings.batch_size
    real = dataset.take(settings.split, n, seed=settings.seed).x.flatten(1)
    torch.manual_seed(settings.seed)
    drawn = [model.sample(min(size, n - i)).float().cpu() for i in range(0, n, size)]
    half = len(real) // 2
    conditions = {
        "features": "pixels" if dataset.spec.kind == "image" else "coordinates",
        "n": f"{n} against {len(real)}", "split": settings.split, "seed": settings.seed,
    }  # fmt: skip
    x = torch.cat(drawn)
    if dataset.spec.kind == "image" and dataset.spec.levels == 2:  # a sample may be given by its pixels' probabilities
        low, high = dataset.spec.range
        x = low + (high - low) * torch.bernoulli(((x - low) / (high - low)).clamp(0, 1))
        conditions["drawn"] = "from the pixels' probabilities"
    value, error = energy_distance(x.flatten(1), real, seed=settings.seed)
    floor, floor_error = energy_distance(real[:half], real[half:], seed=settings.seed)
    return [
        Row("energy_distance", value, "distance", "estimate", error, False, conditions),
        Row("energy_distance_floor", floor, "distance", "estimate", floor_error, False,
            {**conditions, "n": f"{half} against {len(real) - half}, both real"}),
    ]  # fmt: skip
