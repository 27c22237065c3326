"""Fully connected networks, and the activations that options name."""

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
    """A fully connected network (…, inputs) -> (…, outputs); with `hidden` empty it is one linear layer.

    Args:
        dropout: share of the hidden units that a training pass leaves out.
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
            layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()] + (
                [nn.Dropout(dropout)] if dropout else []
            )
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, outputs))
