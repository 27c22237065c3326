"""Couplings: a part of the values is kept, and what it says changes the other part, value by value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.models.flow.elementwise import Elementwise
from genlab.models.flow.transforms import Transform


class Coupling(Transform):
    """Halves of the values or channels: one is kept, the other is changed by an elementwise map that the kept one chooses.

    Dinh et al. 2014, equation 5, in its general form.

    Args:
        size: values or channels, dimension 1 of x.
        net: (B, kept, …) -> (B, changed · map.outputs, …); its last layer is set to zero, at which maps are the identity.
        second: keep the second half, not the first.
    """

    def __init__(
        self, size: int, net: nn.Sequential, map: Elementwise, *, second: bool = False
    ) -> None:
        super().__init__()
        self.net, self.map, self.second = net, map, second
        self.cut = list(halves_of(size))
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is kept, what is changed, and the map's parameters (B, changed, …, outputs)."""
        a, b = x.split(self.cut, 1)
        kept, changed = (b, a) if self.second else (a, b)
        return kept, changed, self.net(kept).unflatten(1, (-1, self.map.outputs)).movedim(2, -1)

    def joined(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.second else [kept, changed], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed, parameters = self.parts(x)
        z, ladj = self.map(changed, parameters)
        return self.joined(kept, z), ladj.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        kept, changed, parameters = self.parts(z)
        return self.joined(kept, self.map.inverse(changed, parameters))


def halves_of(size: int) -> tuple[int, int]:
    """Return the sizes of the two halves of so many values; the first is the larger where they differ."""
    return size - size // 2, size // 2


def coupled(size: int, *, second: bool) -> tuple[int, int]:
    """Return how many of `size` values a coupling keeps, and how many it changes."""
    first, rest = halves_of(size)
    return (rest, first) if second else (first, rest)


class AffineCoupling(Transform):
    """The masked affine coupling of Dinh et al. 2017, equation 9, with the log-scale s bounded.

    Args:
        net: gives s and t, (B, 2C, …), from the kept part (B, C, …); its last layer is set to zero, so that the
            coupling starts as the identity.
        mask: 1 where a value is kept, 0 where it is changed; broadcasts against one item (C, …).
    """

    def __init__(self, net: nn.Sequential, mask: Tensor) -> None:
        super().__init__()
        self.net = net
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)
        self.register_buffer("mask", mask, persistent=False)
        channels = net[-1].bias.numel() // 2
        self.bound = nn.Parameter(
            torch.ones(channels, *[1] * (mask.dim() - 1))
        )  # s lies within ±bound, per channel

    def scale_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t (B, C, …), 0 where the mask keeps a value."""
        s, t = self.net(self.mask * x).chunk(2, dim=1)
        change = 1 - self.mask
        return change * self.bound * s.tanh(), change * t

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.scale_shift(x)
        return x * s.exp() + t, s.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        s, t = self.scale_shift(z)  # the kept part of z is that of x
        return (z - t) * (-s).exp()


def checkerboard(shape: tuple[int, ...], parity: int) -> Tensor:
    """Return the mask (1, H, W) that is 1 where row + column + parity is even."""
    rows, columns = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
    return ((rows + columns + parity) % 2 == 0).float()[None]


def by_channel(channels: int, parity: int) -> Tensor:
    """Return the mask (C, 1, 1) that is 1 on the first half of the channels, or with parity 1 on the second."""
    first = torch.arange(channels) < channels // 2
    return (~first if parity else first).float()[:, None, None]


def alternating(size: int, parity: int) -> Tensor:
    """Return the mask (size,) that is 1 where index + parity is even."""
    return ((torch.arange(size) + parity) % 2 == 0).float()
