"""Autoregressive transforms: each value is changed as the values before it say, by a masked network.

Papamakarios, Pavlakou & Murray 2017, https://arxiv.org/abs/1705.07057.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.models.flow.elementwise import Elementwise
from genlab.models.flow.transforms import Transform
from genlab.nn.masked import MaskedMLP


class Autoregressive(Transform):
    """z_i = map(x_i; net(x_<i)): one pass of the network; the inverse takes a pass for each value.

    The network starts as it is, for at the identity, on data as symmetric as a grid, nothing would tell it where to go.
    """

    def __init__(self, net: MaskedMLP, map: Elementwise) -> None:
        super().__init__()
        self.net, self.map = net, map

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, ladj = self.map(x, self.net(x))
        return z, ladj.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        x = torch.zeros_like(z)
        for place in range(
            z.shape[1]
        ):  # pass number i gets the value of place i right, those after it stay 0
            x = torch.where(self.net.order <= place, self.map.inverse(z, self.net(x)), 0)
        return x
