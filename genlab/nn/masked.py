"""Masked networks: each output depends only on the inputs that precede it in an order.

Germain, Gregor, Murray & Larochelle 2015 (MADE), https://arxiv.org/abs/1502.03509.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.mlp import ACTIVATIONS, Activation


class MaskedLinear(nn.Linear):
    """A linear layer (…, inputs) to (…, outputs) with weights only where the mask is True.

    Args:
        mask: (outputs, inputs), bool.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class MaskedMLP(nn.Module):
    """A fully connected network (B, D) to (B, D, outputs) with autoregressive masks.

    Output i depends only on the inputs before i. The hidden units depend on the first 1, 2, …, D −
    1 inputs in turn, in the same way in all layers of the same width.

    Args:
        hidden: widths of the hidden layers.
        outputs: numbers for each input.
        order: the position 0 … D − 1 of each input in the order (D,); None for the given order.
        residual: each hidden layer but the first adds to the one before; all widths must be equal.
    """

    order: Tensor

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        order: Tensor | None = None,
        activation: Activation = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"a residual network needs layers of equal width, not {hidden}")
        self.outputs, self.residual = outputs, residual
        order = torch.arange(dim) if order is None else order
        self.register_buffer("order", order, persistent=False)
        # section 4.1: how many inputs a unit depends on
        hidden_degrees = [torch.arange(width) % max(1, dim - 1) + 1 for width in hidden]
        degrees = [order + 1, *hidden_degrees]
        masks = [after[:, None] >= before for before, after in pairwise(degrees)]  # equation 12
        last = degrees[0][:, None] > degrees[-1]  # equation 13
        masks.append(last.repeat_interleave(outputs, 0))
        self.layers = nn.ModuleList(map(MaskedLinear, masks))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        h = x
        for i, layer in enumerate(hidden):
            if i == 0:
                h = layer(x)
                continue
            update = layer(self.activation(h))
            h = h + update if self.residual else update
        h = self.activation(h) if hidden else h
        return last(h).unflatten(-1, (-1, self.outputs))  # (B, D, outputs)
