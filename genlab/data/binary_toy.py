"""Small laws of binary items, listed whole: a machine that can be enumerated is held against their exact entropies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import Images
from genlab.errors import UserError
from genlab.spec import Positive

LARGEST = 16  # bits, or bars, up to which a law is listed


class Bits(Images):
    """A law whose items are equally likely rows; every split is all of them, so that measures are of the law itself."""

    def hold_rows(self, rows: Tensor, shape: tuple[int, ...]) -> None:
        """Take the rows (N, D) of zeros and ones, repeated ones as often as they count, as images of `shape`."""
        self.rows = rows
        x = rows.to(torch.uint8).view(-1, *shape)
        self.hold_images({split: Split(x) for split in SPLITS}, shape=shape, levels=2)

    @property
    def entropy(self) -> float:
        """The law's entropy in nats, the best mean −log p that a model can reach."""
        p = self.rows.unique(dim=0, return_counts=True)[1].double() / len(self.rows)
        return -(p * p.log()).sum().item()


@dataclass(kw_only=True, eq=False)
class Bars(Bits):
    """Bars and stripes: every choice of whole rows and every choice of whole columns; none and all of them come twice.

    MacKay 2003, Information theory, inference and learning algorithms, section 43.2. `size` is the square's side, None: 3.
    """

    name = "bars"

    def __post_init__(self) -> None:
        super().__post_init__()
        side = self.side or 3
        if side > LARGEST:
            raise UserError(
                f"dataset.size={side}: bars are listed whole, up to {LARGEST} pixels a side"
            )
        bars = listed(side)[:, :, None].expand(-1, side, side)  # (2^side, side, side)
        self.hold_rows(torch.cat([bars, bars.mT]), (1, side, side))


@dataclass(kw_only=True, eq=False)
class Parity(Bits):
    """The rows of `bits` bits in which an even number are 1, which no couplings of pairs of the bits can tell apart."""

    bits: Positive = 3
    name = "parity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits > LARGEST:
            raise UserError(
                f"dataset.bits={self.bits}: parities are listed whole, up to {LARGEST} bits"
            )
        rows = listed(self.bits)
        self.hold_rows(rows[rows.sum(1) % 2 == 0], (1, 1, self.bits))


def listed(n: int) -> Tensor:
    """Return all rows (2^n, n) of n bits."""
    return torch.arange(2**n)[:, None] >> torch.arange(n) & 1
