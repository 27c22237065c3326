"""Invertible maps of single numbers, which a network chooses value by value: `forward(x, p)` gives z and log |dz/dx|."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 5.0  # of |log-scale| and |log-slope|: a wild output must not overflow the exponential
LEAST = 1e-3  # of a bin's share of the box


class Elementwise(nn.Module, ABC):
    """A monotone map of x (…) with parameters p (…, outputs); p = 0 is the identity."""

    outputs: int

    @abstractmethod
    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (…) and log dz/dx (…)."""

    @abstractmethod
    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        """Return the x (…) that `forward` maps to z."""


class Shift(Elementwise):
    """z = x + t: Dinh et al. 2014, section 3.2."""

    outputs = 1

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return x + p[..., 0], torch.zeros_like(x)

    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        return z - p[..., 0]


class Affine(Elementwise):
    """z = (x − μ) e^−α: Papamakarios et al. 2017, equation 4, with |α| bounded."""

    outputs = 2

    def parameters_of(self, p: Tensor) -> tuple[Tensor, Tensor]:
        mu, alpha = p.unbind(-1)
        return mu, LARGEST * (alpha / LARGEST).tanh()

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        mu, alpha = self.parameters_of(p)
        return (x - mu) * (-alpha).exp(), -alpha

    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        mu, alpha = self.parameters_of(p)
        return z * alpha.exp() + mu


class Spline(Elementwise):
    """The rational-quadratic spline of Durkan et al. 2019, section 3.1: K bins over [−bound, bound], the identity outside.

    Of the 3K − 1 parameters the first K give the bins' widths, the next K their heights, by a softmax, the rest the logarithms of
    the slopes at the inner knots: steep places, which sharp densities have, are nearer so than by the paper's softplus.
    """

    def __init__(self, bins: int, bound: float) -> None:
        super().__init__()
        self.bins, self.bound, self.outputs = bins, bound, 3 * bins - 1

    def bin(self, v: Tensor, p: Tensor, *, inverse: bool) -> tuple[Tensor, ...]:
        """Return the bin that holds v (…): its left end, width, bottom and height, and the slopes at its ends."""
        k, box = self.bins, 2 * self.bound
        sizes, slopes = p.split([2 * k, k - 1], -1)
        shares = sizes.unflatten(-1, (2, k)).softmax(-1)  # (…, 2, K): of widths, of heights
        ends = shares.cumsum(
            -1
        )  # right ends, and tops, as parts of the box; with each bin's least share, below
        least = LEAST * torch.arange(1, k + 1, dtype=p.dtype, device=p.device)
        edges = torch.add(least, ends.detach()[..., int(inverse), :], alpha=1 - LEAST * k)[
            ..., :-1
        ].contiguous()
        at = torch.searchsorted(
            edges, (v.detach()[..., None] + self.bound) / box, right=True
        )  # (…, 1) in 0 … K − 1
        both = at[..., None, :].expand(*at.shape[:-1], 2, 1)
        size = box * (LEAST + (1 - LEAST * k) * shares.gather(-1, both).squeeze(-1))
        end = (
            box * (LEAST * (at + 1) + (1 - LEAST * k) * ends.gather(-1, both).squeeze(-1))
            - self.bound
        )
        (width, height), (right, top) = size.unbind(-1), end.unbind(-1)
        slopes = F.pad(slopes, (1, 1)).gather(
            -1, torch.cat([at, at + 1], -1)
        )  # 0, slope 1, at the box's ends
        left_slope, right_slope = (LARGEST * (slopes / LARGEST).tanh()).exp().unbind(-1)
        return right - width, width, top - height, height, left_slope, right_slope

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        left, width, bottom, height, d0, d1 = self.bin(
            x.clamp(-self.bound, self.bound), p, inverse=False
        )
        inside = x.abs() < self.bound
        t = (torch.where(inside, x, left) - left) / width  # ξ
        s, ends = height / width, t * (1 - t)
        below = s + (d0 + d1 - 2 * s) * ends
        z = bottom + height * (s * t.square() + d0 * ends) / below  # equation 4
        slope = (
            s.square() * (d1 * t.square() + 2 * s * ends + d0 * (1 - t).square()) / below.square()
        )  # equation 5
        return torch.where(inside, z, x), torch.where(inside, slope, 1).log()

    def inverse(self, z: Tensor, p: Tensor) -> Tensor:
        left, width, bottom, height, d0, d1 = self.bin(
            z.clamp(-self.bound, self.bound), p, inverse=True
        )
        inside = z.abs() < self.bound
        y, s = torch.where(inside, z, bottom) - bottom, height / width
        bend = y * (d0 + d1 - 2 * s)
        a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * y  # equations 6 to 8
        root = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        return torch.where(inside, left + root * width, z)
