"""Mode-specific normalization: a mixture per column, and the place within a mode.

Xu et al. 2019, https://arxiv.org/abs/1907.00503, section 4.2.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

SPAN = 4.0  # standard deviations of a mode that are mapped to 1
POINT_FRACTION = 0.2  # of the rows that have a value that is a separate mode
POINT_STD = 1e-5  # of such a mode, in standard deviations of the column
MIN_WEIGHT = 0.005  # of a mode that is kept
WEIGHT_PRIOR = 1e-3  # concentration of the Dirichlet process: few modes
MAX_FIT_ROWS = 50_000  # rows from which a mixture is fitted
MAX_ABS_PLACE = 0.99  # what the tanh of a decoder reaches
NO_LOG_WEIGHT = -1e4  # of a mode that is not used; finite, so that gradients are


class ModeNormalizer(nn.Module):
    """A number x as a mode k of its column's mixture and a place α = (x − μ_k)/(4 σ_k).

    A value that many rows have, as the zeros of a column of amounts, is a separate mode.
    Decoded numbers stay within the values of the training rows.

    Args:
        num_columns: D.
        num_modes: K, the most modes of a column.
    """

    means: Tensor  # (D, K)
    stds: Tensor  # (D, K)
    log_weights: Tensor  # (D, K)
    least: Tensor  # (D,) of the training rows
    greatest: Tensor  # (D,)

    def __init__(self, num_columns: int, num_modes: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_columns, num_modes))
        self.register_buffer("stds", torch.ones(num_columns, num_modes))
        weights = torch.full((num_columns, num_modes), -math.log(num_modes))
        self.register_buffer("log_weights", weights)
        self.register_buffer("least", torch.full((num_columns,), -math.inf))
        self.register_buffer("greatest", torch.full((num_columns,), math.inf))

    def fit(self, x: Tensor, seed: int) -> None:
        """Fit the mixture of each column of x (M, D), by variational inference.

        The number of modes is what a Dirichlet process with a small concentration leaves.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import BayesianGaussianMixture

        generator = torch.Generator().manual_seed(seed)
        if len(x):
            self.least.copy_(x.amin(0))
            self.greatest.copy_(x.amax(0))
        rows = torch.randperm(len(x), generator=generator)[:MAX_FIT_ROWS]
        for i, column in enumerate(x[rows].T):
            points, rest = frequent_values_and_rest(column, self.means.shape[1])
            share, k = len(rest) / len(column), len(points)
            self.log_weights[i] = NO_LOG_WEIGHT
            self.means[i, :k] = points
            self.stds[i, :k] = POINT_STD * max(column.std(correction=0).item(), POINT_STD)
            counts = torch.stack([(column == point).sum() for point in points]) if k else points
            self.log_weights[i, :k] = (counts / len(column)).log().to(self.log_weights.dtype)
            if not len(rest):
                continue
            num_modes = min(self.means.shape[1] - k, len(rest.unique()), len(rest))
            mixture = BayesianGaussianMixture(
                n_components=num_modes,
                weight_concentration_prior_type="dirichlet_process",
                weight_concentration_prior=WEIGHT_PRIOR,
                random_state=seed % 2**32,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(rest[:, None].numpy())
            weights = torch.from_numpy(mixture.weights_)
            weights = torch.where(weights > MIN_WEIGHT, weights, 0.0)
            log_weights = (share * weights / weights.sum()).log().clamp(min=NO_LOG_WEIGHT)
            modes = slice(k, k + num_modes)
            self.log_weights[i, modes] = log_weights.to(self.log_weights.dtype)
            self.means[i, modes] = torch.from_numpy(mixture.means_[:, 0]).to(self.means.dtype)
            variances = torch.from_numpy(mixture.covariances_[:, 0, 0])
            self.stds[i, modes] = variances.sqrt().to(self.stds.dtype)

    @property
    def is_used(self) -> Tensor:
        """Whether each mode (D, K) has a weight."""
        return self.log_weights > NO_LOG_WEIGHT

    def log_responsibilities(self, x: Tensor) -> Tensor:
        """Return log p(k | x) (B, D, K) of the modes of numbers x (B, D)."""
        means, stds = self.means.to(x.dtype), self.stds.to(x.dtype)
        z = (x[..., None] - means) / stds
        joint = self.log_weights.to(x.dtype) - stds.log() - 0.5 * z.square()
        return joint.masked_fill(~self.is_used, NO_LOG_WEIGHT).log_softmax(-1)

    def normalize(self, x: Tensor, modes: Tensor) -> Tensor:
        """Return the place α (B, D), within ±0.99, of numbers in their modes (B, D)."""
        mean, std = self.parameters_of(modes, x.dtype)
        return ((x - mean) / (SPAN * std)).clamp(-MAX_ABS_PLACE, MAX_ABS_PLACE)

    def denormalize(self, place: Tensor, modes: Tensor) -> Tensor:
        """Return the numbers x (B, D) at places α (B, D) of modes (B, D)."""
        mean, std = self.parameters_of(modes, place.dtype)
        x = mean + SPAN * std * place
        return torch.minimum(torch.maximum(x, self.least.to(x.dtype)), self.greatest.to(x.dtype))

    def parameters_of(self, modes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, D) of modes (B, D)."""
        index = modes.T  # (D, B)
        mean, std = self.means.gather(1, index).T, self.stds.gather(1, index).T
        return mean.to(dtype), std.to(dtype)


def frequent_values_and_rest(column: Tensor, num_modes: int) -> tuple[Tensor, Tensor]:
    """Return the values that are modes of their own, and the rows (M',) without them.

    At least one mode is left for the rest of the rows.
    """
    values, counts = column.unique(return_counts=True)
    values = values[counts.argsort(descending=True, stable=True)]
    num_points = int((counts >= POINT_FRACTION * len(column)).sum())
    if len(values) > num_points:
        num_points = min(num_points, num_modes - 1)
    points = values[: min(num_points, num_modes)]
    return points, column[~torch.isin(column, points)]
