"""NICE: Dinh, Krueger & Bengio 2014, https://arxiv.org/abs/1410.8516."""

from __future__ import annotations

import torch

from genlab.models.flow.base_distribution import Logistic
from genlab.models.flow.couplings import Coupling, coupled
from genlab.models.flow.elementwise import Shift
from genlab.models.flow.flow import Flow, check
from genlab.models.flow.linear import Scaling
from genlab.models.flow.transforms import Chain, Flatten, Permute
from genlab.nn.mlp import MLP, Activation
from genlab.spec import Positive, Spec


class NICE(Flow):
    """Additive couplings of the even and the odd values in turns, a scale a value, and a logistic base (section 5.1).

    Args:
        couplings: how many.
        hidden, activation: of each one's network.
        conditional: learn p(x|y), each class with a base of its own.

    Raises:
        UserError: the data has no density.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        couplings: Positive = 4,
        hidden: tuple[Positive, ...] = (1000, 1000, 1000, 1000, 1000),
        activation: Activation = "relu",
        conditional: bool = False,
    ) -> None:
        check("nice", spec, conditional=conditional)
        even_odd = torch.cat([torch.arange(0, spec.dim, 2), torch.arange(1, spec.dim, 2)])
        layers = []
        for i in range(couplings):
            second = bool(i % 2)
            kept, changed = coupled(spec.dim, second=second)
            net = MLP(kept, hidden, changed, activation=activation)
            layers.append(Coupling(spec.dim, net, Shift(), second=second))
        transform = Chain(Flatten(spec.shape), Permute(even_odd), *layers, Scaling(spec.dim))
        super().__init__(spec, transform, base=Logistic, conditional=conditional)
