"""Gaussians of items with missing cells: density, conditional distribution, EM statistics.

An item is split into its known values o and its missing values u. With μ and Σ split likewise,
x_u given x_o is N(μ_u + Σ_uo Σ_oo⁻¹ (x_o − μ_o), Σ_uu − Σ_uo Σ_oo⁻¹ Σ_ou). EM with missing cells:
Dempster, Laird & Rubin 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x, section 4.1.3;
Ghahramani & Jordan 1994, "Supervised learning from incomplete data via an EM approach", section 3.

Items with the same known columns share their matrices. The matrices of all such patterns are
computed at once, with full size D × D: rows and columns that do not belong to a block are 0. All
results are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from genlab.models.classical.covariance import LOG_2PI, MIN_VARIANCE_SHARE
from genlab.models.classical.full_batch import TrainingItems
from genlab.spec import Batch

MAX_MATRIX_VALUES = 2**24  # of all matrices of a part of the items


class Conditionals(NamedTuple):
    """The distribution of the missing values of items (B, D) given the known ones.

    Attributes:
        log_prob: log p(x_o) (B,) of the known values, in nats.
        mean: (B, D), E[x | x_o]: the known values, and the means of the missing ones.
        covariance: (P, D, D) of each pattern, 0 outside of the block of the missing values.
        pattern: (B,), the pattern of each item.
    """

    log_prob: Tensor
    mean: Tensor
    covariance: Tensor
    pattern: Tensor


def iterate_parts(x: Tensor) -> Iterator[slice]:
    """Yield slices of items x (B, D) that together have a bounded number of matrix values."""
    size = max(1, MAX_MATRIX_VALUES // x.shape[1] ** 2)
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def condition_on_known_values(
    x: Tensor, known: Tensor, mean: Tensor, matrix: Tensor
) -> Conditionals:
    """Return the distribution of the missing values of x (B, D) under N(mean, matrix).

    Args:
        known: bool (B, D); other values are ignored.
        mean: (D,); `matrix`: (D, D).
    """
    mean, matrix = mean.double(), matrix.double()
    patterns, index = known.unique(dim=0, return_inverse=True)  # (P, D), (B,)
    known_block = patterns[:, :, None] & patterns[:, None]
    missing_block = ~patterns[:, :, None] & ~patterns[:, None]
    # Σ_oo, with 1 on the diagonal of the missing values, which changes no determinant
    scale_tril = torch.linalg.cholesky(
        torch.where(known_block, matrix, 0.0) + torch.diag_embed((~patterns).double())
    )
    precision = torch.where(known_block, torch.cholesky_inverse(scale_tril), 0.0)
    cross = torch.where(~patterns[:, :, None] & patterns[:, None], matrix, 0.0)  # Σ_uo
    gain = cross @ precision  # Σ_uo Σ_oo⁻¹
    covariance = torch.where(missing_block, matrix - gain @ cross.mT, 0.0)
    centered = torch.where(known, x.double() - mean, 0.0)
    distance = torch.einsum("bi,bij,bj->b", centered, precision[index], centered)
    log_det = scale_tril.diagonal(dim1=1, dim2=2).log().sum(1)[index]
    log_prob = -0.5 * (distance + known.sum(1).double() * LOG_2PI) - log_det
    shifted = mean + torch.einsum("bij,bj->bi", gain[index], centered)
    return Conditionals(log_prob, torch.where(known, x.double(), shifted), covariance, index)


def log_prob_of_known_values(x: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Return log p(x_o) (B,) in nats of the values of x (B, D) that are not NaN."""
    parts = [
        condition_on_known_values(x[part], ~x[part].isnan(), mean, matrix).log_prob
        for part in iterate_parts(x)
    ]
    return torch.cat(parts)


def fill_with_conditional_mean(x: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Return x (B, D) with E[x_u | x_o] under N(mean, matrix) in place of NaN."""
    parts = [
        condition_on_known_values(x[part], ~x[part].isnan(), mean, matrix).mean
        for part in iterate_parts(x)
    ]
    return torch.cat(parts).to(x)


def expected_moments(
    x: Tensor, weight: Tensor, mean: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Σ_b w_b E[x − μ | x_o] (D,) and Σ_b w_b E[(x − μ)(x − μ)ᵀ | x_o] (D, D).

    The second moment has the conditional covariance of the missing values beside the square of
    their mean.

    Args:
        x: (B, D), NaN where a value is missing.
        weight: (B,).
        mean: μ (D,); `matrix`: Σ (D, D).
    """
    mean, weight = mean.double(), weight.double()
    first, second = torch.zeros_like(mean), torch.zeros_like(matrix, dtype=torch.float64)
    for part in iterate_parts(x):
        found = condition_on_known_values(x[part], ~x[part].isnan(), mean, matrix)
        centered = found.mean - mean
        by_pattern = weight.new_zeros(len(found.covariance)).index_add(
            0, found.pattern, weight[part]
        )
        first += weight[part] @ centered
        second += centered.T @ (centered * weight[part, None])
        second += torch.einsum("p,pij->ij", by_pattern, found.covariance)
    return first, second


def draw_from_mixture_given_known(
    x: Tensor, known: Tensor, log_weights: Tensor, means: Tensor, matrices: Tensor, draws: int
) -> Tensor:
    """Draw the unknown values of x (B, D) from Σ_k w_k N_k given the known ones (draws, B, D).

    First the component is drawn from p(k | x_o), then the values from that Gaussian.

    Args:
        known: bool (B, D).
        log_weights: (K,); `means`: (K, D); `matrices`: (K, D, D).
    """
    out = []
    for part in iterate_parts(x):
        found = [
            condition_on_known_values(x[part], known[part], mean, matrix)
            for mean, matrix in zip(means, matrices, strict=True)
        ]
        log_joint = torch.stack([one.log_prob for one in found], 1) + log_weights.double()
        component = torch.multinomial(log_joint.softmax(1), draws, replacement=True).T
        noise = torch.randn(draws, *x[part].shape, dtype=torch.float64, device=x.device)
        drawn = torch.empty_like(noise)
        for k, one in enumerate(found):
            factor = factor_missing_block(one.covariance, matrices[k].double())[one.pattern]
            values = one.mean + torch.einsum("bij,dbj->dbi", factor, noise)
            drawn = torch.where((component == k)[:, :, None], values, drawn)
        out.append(torch.where(known[part], x[part], drawn.to(x)))
    return torch.cat(out, 1)


def factor_missing_block(covariance: Tensor, matrix: Tensor) -> Tensor:
    """Return matrices F (P, D, D) with F Fᵀ = covariance (P, D, D), of the missing blocks.

    Variances below the share of the variances of `matrix` (D, D) that rounding leaves are 0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    floor = MIN_VARIANCE_SHARE**2 * matrix.diagonal().max()
    return vectors * torch.where(values > floor, values, 0.0).sqrt()[:, None]


def fill_with_column_means(items: TrainingItems) -> TrainingItems:
    """Return the items with each missing value replaced by the mean of its column."""
    total, count = torch.zeros(()).double(), torch.zeros(()).double()
    for x, _ in items:
        total = total + x.double().nan_to_num().sum(0)
        count = count + (~x.isnan()).double().sum(0)
    means = total / count.clamp(min=1)

    def start_pass() -> Iterator[Batch]:
        for x, y in items:
            yield Batch(torch.where(x.isnan(), means.to(x), x), y)

    return TrainingItems(start_pass, full_batch=items.full_batch)
