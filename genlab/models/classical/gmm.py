"""Gaussian mixtures (Dempster, Laird & Rubin 1977), and mixtures of probabilistic PCAs (Tipping & Bishop 1999)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.classical.class_conditional import refuse
from genlab.models.classical.covariance import Diagonal, Full, LowRank, frozen, second_moment
from genlab.models.classical.mixture import Mixture
from genlab.spec import NonNegative, Positive, Spec


class GMM(Mixture):
    """p(x) = Σ_k π_k N(x; μ_k, Σ_k).

    Args:
        components: K, of each class where the model is conditional.
        covariance: "spherical" (a variance for all values), "diagonal" (one each), "full", or "low_rank": W Wᵀ + σ² I, so
            that the model is a mixture of probabilistic PCAs (https://doi.org/10.1162/089976699300016728).
        rank: the number of columns in the W of "low_rank"; the other covariances take none.
        floor: what is added to every variance, in squared data units, so that no component shrinks onto a point.
        conditional: one such mixture a class.

    Raises:
        UserError: the data has no density, or a rank that does not fit it.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        components: Positive = 10,
        covariance: Literal["spherical", "diagonal", "full", "low_rank"] = "full",
        rank: Positive | None = None,
        floor: NonNegative = 1e-6,
        conditional: bool = False,
    ) -> None:
        refuse("gmm", spec, conditional=conditional, density=True)
        if (rank is not None) != (covariance == "low_rank"):
            raise UserError(
                "model.rank belongs to model.covariance=low_rank, which needs it: set both or neither"
            )
        if rank is not None and rank >= spec.dim:
            raise UserError(
                f"model.rank={rank} must be below the {spec.dim} values of an item: the rest is noise"
            )
        super().__init__(spec, components=components, conditional=conditional)
        self.floor = floor
        n = self.groups * components
        self.mean = frozen(n, spec.dim)  # μ
        self.covariance: Diagonal | Full | LowRank
        if covariance == "low_rank":
            self.covariance = LowRank(n, spec.dim, rank=rank)
        elif covariance == "full":
            self.covariance = Full(n, spec.dim)
        else:
            self.covariance = Diagonal(n, spec.dim, spherical=covariance == "spherical")

    def numbers(self, group: int) -> range:
        """Return the numbers of a group's Gaussians among all."""
        return range(group * self.components, (group + 1) * self.components)

    def log_parts(self, x: Tensor, group: int) -> Tensor:
        """Return log N(x; μ_k, Σ_k) (B, K) in nats of flat x (B, D)."""
        return torch.stack(
            [self.covariance.log_prob(x - self.mean[i], i) for i in self.numbers(group)], 1
        )

    def draw_part(self, n: int, group: int, k: int) -> Tensor:
        """Draw n flat items (n, D) of component k."""
        i = self.numbers(group)[k]
        return self.mean[i] + self.covariance.sample(n, i)

    def mean_part(self, group: int) -> Tensor:
        """Return the components' means (K, D)."""
        return self.mean[list(self.numbers(group))]

    # The second moments are taken about the present means, which loses no digits where a variance is small.
    def moments(self, x: Tensor, r: Tensor, group: int) -> dict[str, Tensor]:
        """Return Σ r_k (x − μ_k) (K, D) and Σ r_k (x − μ_k)² (K, D) or its outer product (K, D, D)."""
        first, second = [], []
        for i, weight in zip(self.numbers(group), r.T, strict=True):
            away = x - self.mean[i]
            first.append((weight @ away).double())
            second.append(second_moment(away, weight, outer=self.covariance.outer).double())
        return {"first": torch.stack(first), "second": torch.stack(second)}

    # N_k = Σ r_k; μ_k ← μ_k + δ with δ = Σ r_k (x − μ_k) / N_k; Σ_k ← Σ r_k (x − μ_k)(x − μ_k)ᵀ / N_k − δ δᵀ
    def maximise(self, moments: dict[str, Tensor], group: int) -> None:
        """The M-step; a component that no item belongs to stays as it is."""
        for i, n, first, second in zip(
            self.numbers(group), moments["n"], moments["first"], moments["second"], strict=True
        ):
            if n < 1e-3:
                continue
            shift = first / n
            self.mean[i] += shift.to(self.mean)
            square = torch.outer(shift, shift) if self.covariance.outer else shift.square()
            self.covariance.fit(second / n - square, i, floor=self.floor)
