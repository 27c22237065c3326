"""Map numbers to a normal distribution by their quantiles, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QuantileTransform(nn.Module):
    """A monotone map of each column to N(0, 1): z = Φ⁻¹(F(x)), with F from the training rows.

    F is linear between `num_knots` quantiles. Equal values, which are many in columns of integers,
    are mapped to the middle of their quantiles. Values beyond the training rows' are mapped to the
    ends, at ± `max_abs`.

    Args:
        num_columns: D.
        num_knots: quantiles from the least to the greatest value.
    """

    knots: Tensor  # (D, num_knots), ascending

    def __init__(self, num_columns: int, num_knots: int) -> None:
        super().__init__()
        self.least = 0.5 / num_knots  # of F: half of a quantile's share
        self.register_buffer("knots", torch.linspace(-3, 3, num_knots).repeat(num_columns, 1))

    @property
    def max_abs(self) -> float:
        """The greatest |z| of a value."""
        return -torch.special.ndtri(torch.tensor(self.least, dtype=torch.float64)).item()

    def fit(self, x: Tensor) -> None:
        """Set the quantiles to those of x (M, D) float64."""
        levels = torch.linspace(0, 1, self.knots.shape[1], dtype=x.dtype)
        for i, column in enumerate(x.T):
            self.knots[i] = interpolate_quantiles(column.sort().values, levels)

    def forward(self, x: Tensor) -> Tensor:
        """Return z (B, D) of x (B, D)."""
        knots, last = self.knots.to(x.dtype), self.knots.shape[1] - 1
        columns = x.T.contiguous()  # (D, B)
        first = torch.searchsorted(knots, columns).clamp(max=last)  # the first knot ≥ x
        final = (torch.searchsorted(knots, columns, right=True) - 1).clamp(min=0)  # the last ≤ x
        low, high = knots.gather(1, final), knots.gather(1, first)
        between = (first > final) & (high > low)
        weight = torch.where(between, (columns - low) / torch.where(between, high - low, 1.0), 0.5)
        rank = final + weight * (first - final)
        u = (rank / last).clamp(self.least, 1 - self.least)
        return torch.special.ndtri(u).T

    def inverse(self, z: Tensor) -> Tensor:
        """Return x (B, D) of z (B, D), within the values of the training rows."""
        knots, last = self.knots.to(z.dtype), self.knots.shape[1] - 1
        rank = torch.special.ndtr(z).T.contiguous() * last  # (D, B)
        low = rank.floor().long().clamp(0, last - 1)
        start, end = knots.gather(1, low), knots.gather(1, low + 1)
        return torch.lerp(start, end, (rank - low).clamp(0, 1)).T


def interpolate_quantiles(ordered: Tensor, levels: Tensor) -> Tensor:
    """Return the quantiles (Q,) of ordered values (M,) at levels (Q,), linear between values."""
    rank = levels * (len(ordered) - 1)
    low = rank.floor().long().clamp(max=max(0, len(ordered) - 2))
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], rank - low)
