"""Autoregressive transforms: a masked network parametrizes the map of each value.

Papamakarios, Pavlakou & Murray 2017, https://arxiv.org/abs/1705.07057.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.console import track
from genlab.models.flow.elementwise import Elementwise
from genlab.models.flow.transforms import Transform
from genlab.nn.masked import MaskedMLP


class Autoregressive(Transform):
    """z_i = map(x_i; net(x_<i)).

    The density takes one pass of the network, the inverse one pass per value. The network keeps its
    random initialization. If it started at the identity, its gradients would vanish by symmetry on
    data such as a grid.
    """

    def __init__(self, net: MaskedMLP, map: Elementwise) -> None:
        super().__init__()
        self.net, self.map = net, map

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, ladj = self.map(x, self.net(x).to(x.dtype))  # only the network may be rounded
        return z, ladj.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        x = torch.zeros_like(z)
        # pass i computes the value at position i of the order; later values stay 0
        for position in track(range(z.shape[1]), "sampling", unit="values"):
            params = self.net(x).to(z.dtype)
            x = torch.where(self.net.order <= position, self.map.inverse(z, params), 0)
        return x
