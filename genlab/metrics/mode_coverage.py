"""Modes of a known mixture: how many a model found, how many of its samples lie near one, and how evenly they spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.context import Subject

NEAR = 3.0  # standard deviations within which a sample is of high quality
BOOTSTRAPS = 200


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    known = getattr(subject.dataset, "centers", None) is not None
    return ["modes", "high_quality", "mode_kl"] if known and "sample" in subject.abilities else []


def count_modes(x: Tensor, centers: Tensor, std: float) -> tuple[int, float]:
    """Return how many of `centers` (M, D) have a sample of x (N, D) within 3 std, and the share of x that is that near.

    The measures of Srivastava et al. 2017 (https://arxiv.org/abs/1705.07761) and Lin et al. 2018 (PacGAN).
    """
    distance, nearest = torch.cdist(x.double(), centers.double()).min(1)
    near = distance <= NEAR * std
    return int(nearest[near].unique().numel()), near.double().mean().item()


def mode_kl(
    x: Tensor, centers: Tensor, weights: Tensor | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """Return KL(q ‖ w) in nats of the samples' share of each mode from its weight w (M,), and its bootstrap error.

    The reverse KL divergence of Lin et al. 2018 (PacGAN, https://arxiv.org/abs/1712.04086): each sample of x
    (N, D) counts for the nearest of `centers` (M, D), however far it lies; how many are far, `count_modes` tells.
    Weights None: all modes are equally likely. N samples of the mixture itself give (M − 1)/(2 N) in the mean.
    """
    q = torch.bincount(
        torch.cdist(x.double(), centers.double()).argmin(1), minlength=len(centers)
    ).double()  # (M,)
    w = torch.ones_like(q) if weights is None else weights.double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(
        q.expand(BOOTSTRAPS, -1), len(x), replacement=True, generator=generator
    )  # (B, N)
    again = (
        torch.zeros(BOOTSTRAPS, len(q))
        .double()
        .scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    )
    return reverse_kl(q, w).item(), reverse_kl(again, w).std().item()


def reverse_kl(q: Tensor, p: Tensor) -> Tensor:
    """Return Σ q log(q / p) in nats (…) of counts or weights q (…, M) and p (…, M), which are made to sum to 1."""
    q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)


def measure(subject: Subject) -> list[Row]:
    """Return the modes found by n samples, the share of high quality (binomial error), and the divergence of the modes.

    The floor is what held-out items of the mixture itself give. Where all modes are hit evenly, the bootstrap error of
    the divergence is up to √3 too wide: it is the spread around a histogram that is itself uneven by chance.
    """
    data, seed = subject.dataset, subject.settings.seed
    x, real, centers = subject.drawn.x, subject.items("half").x, torch.as_tensor(data.centers)
    log_weights = getattr(getattr(data, "law", None), "log_weights", None)
    weights = None if log_weights is None else log_weights.exp()
    (modes, share), (all_modes, real_share) = (
        count_modes(part, centers, data.std) for part in (x, real)
    )
    kl, kl_error = mode_kl(x, centers, weights, seed=seed)
    real_kl, _ = mode_kl(real, centers, weights, seed=seed)
    common = {"n": len(x), "seed": seed}
    near = common | {"within": f"{NEAR:g} sd"}
    error = math.sqrt(share * (1 - share) / len(x))
    return [
        Row(
            "modes",
            float(modes),
            f"of {len(centers)}",
            "estimate",
            None,
            float(all_modes),
            "higher",
            near,
        ),
        Row("high_quality", share, "share", "estimate", error, real_share, "higher", near),
        Row("mode_kl", kl, "nats", "estimate", kl_error, real_kl, "lower", common),
    ]
