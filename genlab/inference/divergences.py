"""The Jensen–Shannon divergence of data and a generator, and the value of the GAN's game.

Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661: against the optimal discriminator
D* = p/(p + q) the value of the game is V(D*, G) = 2 JS(p, q) − log 4 (theorem 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# A segment shorter than this share of the range counts as a point: its slope would be inexact.
MIN_SEGMENT = 1e-9


def js_divergence(p: Tensor, q: Tensor) -> float:
    """Return JS(p, q) in nats, 0 … log 2, of two distributions over the same cells.

    Over cells of a density it is a lower bound, with an error of the order of their squared width.

    Args:
        p, q: probabilities (cells,), float64.
    """
    total = p + q  # not its half, which may be too small for a number
    return sum(
        torch.special.xlogy(part, torch.where(part > 0, 2 * (part / total), 1.0)).sum().item() / 2
        for part in (p, q)
    )


def optimal_discriminator(p: Tensor, q: Tensor) -> Tensor:
    """Return D* = p/(p + q) (cells,) (proposition 1); NaN where both are 0."""
    return p / (p + q)


def game_value(logits: Tensor, p: Tensor, q: Tensor) -> float:
    """Return V(D, G) = Σ p log D + Σ q log(1 − D) in nats (equation 1).

    It is at most 2 JS(p, q) − log 4, with equality for the optimal discriminator.

    Args:
        logits: of D (cells,).
        p, q: probabilities (cells,) of the data and of the generator's samples.
    """
    return (p * logsigmoid(logits) + q * logsigmoid(-logits)).sum().item()


def cell_probabilities_on_curve(x: Tensor, masses: Tensor, edges: Tensor) -> Tensor:
    """Return the probability (cells,) of each cell under the image of a curve on the line.

    The curve is x(z) of a one-dimensional z. Between neighbors on it the probability is spread
    evenly, so that the result is exact for a piecewise linear x(z). The probability outside of
    the edges is left out.

    Args:
        x: values (M,) along the curve, float64.
        masses: the probability (M − 1,) between neighbors.
        edges: of the cells, ascending (cells + 1,).
    """
    low, high = torch.minimum(x[1:], x[:-1]), torch.maximum(x[1:], x[:-1])
    width = high - low
    is_point = width <= MIN_SEGMENT * (edges[-1] - edges[0])
    # of the distribution function: its slope changes at both ends of each segment
    slope = masses[~is_point] / width[~is_point]
    places = torch.cat([low[~is_point], high[~is_point], edges])
    changes = torch.cat([slope, -slope, torch.zeros_like(edges)])
    order = places.argsort(stable=True)
    places, changes = places[order], changes[order]
    steps = changes.cumsum(0)[:-1] * places.diff()
    cumulative = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])
    at_edges = np.interp(edges.numpy(), places.numpy(), cumulative.numpy())
    probabilities = torch.from_numpy(np.diff(at_edges)).clamp_min(0)
    points = (low + high)[is_point].numpy() / 2
    jumps, _ = np.histogram(points, edges.numpy(), weights=masses[is_point].numpy())
    return probabilities + torch.from_numpy(jumps)
