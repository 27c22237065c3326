"""Broadcasting of per-sample values over samples of any shape."""

from __future__ import annotations

from torch import Tensor


def expand_like(values: Tensor, x: Tensor) -> Tensor:
    """Append dimensions of size 1 to values (B,), so that they broadcast over x (B, …)."""
    return values.view(*values.shape, *[1] * (x.dim() - values.dim()))
