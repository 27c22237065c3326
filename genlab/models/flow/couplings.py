"""Couplings: one part of the values is kept and determines the map of the other part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.models.flow.elementwise import Elementwise
from genlab.models.flow.transforms import Transform


class Coupling(Transform):
    """A coupling of the two halves of the values or channels.

    One half is kept and parametrizes an elementwise map of the other half: Dinh et al. 2014,
    equation 5 in its general form.

    Args:
        size: number of values or channels, dimension 1 of x.
        net: (B, kept, …) -> (B, changed · map.num_params, …). Its last layer is set to zero, where
            the map is the identity.
        keep_second: keep the second half and not the first.
    """

    def __init__(
        self, size: int, net: nn.Sequential, map: Elementwise, *, keep_second: bool = False
    ) -> None:
        super().__init__()
        self.net, self.map, self.keep_second = net, map, keep_second
        self.sizes = list(half_sizes(size))
        zero_init_and_count_outputs(net[-1])

    def split_with_map_params(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the kept part, the changed part and the map's parameters.

        The parameters are (B, changed, …, num_params).
        """
        a, b = x.split(self.sizes, 1)
        kept, changed = (b, a) if self.keep_second else (a, b)
        # only the network may run in a lower precision
        params = self.net(kept).to(x.dtype)
        params = params.unflatten(1, (-1, self.map.num_params)).movedim(2, -1)
        return kept, changed, params

    def join_kept_and_changed(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Return the values (B, size, …) of the kept and the changed part."""
        return torch.cat([changed, kept] if self.keep_second else [kept, changed], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed, params = self.split_with_map_params(x)
        z, ladj = self.map(changed, params)
        return self.join_kept_and_changed(kept, z), ladj.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        kept, changed, params = self.split_with_map_params(z)
        return self.join_kept_and_changed(kept, self.map.inverse(changed, params))


def zero_init_and_count_outputs(layer: nn.Module) -> int:
    """Set weight and bias of a linear or convolutional layer to 0; return its output size."""
    assert isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer.bias.numel()


def half_sizes(size: int) -> tuple[int, int]:
    """Return the sizes of the two halves of `size` values; the first is larger if they differ."""
    return size - size // 2, size // 2


def kept_and_changed_sizes(size: int, *, keep_second: bool) -> tuple[int, int]:
    """Return how many of `size` values a coupling keeps, and how many it changes."""
    first, second = half_sizes(size)
    return (second, first) if keep_second else (first, second)


class AffineCoupling(Transform):
    """The masked affine coupling of Dinh et al. 2017, equation 9, with a bounded log-scale s.

    Args:
        net: computes s and t, (B, 2C, …), from the kept part (B, C, …). Its last layer is set to
            zero, so that the coupling starts as the identity.
        mask: 1 where a value is kept, 0 where it is changed; broadcasts against one item (C, …).
    """

    mask: Tensor

    def __init__(self, net: nn.Sequential, mask: Tensor) -> None:
        super().__init__()
        self.net = net
        channels = zero_init_and_count_outputs(net[-1]) // 2
        self.register_buffer("mask", mask, persistent=False)
        # bound of |s| per channel
        self.bound = nn.Parameter(torch.ones(channels, *[1] * (mask.dim() - 1)))

    def log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and t (B, C, …), which are 0 where the mask keeps a value."""
        s, t = self.net(self.mask * x).to(x.dtype).chunk(2, dim=1)
        change = 1 - self.mask
        return change * self.bound * s.tanh(), change * t

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.log_scale_and_shift(x)
        return x * s.exp() + t, s.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        s, t = self.log_scale_and_shift(z)  # z and x have the same kept part
        return (z - t) * (-s).exp()


def checkerboard_mask(shape: tuple[int, ...], parity: int) -> Tensor:
    """Return the mask (1, H, W) that is 1 where row + column + parity is even."""
    rows, columns = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
    return ((rows + columns + parity) % 2 == 0).float()[None]


def channel_mask(channels: int, parity: int) -> Tensor:
    """Return the mask (C, 1, 1) that is 1 on one half of the channels.

    It is the first half for parity 0, the second for parity 1.
    """
    first = torch.arange(channels) < channels // 2
    return (~first if parity else first).float()[:, None, None]


def alternating_mask(size: int, parity: int) -> Tensor:
    """Return the mask (size,) that is 1 where index + parity is even."""
    return ((torch.arange(size) + parity) % 2 == 0).float()
