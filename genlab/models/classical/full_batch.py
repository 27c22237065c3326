"""Training items for models that are fitted to the whole set, in one batch or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from genlab.spec import Batch


class TrainingItems:
    """The training items of a run; every pass yields the same items with the same noise.

    Args:
        start_pass: returns the batches of one pass over all items, in order.
        full_batch: whether to hold all items in memory as one batch.
    """

    def __init__(self, start_pass: Callable[[], Iterator[Batch]], *, full_batch: bool) -> None:
        self.start_pass, self.full_batch = start_pass, full_batch
        self._all: Batch | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the flat items x (B, D) and labels y (B,) of each batch of a pass."""
        for batch in [self.load_all_items()] if self.full_batch else self.start_pass():
            yield batch.x.flatten(1), batch.y

    def load_all_items(self) -> Batch:
        """Return all items as one batch."""
        if self._all is None:
            batches = list(self.start_pass())
            labels = [batch.y for batch in batches if batch.y is not None]
            self._all = Batch(
                torch.cat([batch.x for batch in batches]), torch.cat(labels) if labels else None
            )
        return self._all

    def iterate_group_items(self, group: int | None, *, min_items: int = 1) -> Iterator[Tensor]:
        """Yield the flat items (B, D) of a class, or of all classes if `group` is None.

        Args:
            min_items: smallest batch to yield, unless the class has fewer items in all.
        """
        pending: Tensor | None = None
        for x, y in self:
            if group is not None:
                x = x[y == group]
            pending = x if pending is None else torch.cat([pending, x])
            if len(pending) >= 2 * min_items:  # keeps enough items for a last batch
                yield pending[:-min_items]
                pending = pending[-min_items:]
        if pending is not None and len(pending):
            yield pending


def to_numpy(x: Tensor) -> np.ndarray:
    """Return items as a float64 array, the input of scikit-learn."""
    return x.double().cpu().numpy()
