"""NICE: Dinh, Krueger & Bengio 2014, https://arxiv.org/abs/1410.8516."""

from __future__ import annotations

import torch

from genlab.models.flow.base_distribution import Logistic
from genlab.models.flow.couplings import Coupling, kept_and_changed_sizes
from genlab.models.flow.elementwise import Shift
from genlab.models.flow.flow import Flow, validate_spec
from genlab.models.flow.linear import Scaling
from genlab.models.flow.transforms import Chain, Flatten, Permute
from genlab.nn.mlp import MLP, Activation
from genlab.spec import DataSpec, Positive


class NICE(Flow):
    """Additive couplings of the even and odd values, one scale per value, and a logistic base.

    Couplings change the even and the odd values in turn (section 5.1).

    Args:
        num_couplings: number of couplings.
        hidden, activation: of the network of each coupling.
        conditional: learn p(x|y) with one base distribution per class.

    Raises:
        UserError: the data is discrete.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_couplings: Positive = 4,
        hidden: tuple[Positive, ...] = (1000, 1000, 1000, 1000, 1000),
        activation: Activation = "relu",
        conditional: bool = False,
    ) -> None:
        validate_spec("nice", spec, conditional=conditional)
        even_odd = torch.cat([torch.arange(0, spec.dim, 2), torch.arange(1, spec.dim, 2)])
        layers = []
        for i in range(num_couplings):
            keep_second = bool(i % 2)
            kept, changed = kept_and_changed_sizes(spec.dim, keep_second=keep_second)
            net = MLP(kept, hidden, changed, activation=activation)
            layers.append(Coupling(spec.dim, net, Shift(), keep_second=keep_second))
        transform = Chain(Flatten(spec.shape), Permute(even_odd), *layers, Scaling(spec.dim))
        super().__init__(spec, transform, base=Logistic, conditional=conditional)
