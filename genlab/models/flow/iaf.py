"""IAF as a density: Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling 2016, https://arxiv.org/abs/1606.04934."""

from __future__ import annotations

from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.elementwise import Affine
from genlab.models.flow.flow import Alpha, Flow, check
from genlab.models.flow.linear import ActNorm
from genlab.models.flow.maf import in_turns
from genlab.models.flow.transforms import Chain, Flatten, Inverse
from genlab.nn.masked import MaskedMLP
from genlab.nn.mlp import Activation
from genlab.spec import Positive, Spec


class IAF(Flow):
    """Affine autoregressive layers the other way round: x_i = z_i σ(z_<i) + μ(z_<i), so that one pass draws a sample.

    A density, and so a step of training, takes a pass for each value: it is for data of few values. The layers are the
    inverse of MAF's (Papamakarios et al. 2017, section 3.4).

    Args:
        layers: how many.
        hidden, activation: of each one's masked network.
        alpha: for images: the logit's margin.
        conditional: learn p(x|y), each class with a base of its own.

    Raises:
        UserError: the data has no density.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        layers: Positive = 5,
        hidden: tuple[Positive, ...] = (64, 64),
        activation: Activation = "relu",
        alpha: Alpha = 0.05,
        conditional: bool = False,
    ) -> None:
        check("iaf", spec, conditional=conditional)
        chain = []
        for i in range(layers):
            net = MaskedMLP(spec.dim, hidden, 2, order=in_turns(spec.dim, i), activation=activation)
            chain += [ActNorm(spec.dim), Inverse(Autoregressive(net, Affine()))]
        super().__init__(
            spec, Chain(Flatten(spec.shape), *chain), alpha=alpha, conditional=conditional
        )
