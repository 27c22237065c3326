"""Invertible maps of single values, with parameters from a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Bound of |log-scale| and |log-slope|, so that extreme outputs do not overflow the exponential.
MAX_LOG_SCALE = 5.0
# Smallest width or height of a spline's bin, as a share of the box.
MIN_BIN_SIZE = 1e-3


class Elementwise(nn.Module, ABC):
    """A monotone map of x (…) with parameters p (…, num_params); p = 0 gives the identity."""

    num_params: int

    @abstractmethod
    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (…) and log dz/dx (…)."""

    @abstractmethod
    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        """Return the x (…) that `forward` maps to z."""


class Shift(Elementwise):
    """z = x + t: Dinh et al. 2014, section 3.2."""

    num_params = 1

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return x + p[..., 0], torch.zeros_like(x)

    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        return z - p[..., 0]


class Affine(Elementwise):
    """z = (x − μ) e^−α: Papamakarios et al. 2017, equation 4, with |α| bounded."""

    num_params = 2

    def shift_and_bounded_log_scale(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ (…) and α (…) of p (…, 2)."""
        mu, alpha = p.unbind(-1)
        return mu, MAX_LOG_SCALE * (alpha / MAX_LOG_SCALE).tanh()

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        mu, alpha = self.shift_and_bounded_log_scale(p)
        return (x - mu) * (-alpha).exp(), -alpha

    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        mu, alpha = self.shift_and_bounded_log_scale(p)
        return z * alpha.exp() + mu


class Spline(Elementwise):
    """The rational-quadratic spline of Durkan et al. 2019, section 3.1.

    It has K bins over [−tail_bound, tail_bound] and is the identity outside. Of the 3K − 1
    parameters the first K determine the widths of the bins and the next K their heights, by a
    softmax. The others are the log-slopes at the inner knots: steep slopes, which sharp densities
    need, are closer to initialization in this form than with the paper's softplus.
    """

    def __init__(self, num_bins: int, tail_bound: float) -> None:
        super().__init__()
        self.num_bins, self.tail_bound = num_bins, tail_bound
        self.num_params = 3 * num_bins - 1

    def bin_edges_and_slopes(self, v: Tensor, p: Tensor, *, inverse: bool) -> tuple[Tensor, ...]:
        """Return the bin that contains v (…).

        It is given by left end, width, bottom, height, and the slopes at both ends.
        """
        k, box = self.num_bins, 2 * self.tail_bound
        scale = 1 - MIN_BIN_SIZE * k
        sizes, slopes = p.split([2 * k, k - 1], -1)
        shares = sizes.unflatten(-1, (2, k)).softmax(-1)  # (…, 2, K): of widths, of heights
        ends = shares.cumsum(-1)  # right ends and tops, before the minimum size is added
        offsets = MIN_BIN_SIZE * torch.arange(1, k + 1, dtype=p.dtype, device=p.device)
        edges = torch.add(offsets, ends.detach()[..., int(inverse), :], alpha=scale)
        edges = edges[..., :-1].contiguous()
        # the index (…, 1) of the bin, in 0 … K − 1
        position = (v.detach()[..., None] + self.tail_bound) / box
        index = torch.searchsorted(edges, position, right=True)
        both = index[..., None, :].expand(*index.shape[:-1], 2, 1)
        size = box * (MIN_BIN_SIZE + scale * shares.gather(-1, both).squeeze(-1))
        end = box * (MIN_BIN_SIZE * (index + 1) + scale * ends.gather(-1, both).squeeze(-1))
        end = end - self.tail_bound
        (width, height), (right, top) = size.unbind(-1), end.unbind(-1)
        # log-slope 0, that is slope 1, at the ends of the box
        slopes = F.pad(slopes, (1, 1)).gather(-1, torch.cat([index, index + 1], -1))
        slopes = (MAX_LOG_SCALE * (slopes / MAX_LOG_SCALE).tanh()).exp()
        left_slope, right_slope = slopes.unbind(-1)
        return right - width, width, top - height, height, left_slope, right_slope

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        clipped = x.clamp(-self.tail_bound, self.tail_bound)
        left, width, bottom, height, d0, d1 = self.bin_edges_and_slopes(clipped, p, inverse=False)
        inside = x.abs() < self.tail_bound
        t = ((torch.where(inside, x, left) - left) / width).clamp(0, 1)  # ξ
        s, ends, squares = height / width, t * (1 - t), t.square() + (1 - t).square()
        # s + (d0 + d1 − 2s) ξ(1 − ξ), as a sum of positive terms
        denominator = s * squares + (d0 + d1) * ends
        z = bottom + height * (s * t.square() + d0 * ends) / denominator  # equation 4
        numerator = d1 * t.square() + 2 * s * ends + d0 * (1 - t).square()
        log_slope = 2 * (s / denominator).log() + numerator.log()  # equation 5
        return torch.where(inside, z, x), torch.where(inside, log_slope, 0)

    # Equations 6 to 8 for r = ξ/(1 − ξ) instead of ξ: with θ = (z − bottom)/height, equation 4 is
    # s(1 − θ) r² + (d0(1 − θ) − d1 θ) r − s θ = 0. Its discriminant is a sum of positive terms. In
    # float32 the quadratic in ξ loses all digits where slopes are steep.
    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        clipped = z.clamp(-self.tail_bound, self.tail_bound)
        left, width, bottom, height, d0, d1 = self.bin_edges_and_slopes(clipped, p, inverse=True)
        inside = z.abs() < self.tail_bound
        theta = ((torch.where(inside, z, bottom) - bottom) / height).clamp(0, 1)
        s, rest = height / width, 1 - theta
        b = d0 * rest - d1 * theta
        root = (b.square() + 4 * s.square() * theta * rest).sqrt()
        # r = 2sθ / (root + b) = (root − b) / (2s(1 − θ)): the form without cancellation
        plus, up, down = root + b.abs(), 2 * s * theta, 2 * s * rest
        xi = torch.where(b >= 0, up / (up + plus), plus / (plus + down))
        return torch.where(inside, left + xi * width, z)
