"""Apply a function to many items in batches, so that memory holds any number of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab.console import track

BATCH_SIZE = 250  # items per call of the function, unless the caller says otherwise


@torch.no_grad()
def map_batched(
    function: Callable[..., Tensor],
    *tensors: Tensor | None,
    batch_size: int = BATCH_SIZE,
    label: str = "computing",
) -> Tensor:
    """Return function(*tensors), computed batch by batch without gradients and concatenated.

    Args:
        function: called with one batch of each tensor; its results are joined along the first
            dimension.
        tensors: each (N, …), split together; None is passed on as None (missing labels).
        label: says what is done, where progress is shown.
    """
    n = next(len(tensor) for tensor in tensors if tensor is not None)
    parts = []
    for start in track(range(0, max(n, 1), batch_size), label, unit="batches"):
        batch = slice(start, start + batch_size)
        parts.append(function(*(None if tensor is None else tensor[batch] for tensor in tensors)))
    return torch.cat(parts)
