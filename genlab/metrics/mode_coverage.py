"""Modes of a known mixture: the modes found, the quality of samples, and the mode balance."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics.base import Row, binomial_standard_error
from genlab.metrics.context import MetricContext

MAX_STD_DISTANCE = 3.0  # standard deviations from a mode within which a sample has high quality
NUM_BOOTSTRAPS = 200


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    is_applicable = context.dataset.centers is not None and "sample" in context.abilities
    return ["mode_count", "high_quality", "mode_kl"] if is_applicable else []


def count_modes_and_fraction_near(x: Tensor, centers: Tensor, std: float) -> tuple[int, float]:
    """Return the number of modes that samples reach, and the fraction of samples near a mode.

    Near is within 3 std. Srivastava et al. 2017 (https://arxiv.org/abs/1705.07761) and Lin et al.
    2018 (PacGAN).

    Args:
        x: samples (N, D).
        centers: means of the modes (M, D).
    """
    distance, nearest = torch.cdist(x.double(), centers.double()).min(1)
    is_near = distance <= MAX_STD_DISTANCE * std
    return int(nearest[is_near].unique().numel()), is_near.double().mean().item()


def mode_frequency_kl_and_error(
    x: Tensor, centers: Tensor, weights: Tensor | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """Return KL(q ‖ w) in nats of the samples' mode frequencies q, and its bootstrap error.

    It is the reverse KL divergence of Lin et al. 2018 (PacGAN, https://arxiv.org/abs/1712.04086):
    each sample of x (N, D) counts for the nearest of `centers` (M, D), however far away it is
    (`count_modes_and_fraction_near` counts the near ones). N samples of the mixture itself give
    (M − 1)/(2 N) on average.

    Args:
        weights: of the modes w (M,); None makes all equally likely.
    """
    nearest = torch.cdist(x.double(), centers.double()).argmin(1)
    q = torch.bincount(nearest, minlength=len(centers)).double()  # (M,)
    w = torch.ones_like(q) if weights is None else weights.double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(
        q.expand(NUM_BOOTSTRAPS, -1), len(x), replacement=True, generator=generator
    )  # (B, N)
    counts = torch.zeros(NUM_BOOTSTRAPS, len(q)).double()
    counts.scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    return reverse_kl(q, w).item(), reverse_kl(counts, w).std().item()


def reverse_kl(q: Tensor, p: Tensor) -> Tensor:
    """Return Σ q log(q / p) in nats (…) of counts or weights q and p (…, M), normalized first."""
    q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)


def measure(context: MetricContext) -> list[Row]:
    """Return the modes of n samples, their fraction of high quality, and the divergence.

    `real_vs_real` is the value of real items of the mixture itself. The fraction has a binomial
    error. If all modes are hit evenly, the bootstrap error of the divergence is up to √3 too large,
    because the histogram that is resampled is itself uneven by chance.
    """
    data, seed = context.dataset, context.settings.seed
    x, real = context.generated.x, context.items(context.floor_sets()[0][0]).x
    centers = torch.as_tensor(data.centers)
    weights = None if data.log_weights is None else data.log_weights.exp()
    num_modes, quality = count_modes_and_fraction_near(x, centers, data.std)
    real_num_modes, real_quality = count_modes_and_fraction_near(real, centers, data.std)
    kl, kl_error = mode_frequency_kl_and_error(x, centers, weights, seed=seed)
    real_kl, _ = mode_frequency_kl_and_error(real, centers, weights, seed=seed)
    conditions = {"n": len(x), "seed": seed}
    near = conditions | {"within": f"{MAX_STD_DISTANCE:g} sd"}
    return [
        Row(
            "mode_count",
            float(num_modes),
            f"of {len(centers)}",
            "estimate",
            real_vs_real=float(real_num_modes),
            better="higher",
            conditions=near,
        ),
        Row(
            "high_quality",
            quality,
            "share",
            "estimate",
            error=binomial_standard_error(quality, len(x)),
            real_vs_real=real_quality,
            better="higher",
            conditions=near,
        ),
        Row("mode_kl", kl, "nats", "estimate", kl_error, real_kl, conditions=conditions),
    ]
