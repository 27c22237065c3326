"""The covariances that a Gaussian may have, one file's worth of forms: each knows its density, its draws, and its fit.

All hold `n` Gaussians of mean 0 over D values. `second` is a weighted mean of x² (D,) or of x xᵀ (D, D), as `outer` says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TWO_PI = math.log(2 * math.pi)


def frozen(*shape: int, value: float = 0.0) -> nn.Parameter:
    """Return a parameter that is fitted in closed form, not by gradients."""
    return nn.Parameter(torch.full(shape, value), requires_grad=False)


def second_moment(x: Tensor, weight: Tensor, *, outer: bool) -> Tensor:
    """Return Σ_b weight_b x_b² (D,), or Σ_b weight_b x_b x_bᵀ (D, D) if `outer`, of x (B, D) and weight (B,)."""
    if not outer:
        return weight @ x.square()
    return x.T @ (x * weight[:, None])


class Diagonal(nn.Module):
    """A variance for each value; `spherical`: one for all of them."""

    outer = False

    def __init__(self, n: int, dim: int, *, spherical: bool = False) -> None:
        super().__init__()
        self.spherical = spherical
        self.variance = frozen(n, dim, value=1.0)

    def log_prob(self, x: Tensor, i: int) -> Tensor:
        """Return log N(x; 0, Σ_i) (B,) in nats of x (B, D)."""
        variance = self.variance[i]
        return -0.5 * (
            x.square() @ variance.reciprocal() + variance.log().sum() + x.shape[1] * TWO_PI
        )

    def sample(self, n: int, i: int) -> Tensor:
        """Draw n items (n, D) from N(0, Σ_i)."""
        variance = self.variance[i]
        return (
            torch.randn(n, len(variance), dtype=variance.dtype, device=variance.device)
            * variance.sqrt()
        )

    def fit(self, second: Tensor, i: int, *, floor: float) -> None:
        """Take the most likely Σ_i for the second moment (D,), with `floor` added to each variance."""
        self.variance[i] = (second.mean() if self.spherical else second).clamp(min=0) + floor


class Full(nn.Module):
    """Any covariance, held as the lower triangle L of Σ = L Lᵀ."""

    outer = True

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        self.triangle = nn.Parameter(
            torch.eye(dim).repeat(n, 1, 1), requires_grad=False
        )  # (n, D, D)

    def log_prob(self, x: Tensor, i: int) -> Tensor:
        """Return log N(x; 0, Σ_i) (B,) in nats of x (B, D)."""
        triangle = self.triangle[i]
        white = torch.linalg.solve_triangular(triangle, x.T, upper=False)  # (D, B)
        return (
            -0.5 * (white.square().sum(0) + x.shape[1] * TWO_PI) - triangle.diagonal().log().sum()
        )

    def sample(self, n: int, i: int) -> Tensor:
        """Draw n items (n, D) from N(0, Σ_i)."""
        triangle = self.triangle[i]
        return (
            torch.randn(n, len(triangle), dtype=triangle.dtype, device=triangle.device) @ triangle.T
        )

    def fit(self, second: Tensor, i: int, *, floor: float) -> None:
        """Take the most likely Σ_i for the second moment (D, D), with `floor` added to each variance."""
        second = second.double()
        self.triangle[i] = torch.linalg.cholesky(
            second + floor * torch.eye(len(second)).to(second)
        ).to(self.triangle)


class LowRank(nn.Module):
    """Probabilistic PCA's covariance Σ = W Wᵀ + σ² I, with q columns in W.

    Held by its eigenvectors and eigenvalues, U (q, D) and λ (q,): W = Uᵀ (Λ − σ² I)^½ (Tipping & Bishop 1999, equation 7).
    """

    outer = True

    def __init__(self, n: int, dim: int, *, rank: int) -> None:
        super().__init__()
        self.axes = nn.Parameter(
            torch.eye(rank, dim).repeat(n, 1, 1), requires_grad=False
        )  # U, (n, q, D)
        self.spread = frozen(n, rank, value=2.0)  # λ, the variance along each axis
        self.noise = frozen(n, value=1.0)  # σ²

    @property
    def scale(self) -> Tensor:
        """(Λ − σ² I)^½ (n, q): the lengths of W's columns, none of them exactly 0."""
        return (self.spread - self.noise[:, None]).clamp(min=1e-12).sqrt()

    # Σ⁻¹ = I/σ² − U (I/σ² − Λ⁻¹) Uᵀ and |Σ| = σ^{2(D−q)} Π λ: the eigenvalues of Σ are λ, and σ² for the other D − q.
    def log_prob(self, x: Tensor, i: int) -> Tensor:
        """Return log N(x; 0, Σ_i) (B,) in nats of x (B, D)."""
        axes, spread, noise = self.axes[i], self.spread[i], self.noise[i]
        along = (x @ axes.T).square()  # (B, q)
        distance = x.square().sum(1) / noise - along @ (1 / noise - 1 / spread)
        log_det = spread.log().sum() + (x.shape[1] - len(spread)) * noise.log()
        return -0.5 * (distance + log_det + x.shape[1] * TWO_PI)

    def sample(self, n: int, i: int) -> Tensor:
        """Draw n items (n, D) from N(0, Σ_i): W z + σ ε."""
        z, eps = (
            torch.randn(n, d, dtype=self.axes.dtype, device=self.axes.device)
            for d in self.axes.shape[1:]
        )
        return (z * self.scale[i]) @ self.axes[i] + self.noise[i].sqrt() * eps

    def fit(self, second: Tensor, i: int, *, floor: float) -> None:
        """Take the most likely Σ_i for the second moment (D, D): its q largest eigenvalues, and the mean of the others."""
        values, vectors = torch.linalg.eigh(second.double())  # rising
        values, vectors = values.flip(0).clamp(min=0) + floor, vectors.flip(1)
        rank = self.spread.shape[1]
        self.take(vectors[:, :rank].T, values[:rank], values[rank:].mean(), i)

    def take(self, axes: Tensor, spread: Tensor, noise: Tensor, i: int) -> None:
        """Take eigenvectors (q, D), their eigenvalues (q,) and σ² () as Σ_i's own."""
        self.axes[i], self.spread[i], self.noise[i] = (
            axes.to(self.axes),
            spread.to(self.spread),
            noise.to(self.noise),
        )
