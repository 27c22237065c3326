"""The mixture of Bernoullis: Bishop 2006, Pattern Recognition and Machine Learning, section 9.3.3; Dempster et al. 1977."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.classical.class_conditional import refuse
from genlab.models.classical.covariance import frozen
from genlab.models.classical.mixture import Mixture
from genlab.spec import Positive, PositiveFloat, Spec


class BernoulliMixture(Mixture):
    """p(x) = Σ_k π_k Π_i μ_ki^x_i (1 − μ_ki)^(1 − x_i) of binary x.

    Args:
        components: K, of each class where the model is conditional.
        smoothing: imagined ones and zeros, as many of each, that a value of a component is counted with (a Beta prior), so
            that no value is held for impossible.
        conditional: one such mixture a class.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        components: Positive = 100,
        smoothing: PositiveFloat = 0.1,
        conditional: bool = False,
    ) -> None:
        refuse("bernoulli_mixture", spec, conditional=conditional, density=False)
        if spec.levels != 2 or tuple(spec.range) != (0, 1) or spec.dequantised:
            raise UserError("bernoulli_mixture needs binary values 0 and 1; set prepare.binarize=dynamic "
                            "prepare.range=[0,1] prepare.dequantise=false")  # fmt: skip
        super().__init__(spec, components=components, conditional=conditional)
        self.smoothing = smoothing
        self.mean = frozen(self.groups, components, spec.dim, value=0.5)  # μ

    # Bishop 2006, equation 9.48
    def log_parts(self, x: Tensor, group: int) -> Tensor:
        """Return log p(x|k) (B, K) in nats of flat x (B, D)."""
        mean = self.mean[group]  # (K, D)
        return x @ mean.logit().T + torch.log1p(-mean).sum(1)

    def draw_part(self, n: int, group: int, k: int) -> Tensor:
        """Draw n flat items (n, D) of component k."""
        return torch.bernoulli(self.mean[group, k].expand(n, -1))

    def mean_part(self, group: int) -> Tensor:
        """Return the components' means (K, D)."""
        return self.mean[group]

    def moments(self, x: Tensor, r: Tensor, group: int) -> dict[str, Tensor]:
        """Return Σ r_k x (K, D)."""
        return {"ones": (r.T @ x).double()}

    # Bishop 2006, equation 9.59, with the prior's counts
    def maximise(self, moments: dict[str, Tensor], group: int) -> None:
        """The M-step: each component's share of ones."""
        ones, n = moments["ones"] + self.smoothing, moments["n"][:, None] + 2 * self.smoothing
        self.mean[group] = (ones / n).to(self.mean)
