"""The mixture of Bernoulli distributions, fitted by EM.

Bishop 2006, Pattern Recognition and Machine Learning, section 9.3.3; Dempster et al. 1977.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.classical.class_conditional import validate_spec
from genlab.models.classical.covariance import frozen_parameter
from genlab.models.classical.mixture import Mixture
from genlab.spec import DataSpec, Positive, PositiveFloat


class BernoulliMixture(Mixture):
    """p(x) = Σ_k π_k Π_i μ_ki^x_i (1 − μ_ki)^(1 − x_i) for binary x.

    Args:
        num_components: K, per class if the model is conditional.
        smoothing: pseudocount of ones, and of zeros, that is added for each value of a component
            (a Beta prior), so that no value has probability 0.
        conditional: fit one mixture per class.

    Raises:
        UserError: the data is not binary with the values 0 and 1.
    """

    gray_level_recipe = "gmm"

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_components: Positive = 100,
        smoothing: PositiveFloat = 0.1,
        conditional: bool = False,
    ) -> None:
        validate_spec("bernoulli_mixture", spec, conditional=conditional, is_density=False)
        if spec.levels != 2 or tuple(spec.range) != (0, 1) or spec.dequantized:
            raise UserError(
                "bernoulli_mixture requires the binary values 0 and 1; set "
                "preprocess.binarize=dynamic preprocess.range=[0,1] preprocess.dequantize=false"
            )
        super().__init__(spec, num_components=num_components, conditional=conditional)
        self.smoothing = smoothing
        self.mean = frozen_parameter(self.num_groups, num_components, spec.dim, value=0.5)  # μ

    # Bishop 2006, equation 9.48
    def component_log_probs(self, x: Tensor, group: int) -> Tensor:
        """Return log p(x|k) (B, K) in nats for flat x (B, D)."""
        mean = self.mean[group]  # (K, D)
        return x @ mean.logit().T + torch.log1p(-mean).sum(1)

    def sample_component(self, n: int, group: int, k: int) -> Tensor:
        """Draw n flat items (n, D) of component k."""
        return torch.bernoulli(self.mean[group, k].expand(n, -1))

    def component_means(self, group: int) -> Tensor:
        """Return the components' means (K, D)."""
        return self.mean[group]

    def sufficient_statistics(self, x: Tensor, r: Tensor, group: int) -> dict[str, Tensor]:
        """Return Σ r_k x (K, D)."""
        return {"ones": (r.T @ x).double()}

    # Bishop 2006, equation 9.59, with the pseudocounts of the prior
    def m_step(self, statistics: dict[str, Tensor], group: int) -> None:
        """Set each component's mean to its fraction of ones."""
        ones = statistics["ones"] + self.smoothing
        n = statistics["n"][:, None] + 2 * self.smoothing
        self.mean[group] = (ones / n).to(self.mean)
