"""Probabilistic PCA: Tipping & Bishop 1999, https://doi.org/10.1111/1467-9868.00196."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.models.classical.class_conditional import (
    ClassConditionalDensity,
    ImputesByGaussians,
    fill_rows_by_group,
    validate_spec,
)
from genlab.models.classical.covariance import (
    MIN_VARIANCE_SHARE,
    LowRankCovariance,
    frozen_parameter,
)
from genlab.models.classical.full_batch import TrainingItems, to_numpy
from genlab.models.classical.missing_cells import (
    expected_moments,
    fill_with_conditional_mean,
    log_prob_of_known_values,
)
from genlab.spec import DataSpec, Positive

ITEMS_PER_COMPONENT = 5  # smallest batch of the incremental fit, per component
MAX_EM_ITERATIONS = 1000  # of the fit to items with missing values
EM_TOLERANCE = 1e-6  # nats per item: EM has converged where an iteration gains less


class PCA(ImputesByGaussians, ClassConditionalDensity):
    """x = W z + μ + σ ε with z ~ N(0, I): p(x) = N(μ, W Wᵀ + σ² I).

    W spans the principal subspace.

    Args:
        latent: q, the number of components.
        conditional: fit one density per class.

    Raises:
        UserError: the data is discrete, or an item has no more values than components.
    """

    takes_missing_values = True

    def __init__(self, spec: DataSpec, *, latent: Positive = 30, conditional: bool = False) -> None:
        validate_spec("pca", spec, conditional=conditional, is_density=True)
        if spec.dim == 1:
            raise UserError(
                "pca needs at least two values per item, but this data has 1; use model=gmm"
            )
        if latent >= spec.dim:
            raise UserError(
                f"model.latent={latent} must be below the {spec.dim} values of an item, since the "
                "remaining dimensions are noise"
            )
        super().__init__(spec, conditional=conditional)
        self.latent = latent
        self.mean = frozen_parameter(self.num_groups, spec.dim)  # μ
        self.covariance = LowRankCovariance(self.num_groups, spec.dim, rank=latent)

    @torch.no_grad()
    def fit_step(self, items: TrainingItems, *, step: int, seed: int) -> dict[str, Tensor]:
        """Fit each class, which takes one pass; return the mean −log p in nats per sample."""
        counts = [self.fit_group(items, g) for g in range(self.num_groups)]
        self.class_probs.copy_(torch.tensor(counts) / sum(counts))
        total = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        for x, y in items:
            total += self.log_prob(x, y if self.conditional else None).double().sum()
        return {"loss": -total / sum(counts)}

    # Equations 7 and 8: U and Λ are those of the sample covariance (with 1/N), and σ² is the mean
    # of the discarded eigenvalues.
    def fit_group(self, items: TrainingItems, g: int) -> int:
        """Fit group g by scikit-learn's PCA, incrementally if the items are streamed.

        Returns:
            The number of items in the group.
        """
        group = g if self.conditional else None
        if self.spec.has_missing:
            return self.fit_group_by_em(torch.cat(list(items.iterate_group_items(group))), g)
        if items.full_batch:
            from sklearn.decomposition import PCA as SklearnPCA

            data = to_numpy(torch.cat(list(items.iterate_group_items(group))))
            n = len(data)
            self.require_enough_items(n, group)
            pca = SklearnPCA(self.latent, svd_solver="covariance_eigh").fit(data)
            total_variance = data.var(0, ddof=1).sum()
        else:
            from sklearn.decomposition import IncrementalPCA

            pca, n = IncrementalPCA(self.latent), 0
            for x in items.iterate_group_items(group, min_items=ITEMS_PER_COMPONENT * self.latent):
                n += len(x)
                self.require_enough_items(n, group)
                pca.partial_fit(to_numpy(x))
            total_variance = pca.var_.sum() * n / (n - 1)
        if not total_variance > 0:
            where = "the training split" if group is None else f"class {g}"
            raise UserError(
                f"all items of {where} are equal, so pca does not have a density; "
                "choose data that varies"
            )
        eigenvalues = torch.from_numpy(pca.explained_variance_)
        # a cancellation can leave a little less than 0
        residual_variance = (total_variance - eigenvalues.sum()).clamp(min=0)
        noise_variance = residual_variance / (self.spec.dim - self.latent)
        to_maximum_likelihood = (n - 1) / n  # scikit-learn divides by N − 1
        self.mean[g] = torch.from_numpy(pca.mean_).to(self.mean)
        self.covariance.set_eigendecomposition(
            torch.from_numpy(pca.components_),
            eigenvalues * to_maximum_likelihood,
            noise_variance * to_maximum_likelihood,
            g,
        )
        return n

    # EM with the missing values as the hidden data: Σ is fitted to their expected second moment by
    # equations 7 and 8, as it is without missing values.
    def fit_group_by_em(self, x: Tensor, g: int) -> int:
        """Fit group g to items x (N, D) with missing values by EM, until it has converged.

        Returns:
            N.
        """
        self.require_enough_items(len(x), g if self.conditional else None)
        count = (~x.isnan()).sum(0).clamp(min=1)
        mean = x.double().nan_to_num().sum(0) / count
        squares = (x.double() - mean).square().nan_to_num().sum(0)
        self.mean[g] = mean.to(self.mean)
        self.covariance.fit_second_moment(torch.diag(squares / count), g, reg_covar=0.0)
        weight, before = torch.ones(len(x), dtype=torch.float64, device=x.device), -math.inf
        for _ in track(range(MAX_EM_ITERATIONS), "EM with missing cells", unit="iterations"):
            matrix = self.covariance.matrix(g)
            log_prob = log_prob_of_known_values(x, self.mean[g], matrix).mean().item()
            if log_prob - before < EM_TOLERANCE:
                break
            before = log_prob
            first, second = expected_moments(x, weight, self.mean[g], matrix)
            shift = first / len(x)
            self.mean[g] += shift.to(self.mean)
            moment = second / len(x) - torch.outer(shift, shift)
            self.covariance.fit_second_moment(moment, g, reg_covar=0.0)
        return len(x)

    def require_enough_items(self, n: int, group: int | None) -> None:
        """Raise UserError if n items are too few for the number of components."""
        if n <= self.latent + 1:
            where = "the training split" if group is None else f"class {group}"
            remedy = f"set model.latent={n - 2}" if n > 2 else "it needs at least 3"
            raise UserError(
                f"{where} has {n} items, too few for model.latent={self.latent}; {remedy}"
            )

    def fit_notes(self) -> list[str]:
        if not self.covariance.floored:
            return []
        eigenvalues = self.covariance.eigenvalues[sorted(self.covariance.floored)]
        largest = eigenvalues.amax(1, keepdim=True)
        rank = int((eigenvalues > 2 * MIN_VARIANCE_SHARE * largest).sum(1).min())
        remedy = f"; model.latent={rank - 1} avoids it" if rank > 1 else ""
        return [
            f"the data varies in at most {rank} of its {self.spec.dim} directions, so σ² would be "
            f"0: its floor, {MIN_VARIANCE_SHARE:g} of the mean variance, sets the likelihood"
            f"{remedy}"
        ]

    # --- abilities --------------------------------------------------------------------------------

    def group_log_prob(self, x: Tensor, group: int) -> Tensor:
        """Return log N(x; μ, W Wᵀ + σ² I) (B,) in nats for flat x (B, D).

        Missing values are integrated out.
        """
        if self.spec.has_missing and x.isnan().any():
            matrix = self.covariance.matrix(group)
            return log_prob_of_known_values(x, self.mean[group], matrix).to(x)
        return self.covariance.log_prob(x - self.mean[group], group)

    def gaussian_components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (G,), means (G, D) and covariances (G, D, D) of the G classes, or of 1."""
        matrices = [self.covariance.matrix(i) for i in range(self.num_groups)]
        return self.class_probs, self.mean, torch.stack(matrices)

    def sample_group(self, n: int, group: int) -> Tensor:
        """Draw n flat items (n, D)."""
        return self.mean[group] + self.covariance.sample(n, group)

    # Section 3.3: the posterior mean is shrunk toward 0. The z whose W z + μ is nearest to x is
    # (WᵀW)⁻¹ Wᵀ (x − μ).
    @torch.no_grad()
    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the code z (B, q), of unit variance, whose `decode` is the projection of x.

        A conditional model appends the index of the most probable class: z (B, q + 1).
        """
        x = x.flatten(1)
        classes = self.most_probable_class(x)

        def project(rows: Tensor, g: int) -> Tensor:
            items = x[rows]
            if self.spec.has_missing:  # E[z | x_o] is the code of E[x | x_o]
                items = fill_with_conditional_mean(items, self.mean[g], self.covariance.matrix(g))
            centered = items - self.mean[g]
            return centered @ self.covariance.eigenvectors[g].T / self.covariance.loading_norms[g]

        z = fill_rows_by_group(x.new_empty(len(x), self.latent), classes, project)
        return torch.cat([z, classes[:, None].to(z)], 1) if self.conditional else z

    def decode(self, z: Tensor) -> Tensor:
        """Return W z + μ (B, *shape) of codes from `encode`; images are not clamped."""
        if self.conditional:
            classes = z[:, -1].round().long()
        else:
            classes = torch.zeros(len(z), dtype=torch.long, device=z.device)
        z = z[:, : self.latent]

        def reconstruct(rows: Tensor, g: int) -> Tensor:
            scaled = z[rows] * self.covariance.loading_norms[g]
            return scaled @ self.covariance.eigenvectors[g] + self.mean[g]

        x = fill_rows_by_group(z.new_empty(len(z), self.spec.dim), classes, reconstruct)
        return x.unflatten(1, self.spec.shape)

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes from N(0, I).

        A conditional model appends the classes y (n,), or classes drawn from p(y).
        """
        z = torch.randn(n, self.latent, dtype=self.mean.dtype, device=self.mean.device)
        if not self.conditional:
            return z
        if y is None:
            y = torch.multinomial(self.class_probs, n, replacement=True)
        return torch.cat([z, y[:, None].to(z)], 1)

    def most_probable_class(self, x: Tensor) -> Tensor:
        """Return argmax_y p(y|x) (B,) for flat x (B, D)."""
        log_joint = [p.log() + self.group_log_prob(x, g) for g, p in enumerate(self.class_probs)]
        return torch.stack(log_joint, 1).argmax(1)
