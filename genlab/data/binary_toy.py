"""Small distributions of binary items, with known entropy: every item is listed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import Images
from genlab.errors import UserError
from genlab.spec import Positive

MAX_BITS = 16  # bits, or bars, up to which all items are listed


class BinaryToy(Images):
    """A distribution with finitely many equally likely rows.

    Every split has all rows, so that metrics measure the distribution itself.
    """

    commonly_binarized = True
    lists_distribution = True

    def set_rows_as_images(self, rows: Tensor, shape: tuple[int, ...]) -> None:
        """Set the rows (N, D) of zeros and ones, as images of `shape`.

        A row that occurs more than once counts more than once.
        """
        self.rows = rows
        x = rows.to(torch.uint8).view(-1, *shape)
        self.set_image_splits({split: Split(x) for split in SPLITS}, shape=shape, levels=2)

    @property
    def entropy(self) -> float:
        """The entropy in nats, the best mean −log p that a model can reach."""
        p = self.rows.unique(dim=0, return_counts=True)[1].double() / len(self.rows)
        return -(p * p.log()).sum().item()


@dataclass(kw_only=True, eq=False)
class BarsAndStripes(BinaryToy):
    """Bars and stripes: every choice of complete rows, and every choice of complete columns.

    The empty and the full image occur twice. MacKay 2003, Information theory, inference and
    learning algorithms, section 43.2. `size` is the side of the square, None: 3.
    """

    name = "bars"

    def __post_init__(self) -> None:
        super().__post_init__()
        side = self.side or 3
        if side > MAX_BITS:
            raise UserError(
                f"dataset.size={side}: all bars are listed, so the side is limited to {MAX_BITS} "
                "pixels"
            )
        bars = all_bit_vectors(side)[:, :, None].expand(-1, side, side)  # (2^side, side, side)
        self.set_rows_as_images(torch.cat([bars, bars.mT]), (1, side, side))


@dataclass(kw_only=True, eq=False)
class Parity(BinaryToy):
    """The rows of `bits` bits with an even number of ones.

    Pairwise couplings of the bits cannot represent this distribution.
    """

    bits: Positive = 3
    name = "parity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits > MAX_BITS:
            raise UserError(
                f"dataset.bits={self.bits}: all rows are listed, so there may be up to {MAX_BITS} "
                "bits"
            )
        rows = all_bit_vectors(self.bits)
        self.set_rows_as_images(rows[rows.sum(1) % 2 == 0], (1, 1, self.bits))


def all_bit_vectors(n: int) -> Tensor:
    """Return all rows (2^n, n) of n bits."""
    return torch.arange(2**n)[:, None] >> torch.arange(n) & 1
