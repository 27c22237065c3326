"""Fully connected networks, and the activations by their option names."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["tanh", "relu", "softplus", "leaky_relu", "elu", "silu", "gelu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class MLP(nn.Sequential):
    """A fully connected network (…, inputs) to (…, outputs); linear if `hidden` is empty.

    Args:
        hidden: widths of the hidden layers.
        dropout: fraction of the hidden units dropped in training.
    """

    def __init__(
        self,
        inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, outputs))
