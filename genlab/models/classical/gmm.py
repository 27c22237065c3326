"""Gaussian mixtures (Dempster, Laird & Rubin 1977), and mixtures of probabilistic PCAs.

The latter: Tipping & Bishop 1999, https://doi.org/10.1162/089976699300016728.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.classical.class_conditional import ImputesByGaussians, validate_spec
from genlab.models.classical.covariance import (
    DiagonalCovariance,
    FullCovariance,
    LowRankCovariance,
    frozen_parameter,
    second_moment,
)
from genlab.models.classical.missing_cells import expected_moments, log_prob_of_known_values
from genlab.models.classical.mixture import Mixture
from genlab.spec import DataSpec, NonNegative, Positive

MIN_RESPONSIBILITY = 1e-3  # a component with a smaller sum of responsibilities is not updated


class GMM(ImputesByGaussians, Mixture):
    """p(x) = Σ_k π_k N(x; μ_k, Σ_k).

    Args:
        num_components: K, per class if the model is conditional.
        covariance: "spherical" (one variance), "diagonal" (one per value), "full", or "low_rank":
            W Wᵀ + σ² I, a mixture of probabilistic PCAs.
        rank: number of columns of W for "low_rank"; None for the other covariances.
        reg_covar: added to every variance, in squared data units, so that no component collapses
            onto a point.
        conditional: fit one mixture per class.

    Raises:
        UserError: the data is discrete, or the rank does not fit it.
    """

    takes_missing_values = True

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_components: Positive = 10,
        covariance: Literal["spherical", "diagonal", "full", "low_rank"] = "full",
        rank: Positive | None = None,
        reg_covar: NonNegative = 1e-6,
        conditional: bool = False,
    ) -> None:
        validate_spec("gmm", spec, conditional=conditional, is_density=True)
        if (rank is not None) != (covariance == "low_rank"):
            raise UserError(
                "model.rank and model.covariance=low_rank require each other; set both or neither"
            )
        if rank is not None and rank >= spec.dim:
            raise UserError(
                f"model.rank={rank} must be below the {spec.dim} values of an item, since the "
                "remaining dimensions are noise"
            )
        super().__init__(spec, num_components=num_components, conditional=conditional)
        self.reg_covar = reg_covar
        n = self.num_groups * num_components
        self.mean = frozen_parameter(n, spec.dim)  # μ
        self.covariance: DiagonalCovariance | FullCovariance | LowRankCovariance
        if rank is not None:
            self.covariance = LowRankCovariance(n, spec.dim, rank=rank)
        elif covariance == "full":
            self.covariance = FullCovariance(n, spec.dim)
        else:
            self.covariance = DiagonalCovariance(n, spec.dim, spherical=covariance == "spherical")

    def group_component_range(self, group: int) -> range:
        """Return the indices of a group's Gaussians among those of all groups."""
        return range(group * self.num_components, (group + 1) * self.num_components)

    def component_log_probs(self, x: Tensor, group: int) -> Tensor:
        """Return log N(x; μ_k, Σ_k) (B, K) in nats for flat x (B, D).

        Missing values are integrated out.
        """
        indices = self.group_component_range(group)
        if self.spec.has_missing and x.isnan().any():
            by_component = [
                log_prob_of_known_values(x, self.mean[i], self.covariance.matrix(i))
                for i in indices
            ]
            return torch.stack(by_component, 1).to(x)
        return torch.stack([self.covariance.log_prob(x - self.mean[i], i) for i in indices], 1)

    def sample_component(self, n: int, group: int, k: int) -> Tensor:
        """Draw n flat items (n, D) of component k."""
        i = self.group_component_range(group)[k]
        return self.mean[i] + self.covariance.sample(n, i)

    def component_means(self, group: int) -> Tensor:
        """Return the components' means (K, D)."""
        return self.mean[list(self.group_component_range(group))]

    def gaussian_components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (G·K,), means (G·K, D) and covariances (G·K, D, D) of p(x)."""
        weights = (self.class_probs[:, None] * self.weight).flatten()
        matrices = [self.covariance.matrix(i) for i in range(len(self.mean))]
        return weights, self.mean, torch.stack(matrices)

    def place_components(self, centers: Tensor, group: int) -> None:
        self.mean[list(self.group_component_range(group))] = centers.to(self.mean)

    def fit_notes(self) -> list[str]:
        n = len(self.covariance.floored)
        if not n:
            return []
        return [
            f"{n} of {len(self.mean)} components have constant or collinear values, or too few "
            f"items: a floor of their variance (model.reg_covar={self.reg_covar:g}) sets the "
            "likelihood; fewer components, a larger model.reg_covar, or data without such columns "
            "avoid it"
        ]

    # The moments are taken about the current means, which preserves precision where a variance is
    # small.
    def sufficient_statistics(self, x: Tensor, r: Tensor, group: int) -> dict[str, Tensor]:
        """Return the weighted first and second moments about the current means.

        They are Σ r_k (x − μ_k) (K, D), and Σ r_k (x − μ_k)² (K, D) or its outer product (K, D, D).
        Missing values are replaced by their expectations given the known ones.
        """
        outer_product = self.covariance.uses_outer_product
        first, second = [], []
        is_incomplete = self.spec.has_missing and bool(x.isnan().any())
        for i, weight in zip(self.group_component_range(group), r.T, strict=True):
            if is_incomplete:
                expected = expected_moments(x, weight, self.mean[i], self.covariance.matrix(i))
                first.append(expected[0])
                second.append(expected[1] if outer_product else expected[1].diagonal())
                continue
            centered = x - self.mean[i]
            first.append((weight @ centered).double())
            second.append(second_moment(centered, weight, outer_product=outer_product).double())
        return {"first": torch.stack(first), "second": torch.stack(second)}

    # N_k = Σ r_k; μ_k ← μ_k + δ with δ = Σ r_k (x − μ_k) / N_k;
    # Σ_k ← Σ r_k (x − μ_k)(x − μ_k)ᵀ / N_k − δ δᵀ
    def m_step(self, statistics: dict[str, Tensor], group: int) -> None:
        """Update means and covariances; a component without items keeps its parameters."""
        for k, i in enumerate(self.group_component_range(group)):
            n, first, second = (statistics[name][k] for name in ("n", "first", "second"))
            if n < MIN_RESPONSIBILITY:
                continue
            shift = first / n
            self.mean[i] += shift.to(self.mean)
            if self.covariance.uses_outer_product:
                shift_moment = torch.outer(shift, shift)
            else:
                shift_moment = shift.square()
            self.covariance.fit_second_moment(
                second / n - shift_moment, i, reg_covar=self.reg_covar
            )
