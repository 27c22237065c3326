"""The energy distance between drawn and held-out items: zero only where the two laws are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named

BOOTSTRAPS = 200
MOST = 2000  # items of each kind: the cost grows with their square


def spaces(subject: Subject) -> list[str]:
    """Return the spaces asked for; by themselves the values, which cost nothing to have while a run trains."""
    if subject.settings.features is None:
        return ["pixels" if subject.spec.kind == "image" else "coordinates"]
    return subject.spaces


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = "sample" in subject.abilities and subject.spec.kind in ("image", "points")
    return [named("energy_distance", space) for space in spaces(subject)] if fits else []


def energy_distance(x: Tensor, y: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Return 2 E|X − Y| − E|X − X'| − E|Y − Y'| of x (N, D) and y (M, D), unbiased, and its bootstrap standard error.

    Székely & Rizzo 2013, "Energy statistics", equation 5. Distances are Euclidean, in the units of the data.
    """
    n, m = len(x), len(y)
    both = torch.cat([x, y]).double()
    distance = torch.cdist(
        both, both, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (N + M, N + M)

    def statistic(
        a: Tensor, b: Tensor
    ) -> Tensor:  # weights (…, N) and (…, M), which count how often each is drawn
        # Pairs of an item with itself, also of its bootstrap copies, are no pairs: their distance is 0 and they are not counted.
        cross = torch.einsum("...i,ij,...j->...", a, distance[:n, n:], b) / (n * m)
        within_x = torch.einsum("...i,ij,...j->...", a, distance[:n, :n], a) / (
            n * n - (a * a).sum(-1)
        )
        within_y = torch.einsum("...i,ij,...j->...", b, distance[n:, n:], b) / (
            m * m - (b * b).sum(-1)
        )
        return 2 * cross - within_x - within_y

    generator = torch.Generator().manual_seed(seed)
    a = resampled(n, generator)
    b = resampled(m, generator)
    spread = statistic(a, b).std().item()
    return statistic(torch.ones(n).double(), torch.ones(m).double()).item(), spread


def resampled(n: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n items is drawn in each bootstrap (BOOTSTRAPS, n)."""
    drawn = torch.randint(n, (BOOTSTRAPS, n), generator=generator)
    return torch.zeros(BOOTSTRAPS, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1).double().expand_as(drawn)
    )


def measure(subject: Subject) -> list[Row]:
    """Return the distance of n samples to n held-out items in each feature space, with its floor."""
    found = []
    for space in spaces(subject):
        drawn, real = (subject.features(space, which)[:MOST] for which in ("drawn", "real"))
        one, other = (subject.features(space, which)[:MOST] for which in ("half", "other_half"))
        value, error = energy_distance(drawn, real, seed=subject.settings.seed)
        floor, _ = energy_distance(one, other, seed=subject.settings.seed)
        more = {"n": f"{len(drawn)} against {len(real)}"} if len(drawn) < len(subject.drawn) else {}
        name = named("energy_distance", space)
        found.append(
            Row(
                name,
                value,
                "distance",
                "estimate",
                error,
                floor,
                "lower",
                subject.conditions(space, **more),
            )
        )
    return found
