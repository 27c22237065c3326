"""MAF: Papamakarios, Pavlakou & Murray 2017, https://arxiv.org/abs/1705.07057."""

from __future__ import annotations

import torch

from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.elementwise import Affine
from genlab.models.flow.flow import Alpha, Flow, check
from genlab.models.flow.linear import ActNorm
from genlab.models.flow.transforms import Chain, Flatten
from genlab.nn.masked import MaskedMLP
from genlab.nn.mlp import Activation
from genlab.spec import Positive, Spec


class MAF(Flow):
    """Affine autoregressive layers in one order and its reverse in turns: fast densities, a pass for each value of a sample.

    Where the paper has batch normalisation there is actnorm, so that a sample's density depends on that sample alone.

    Args:
        layers: how many; 1 is MADE with Gaussian conditionals.
        hidden, activation: of each one's masked network.
        alpha: for images: the logit's margin (section 4.2).
        conditional: learn p(x|y), each class with a base of its own.

    Raises:
        UserError: the data has no density.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        layers: Positive = 5,
        hidden: tuple[Positive, ...] = (1024,),
        activation: Activation = "relu",
        alpha: Alpha = 1e-6,
        conditional: bool = False,
    ) -> None:
        check("maf", spec, conditional=conditional)
        chain = []
        for i in range(layers):
            net = MaskedMLP(spec.dim, hidden, 2, order=in_turns(spec.dim, i), activation=activation)
            chain += [ActNorm(spec.dim), Autoregressive(net, Affine())]
        super().__init__(
            spec, Chain(Flatten(spec.shape), *chain), alpha=alpha, conditional=conditional
        )


def in_turns(dim: int, i: int) -> torch.Tensor:
    """Return the place of each value (dim,) in the order of layer i: their own, or its reverse."""
    order = torch.arange(dim)
    return order.flip(0) if i % 2 else order
