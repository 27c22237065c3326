"""MAF: Papamakarios, Pavlakou & Murray 2017, https://arxiv.org/abs/1705.07057."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.elementwise import Affine
from genlab.models.flow.flow import Alpha, Flow, validate_spec
from genlab.models.flow.linear import ActNorm
from genlab.models.flow.transforms import Chain, Flatten, Transform
from genlab.nn.masked import MaskedMLP
from genlab.nn.mlp import Activation
from genlab.spec import DataSpec, Positive


class MAF(Flow):
    """Affine autoregressive layers whose order of the values alternates with its reverse.

    Densities take one pass, samples one pass per value. Actnorm replaces the paper's batch
    normalization, so that the density of a sample depends only on that sample.

    Args:
        num_layers: number of layers; 1 is MADE with Gaussian conditionals.
        hidden, activation: of the masked network of each layer.
        alpha: for images: the margin of the logit (section 4.2).
        conditional: learn p(x|y) with one base distribution per class.

    Raises:
        UserError: the data is discrete.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_layers: Positive = 5,
        hidden: tuple[Positive, ...] = (1024,),
        activation: Activation = "relu",
        alpha: Alpha = 1e-6,
        conditional: bool = False,
    ) -> None:
        validate_spec("maf", spec, conditional=conditional)
        layers: list[Transform] = [Flatten(spec.shape)]
        for i in range(num_layers):
            order = alternating_positions(spec.dim, i)
            net = MaskedMLP(spec.dim, hidden, 2, order=order, activation=activation)
            layers += [ActNorm(spec.dim), Autoregressive(net, Affine())]
        super().__init__(spec, Chain(*layers), alpha=alpha, conditional=conditional)


def alternating_positions(dim: int, layer: int) -> Tensor:
    """Return the position of each value (dim,) in a layer's order; odd layers reverse it."""
    order = torch.arange(dim)
    return order.flip(0) if layer % 2 else order
