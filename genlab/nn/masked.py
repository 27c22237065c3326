"""Masked networks: an output depends on the inputs before it in an order only.

Germain, Gregor, Murray & Larochelle 2015 (MADE), https://arxiv.org/abs/1502.03509.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.mlp import ACTIVATIONS, Activation


class MaskedLinear(nn.Linear):
    """A linear layer (…, inputs) -> (…, outputs) whose weights count where `mask` (outputs, inputs) is True."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class MaskedMLP(nn.Module):
    """A fully connected network (B, D) -> (B, D, outputs) whose output i depends on the inputs before i alone.

    Hidden units see 1, 2, …, D − 1 of the values in turns, the same in layers of the same width.

    Args:
        hidden: widths of the hidden layers.
        outputs: numbers for each input.
        order: the place 0 … D − 1 of each input in the order (D,); None: the inputs' own.
        residual: each hidden layer but the first adds to the one before; all widths must be the same.
    """

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
            raise ValueError(f"a residual network has layers of one width, not {hidden}")
        self.outputs, self.residual = outputs, residual
        order = torch.arange(dim) if order is None else order
        self.register_buffer("order", order, persistent=False)
        degrees = [
            order + 1,
            *(torch.arange(width) % max(1, dim - 1) + 1 for width in hidden),
        ]  # section 4.1
        masks = [after[:, None] >= before for before, after in pairwise(degrees)]  # equation 12
        masks.append(
            (degrees[0][:, None] > degrees[-1]).repeat_interleave(outputs, 0)
        )  # equation 13
        self.layers = nn.ModuleList(map(MaskedLinear, masks))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        first, *middle, last = (
            self.layers if len(self.layers) > 1 else (nn.Identity(), *self.layers)
        )
        h = first(x)
        for layer in middle:
            step = layer(self.activation(h))
            h = h + step if self.residual else step
        h = self.activation(h) if len(self.layers) > 1 else h
        return last(h).unflatten(-1, (-1, self.outputs))  # (B, D, outputs)
