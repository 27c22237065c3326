"""Memorisation: whether samples lie nearer to the training items than fresh items do, and the pairs to look at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named
from genlab.metrics.precision_recall import blocks

CANDIDATES = 3  # nearest in single precision, of which the nearest in double precision is taken


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = (
        "sample" in subject.abilities
        and subject.spec.kind in ("image", "points")
        and subject.dataset.size("train")
    )
    return (
        [
            named(name, space)
            for space in subject.spaces
            for name in ("nearest_train", "data_copying")
        ]
        if fits
        else []
    )


def nearest(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each item of x (N, D) the distance (N,) float64 to the nearest of train (M, D), and its index (N,).

    The distance is Euclidean and exact; of items as near up to single precision, any may be the one.
    """
    center = train.mean(0).float()
    distance, index = [], []
    single = [part.float() - center for part in (x, train)]
    for where, d in blocks(*single):  # (B, M)
        near = d.topk(min(CANDIDATES, len(train)), largest=False).indices  # (B, C)
        exact = (x[where, None].double() - train[near].double()).norm(dim=-1)  # (B, C)
        least = exact.min(1)
        distance.append(least.values)
        index.append(near.gather(1, least.indices[:, None])[:, 0])
    return torch.cat(distance), torch.cat(index)


def nearer(samples: Tensor, fresh: Tensor) -> tuple[float, float]:
    """Return P(sample < fresh) + ½ P(equal) of distances (N,) and (M,), and its standard error.

    The Mann–Whitney statistic over N M that Meehan, Chaudhuri & Dasgupta 2020 test for data-copying
    (https://arxiv.org/abs/2004.05675), counted so that 1 is a copier and below ½ one that stays off the
    data. They test cell by cell; this is the whole space as one cell. Error: DeLong, DeLong & Clarke-Pearson 1988.
    """
    n, m = len(samples), len(fresh)
    of_samples = share_above(samples, fresh)  # (N,)
    of_fresh = 1 - share_above(fresh, samples)  # (M,)
    error = (
        math.sqrt(of_samples.var().item() / n + of_fresh.var().item() / m)
        if min(n, m) > 1
        else math.nan
    )
    return of_samples.mean().item(), error


def share_above(a: Tensor, b: Tensor) -> Tensor:
    """Return for each of a (N,) the share of b (M,) that is greater, equal ones counted as half."""
    b = b.sort().values
    return 1 - (torch.searchsorted(b, a) + torch.searchsorted(b, a, right=True)) / (2.0 * len(b))


def pairs(subject: Subject, n: int = 8, *, space: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the first n samples and the training item nearest to each in a feature space (None: the subject's first).

    Both (n, *shape) as the measures see them: images as bytes.
    """
    space = space or subject.spaces[0]
    _, index = nearest(subject.features(space, "drawn")[:n], subject.features(space, "train"))
    return subject.items("drawn").x[:n], subject.items("train").x[index]


def measure(subject: Subject) -> list[Row]:
    """Return the mean distance of n samples to their nearest training item, and how often a sample is the nearer one.

    The floor of the distance is that of held-out items, with the standard deviation over √n as its error; neither number
    is better for being lower or higher: held-out items lie where a sampler of the data's own law does.
    """
    found = []
    for space in subject.spaces:
        real, half, other = (
            subject.features(space, which) for which in ("real", "half", "other_half")
        )
        held = max(
            real, torch.cat([half, other]), key=len
        )  # real and the halves are the first items of one whole
        train = subject.features(space, "train")
        drawn, fresh = nearest(subject.features(space, "drawn"), train)[0], nearest(held, train)[0]
        m = len(half)
        total = subject.dataset.size("train")
        conditions = subject.conditions(
            space, train=len(train) if len(train) == total else f"{len(train)} of {total}"
        )
        error = drawn.std().item() / math.sqrt(len(drawn))
        floor = fresh[: len(real)].mean().item()
        copying, copying_error = nearer(drawn, fresh[: len(real)])
        even, _ = nearer(fresh[:m], fresh[m : 2 * m])
        name = lambda metric, space=space: named(metric, space)  # noqa: E731
        found += [
            Row(
                name("nearest_train"),
                drawn.mean().item(),
                "distance",
                "estimate",
                error,
                floor,
                "neither",
                conditions,
            ),
            Row(
                name("data_copying"),
                copying,
                "probability",
                "estimate",
                copying_error,
                even,
                "neither",
                conditions,
            ),
        ]
    return found
