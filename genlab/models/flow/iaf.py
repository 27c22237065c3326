"""IAF as a density: Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016.

https://arxiv.org/abs/1606.04934.
"""

from __future__ import annotations

from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.elementwise import Affine
from genlab.models.flow.flow import Alpha, Flow, validate_spec
from genlab.models.flow.linear import ActNorm
from genlab.models.flow.maf import alternating_positions
from genlab.models.flow.transforms import Chain, Flatten, Inverse, Transform
from genlab.nn.masked import MaskedMLP
from genlab.nn.mlp import Activation
from genlab.spec import DataSpec, Positive


class IAF(Flow):
    """Inverse affine autoregressive layers: x_i = z_i σ(z_<i) + μ(z_<i).

    A sample takes one pass. A density, and so a training step, takes one pass per value, so it is
    for data with few values. The layers are the inverse of MAF's (Papamakarios et al. 2017, section
    3.4).

    Args:
        num_layers: number of layers.
        hidden, activation: of the masked network of each layer.
        alpha: for images: the margin of the logit.
        conditional: learn p(x|y) with one base distribution per class.

    Raises:
        UserError: the data is discrete.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_layers: Positive = 5,
        hidden: tuple[Positive, ...] = (64, 64),
        activation: Activation = "relu",
        alpha: Alpha = 0.05,
        conditional: bool = False,
    ) -> None:
        validate_spec("iaf", spec, conditional=conditional)
        layers: list[Transform] = [Flatten(spec.shape)]
        for i in range(num_layers):
            order = alternating_positions(spec.dim, i)
            net = MaskedMLP(spec.dim, hidden, 2, order=order, activation=activation)
            layers += [ActNorm(spec.dim), Inverse(Autoregressive(net, Affine()))]
        super().__init__(spec, Chain(*layers), alpha=alpha, conditional=conditional)
