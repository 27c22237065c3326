"""One affine layer: a Gaussian with full covariance, for images in logit space.

The simplest flow, whose likelihood is known in closed form (Papamakarios et al. 2017,
https://arxiv.org/abs/1705.07057, table 2).
"""

from __future__ import annotations

from genlab.models.flow.flow import Alpha, Flow, validate_spec
from genlab.models.flow.linear import Triangular
from genlab.models.flow.transforms import Chain, Flatten
from genlab.spec import DataSpec


class AffineFlow(Flow):
    """z = L x + b with L lower triangular.

    Args:
        alpha: for images: the margin of the logit.
        conditional: learn p(x|y) with one base distribution per class, which after L is a Gaussian
            with diagonal covariance.

    Raises:
        UserError: the data is discrete.
    """

    def __init__(self, spec: DataSpec, *, alpha: Alpha = 1e-6, conditional: bool = False) -> None:
        validate_spec("affine", spec, conditional=conditional, min_dim=1)
        transform = Chain(Flatten(spec.shape), Triangular(spec.dim))
        super().__init__(spec, transform, alpha=alpha, conditional=conditional)
