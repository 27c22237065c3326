"""Forms of a Gaussian's covariance: diagonal, full and low-rank.

Each has its density, sampling and maximum-likelihood fit. Every module holds n Gaussians of mean 0
over D values. Their fits take a weighted second moment: the mean of x² (D,), or of x xᵀ (D, D) if
`uses_outer_product` is true.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genlab.errors import UserError

LOG_2PI = math.log(2 * math.pi)
# Smallest share of a variance that single precision resolves: of a value's variance, what the other
# values do not determine, or of the mean variance, that of the directions outside a subspace.
# Collinear values have less; they get this share as a floor.
MIN_VARIANCE_SHARE = 1e-6
# A variance of up to this many times `reg_covar` is set by it rather than by the data.
FLOOR_RATIO = 10


def frozen_parameter(*shape: int, value: float = 0.0) -> nn.Parameter:
    """Return a parameter that is fitted in closed form, not by gradients."""
    return nn.Parameter(torch.full(shape, value), requires_grad=False)


def second_moment(x: Tensor, weight: Tensor, *, outer_product: bool) -> Tensor:
    """Return Σ_b weight_b x_b² (D,), or Σ_b weight_b x_b x_bᵀ (D, D) if `outer_product`.

    Args:
        x: (B, D).
        weight: (B,).
    """
    if not outer_product:
        return weight @ x.square()
    return x.T @ (x * weight[:, None])


def require_positive_variance(variance: Tensor) -> None:
    """Raise UserError if a variance is 0: the density would be infinite."""
    if not (variance > 0).all():
        raise UserError(
            "the items of a component are equal in some values, so its variance is 0 and its "
            "density infinite; set model.reg_covar=1e-6, or leave out constant columns"
        )


class Covariance(nn.Module):
    """Base class of the forms.

    Attributes:
        floored: the Gaussians of the last fit with a variance that is only a floor: values are
            constant or collinear, or the items too few.
    """

    uses_outer_product: bool

    def __init__(self) -> None:
        super().__init__()
        self.floored: set[int] = set()

    def mark_floored(self, i: int, is_floored: Tensor | bool) -> None:
        """Record whether a variance of Gaussian i is only a floor."""
        (self.floored.add if bool(is_floored) else self.floored.discard)(i)


class DiagonalCovariance(Covariance):
    """One variance per value, or one for all values if `spherical`."""

    uses_outer_product = False

    def __init__(self, n: int, dim: int, *, spherical: bool = False) -> None:
        super().__init__()
        self.spherical = spherical
        self.variance = frozen_parameter(n, dim, value=1.0)

    def matrix(self, i: int) -> Tensor:
        """Return Σ_i (D, D)."""
        return torch.diag(self.variance[i])

    def log_prob(self, x: Tensor, i: int) -> Tensor:
        """Return log N(x; 0, Σ_i) (B,) in nats for x (B, D)."""
        variance = self.variance[i]
        distance = x.square() @ variance.reciprocal()
        return -0.5 * (distance + variance.log().sum() + x.shape[1] * LOG_2PI)

    def sample(self, n: int, i: int) -> Tensor:
        """Draw n items (n, D) from N(0, Σ_i)."""
        variance = self.variance[i]
        noise = torch.randn(n, len(variance), dtype=variance.dtype, device=variance.device)
        return noise * variance.sqrt()

    def fit_second_moment(self, second: Tensor, i: int, *, reg_covar: float) -> None:
        """Set Σ_i to the second moment (D,), with `reg_covar` added to each variance."""
        variance = (second.mean() if self.spherical else second).clamp(min=0)
        require_positive_variance(variance + reg_covar)
        variance = variance + reg_covar
        self.mark_floored(i, (variance < FLOOR_RATIO * reg_covar).any())
        self.variance[i] = variance


class FullCovariance(Covariance):
    """An unrestricted covariance, stored as the Cholesky factor L of Σ = L Lᵀ."""

    uses_outer_product = True

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.scale_tril = nn.Parameter(torch.eye(dim).repeat(n, 1, 1), requires_grad=False)

    def matrix(self, i: int) -> Tensor:
        """Return Σ_i (D, D)."""
        return self.scale_tril[i] @ self.scale_tril[i].T

    def log_prob(self, x: Tensor, i: int) -> Tensor:
        """Return log N(x; 0, Σ_i) (B,) in nats for x (B, D)."""
        scale_tril = self.scale_tril[i]
        white = torch.linalg.solve_triangular(scale_tril, x.T, upper=False)  # (D, B)
        distance = white.square().sum(0)
        return -0.5 * (distance + x.shape[1] * LOG_2PI) - scale_tril.diagonal().log().sum()

    def sample(self, n: int, i: int) -> Tensor:
        """Draw n items (n, D) from N(0, Σ_i)."""
        scale_tril = self.scale_tril[i]
        noise = torch.randn(n, len(scale_tril), dtype=scale_tril.dtype, device=scale_tril.device)
        return noise @ scale_tril.T

    def fit_second_moment(self, second: Tensor, i: int, *, reg_covar: float) -> None:
        """Set Σ_i to the second moment (D, D), with `reg_covar` added to each variance."""
        second = second.double()
        covariance = second + reg_covar * torch.eye(len(second)).to(second)
        require_positive_variance(covariance.diagonal())
        scale_tril, is_raised = cholesky_with_floor(covariance)
        smallest = scale_tril.diagonal().square().min()
        self.mark_floored(i, is_raised or smallest < FLOOR_RATIO * reg_covar)
        self.scale_tril[i] = scale_tril.to(self.scale_tril)


def cholesky_with_floor(covariance: Tensor) -> tuple[Tensor, bool]:
    """Return the Cholesky factor of a covariance (D, D), and whether variances were raised.

    They are raised by a factor until no value is determined by the others up to rounding.
    """
    variance, share = covariance.diagonal(), 0.0
    while True:
        scale_tril, info = torch.linalg.cholesky_ex(covariance + torch.diag(share * variance))
        shares = scale_tril.diagonal().square() / variance  # not determined by earlier values
        if not info and (shares >= MIN_VARIANCE_SHARE).all():
            return scale_tril, share > 0
        share = max(10 * share, MIN_VARIANCE_SHARE)


class LowRankCovariance(Covariance):
    """The covariance of probabilistic PCA, Σ = W Wᵀ + σ² I, with q columns in W.

    It is stored as eigenvectors U (q, D) and eigenvalues λ (q,): W = Uᵀ (Λ − σ² I)^½
    (Tipping & Bishop 1999, equation 7).
    """

    uses_outer_product = True

    def __init__(self, n: int, dim: int, *, rank: int) -> None:
        super().__init__()
        eigenvectors = torch.eye(rank, dim).repeat(n, 1, 1)
        self.eigenvectors = nn.Parameter(eigenvectors, requires_grad=False)  # U, (n, q, D)
        self.eigenvalues = frozen_parameter(n, rank, value=2.0)  # λ, the variance along each axis
        self.noise_variance = frozen_parameter(n, value=1.0)  # σ²

    @property
    def loading_norms(self) -> Tensor:
        """(Λ − σ² I)^½ (n, q): the lengths of W's columns, clamped above 0."""
        return (self.eigenvalues - self.noise_variance[:, None]).clamp(min=1e-12).sqrt()

    def matrix(self, i: int) -> Tensor:
        """Return Σ_i (D, D)."""
        factor = self.eigenvectors[i].T * self.loading_norms[i]  # W (D, q)
        return factor @ factor.T + self.noise_variance[i] * torch.eye(len(factor)).to(factor)

    # xᵀ Σ⁻¹ x = |x − Uᵀ U x|²/σ² + (U x)ᵀ Λ⁻¹ U x and |Σ| = σ^{2(D−q)} Π λ, because the eigenvalues
    # of Σ are λ, and σ² for the other D − q. Unlike |x|²/σ² − (U x)ᵀ (I/σ² − Λ⁻¹) U x, this sum
    # does not cancel where σ² is small.
    def log_prob(self, x: Tensor, i: int) -> Tensor:
        """Return log N(x; 0, Σ_i) (B,) in nats for x (B, D)."""
        eigenvalues, noise_variance = self.eigenvalues[i], self.noise_variance[i]
        eigenvectors = self.eigenvectors[i]
        along = x @ eigenvectors.T  # (B, q)
        residual = x - along @ eigenvectors
        distance = residual.square().sum(1) / noise_variance + along.square() @ (1 / eigenvalues)
        log_det = eigenvalues.log().sum() + (x.shape[1] - len(eigenvalues)) * noise_variance.log()
        return -0.5 * (distance + log_det + x.shape[1] * LOG_2PI)

    def sample(self, n: int, i: int) -> Tensor:
        """Draw n items (n, D) from N(0, Σ_i): W z + σ ε."""
        rank, dim = self.eigenvectors.shape[1:]
        dtype, device = self.eigenvectors.dtype, self.eigenvectors.device
        z = torch.randn(n, rank, dtype=dtype, device=device)
        eps = torch.randn(n, dim, dtype=dtype, device=device)
        return (z * self.loading_norms[i]) @ self.eigenvectors[i] + self.noise_variance[
            i
        ].sqrt() * eps

    def fit_second_moment(self, second: Tensor, i: int, *, reg_covar: float) -> None:
        """Fit Σ_i to the second moment (D, D).

        λ are its q largest eigenvalues and σ² is the mean of the others.
        """
        values, vectors = torch.linalg.eigh(second.double())  # ascending
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        require_positive_variance(values.sum() + reg_covar)
        rank = self.eigenvalues.shape[1]
        values = values + reg_covar
        noise_variance = values[rank:].mean()
        self.set_eigendecomposition(vectors[:, :rank].T, values[:rank], noise_variance, i)
        is_floored = i in self.floored or noise_variance < FLOOR_RATIO * reg_covar
        self.mark_floored(i, is_floored)

    def set_eigendecomposition(
        self, eigenvectors: Tensor, eigenvalues: Tensor, noise_variance: Tensor, i: int
    ) -> None:
        """Set the eigenvectors (q, D), eigenvalues (q,) and σ² () of Σ_i.

        σ² is at least `MIN_VARIANCE_SHARE` of the mean variance, and so are the eigenvalues.
        """
        rank, dim = eigenvectors.shape
        mean_variance = (eigenvalues.sum() + (dim - rank) * noise_variance) / dim
        floor = MIN_VARIANCE_SHARE * mean_variance
        self.mark_floored(i, noise_variance < floor)
        noise_variance = noise_variance.maximum(floor)
        eigenvalues = eigenvalues.maximum(floor)
        self.eigenvectors[i] = eigenvectors.to(self.eigenvectors)
        self.eigenvalues[i] = eigenvalues.to(self.eigenvalues)
        self.noise_variance[i] = noise_variance.to(self.noise_variance)
