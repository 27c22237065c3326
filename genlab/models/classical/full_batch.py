"""The data as a fit wants it: whole where it fits in memory, and batch by batch where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from genlab.spec import Batch


class Items:
    """The training items of a run, the same ones in every pass, noise included.

    Args:
        batches: starts a pass in order over all items.
        whole: whether one batch holds them all.
    """

    def __init__(self, batches: Callable[[], Iterator[Batch]], *, whole: bool) -> None:
        self.batches, self.whole = batches, whole
        self._all: Batch | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the flat items x (B, D) and labels y (B,) of each batch of a pass."""
        for batch in [self.all()] if self.whole else self.batches():
            yield batch.x.flatten(1), batch.y

    def all(self) -> Batch:
        """Return the whole set as one batch."""
        if self._all is None:
            parts = list(self.batches())
            labelled = parts[0].y is not None
            self._all = Batch(
                torch.cat([b.x for b in parts]),
                torch.cat([b.y for b in parts]) if labelled else None,
            )
        return self._all

    def of(self, group: int | None, *, at_least: int = 1) -> Iterator[Tensor]:
        """Yield the flat items (B, D) of a class (None: of all), in batches of `at_least` items where there are so many."""
        held: Tensor | None = None
        for x, y in self:
            x = x if group is None else x[y == group]
            held = x if held is None else torch.cat([held, x])
            if len(held) >= 2 * at_least:  # what stays behind is enough for a last batch
                yield held[:-at_least]
                held = held[-at_least:]
        if held is not None and len(held):
            yield held


def array(x: Tensor) -> np.ndarray:
    """Return items as scikit-learn takes them, in double precision."""
    return x.double().cpu().numpy()
