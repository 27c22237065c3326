"""One affine layer: a Gaussian with full covariance, for images in the space of the logit.

The simplest flow, whose likelihood is known in closed form (Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057, table 2).
"""

from __future__ import annotations

from genlab.models.flow.flow import Alpha, Flow, check
from genlab.models.flow.linear import Triangular
from genlab.models.flow.transforms import Chain, Flatten
from genlab.spec import Spec


class AffineFlow(Flow):
    """z = L x + b with L lower triangular.

    Args:
        alpha: for images: the logit's margin.
        conditional: learn p(x|y), each class with a base of its own: after L, a Gaussian with diagonal covariance.

    Raises:
        UserError: the data has no density.
    """

    def __init__(self, spec: Spec, *, alpha: Alpha = 1e-6, conditional: bool = False) -> None:
        check("affine", spec, conditional=conditional, least=1)
        super().__init__(
            spec,
            Chain(Flatten(spec.shape), Triangular(spec.dim)),
            alpha=alpha,
            conditional=conditional,
        )
