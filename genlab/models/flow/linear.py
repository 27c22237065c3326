"""Linear transforms: scales and shifts, 1×1 convolutions, and triangular matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.models.flow.transforms import DataDependentInit, Transform
from genlab.nn.broadcast import expand_like
from genlab.nn.precision import full_precision


class Scaling(Transform):
    """z = e^s ⊙ x, for vectors (B, D): Dinh et al. 2014, section 3.3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_scale).exp()


class ActNorm(DataDependentInit):
    """z = e^log_scale (x + shift) per channel, initialized to mean 0 and standard deviation 1.

    Kingma & Dhariwal 2018, https://arxiv.org/abs/1807.03039, section 3.1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))
        self.log_scale = nn.Parameter(torch.zeros(size))

    def initialize_from_data(self, x: Tensor) -> None:
        by_channel = x.transpose(0, 1).flatten(1)  # (C, B · …)
        self.shift.copy_(-by_channel.mean(1))
        if by_channel.shape[1] == 1:
            return  # a single value does not have a standard deviation
        self.log_scale.copy_(-(by_channel.std(1, correction=0) + 1e-6).log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        num_positions = x[0, 0].numel()  # that share the scale of a channel
        z = (x + expand_like(self.shift, x[0])) * expand_like(self.log_scale.exp(), x[0])
        return z, (num_positions * self.log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        scaled = z * expand_like((-self.log_scale).exp(), z[0])
        return scaled - expand_like(self.shift, z[0])


class Invertible1x1Conv(Transform):
    """z = W x at each position, with W = P L (U + diag s), which starts as a random rotation.

    P and the signs of s are fixed: Kingma & Dhariwal 2018, section 3.2, equations 10 and 11.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(size, size))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        s = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", s.sign())
        self.log_s = nn.Parameter(s.abs().log())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))

    @property
    def weight(self) -> Tensor:
        """W (C, C)."""
        unit = torch.eye(len(self.log_s), dtype=self.log_s.dtype, device=self.log_s.device)
        lower = self.lower.tril(-1) + unit
        upper = self.upper.triu(1) + (self.sign * self.log_s.exp()).diag()
        return self.permutation @ lower @ upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        num_positions = x[0, 0].numel()
        with full_precision(x):
            z = apply_channel_matrix(x, self.weight)
        return z, (num_positions * self.log_s.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with full_precision(z):
            return apply_channel_matrix(z, torch.linalg.inv(self.weight))


def apply_channel_matrix(x: Tensor, weight: Tensor) -> Tensor:
    """Return W x at each position of x (B, C) or (B, C, H, W)."""
    return F.linear(x, weight) if x.dim() == 2 else F.conv2d(x, weight[:, :, None, None])


class Triangular(DataDependentInit):
    """z = L x + shift for vectors (B, D), with L lower triangular.

    The diagonal of L is e^log_diagonal. It can whiten any Gaussian. It is initialized to whiten the
    first batch, whose covariance S is shrunk toward its diagonal by the share (D/(B + D))².
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    @property
    def weight(self) -> Tensor:
        """L (D, D)."""
        return self.lower.tril(-1) + self.log_diagonal.exp().diag()

    def initialize_from_data(self, x: Tensor) -> None:
        n, dim = x.shape
        mean = x.double().mean(0)
        covariance = (x.double() - mean).T @ (x.double() - mean) / n
        share = (dim / (n + dim)) ** 2
        covariance = (
            (1 - share) * covariance
            + share * covariance.diagonal().diag()
            + 1e-6 * torch.eye(dim).to(covariance)
        )
        root = torch.linalg.cholesky(covariance)
        weight = torch.linalg.solve_triangular(root, torch.eye(dim).to(root), upper=False)
        self.log_diagonal.copy_(weight.diagonal().log())
        self.lower.copy_(weight.tril(-1))
        self.shift.copy_(-weight @ mean)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            z = F.linear(x, self.weight, self.shift)
        return z, self.log_diagonal.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with full_precision(z):
            return torch.linalg.solve_triangular(self.weight, (z - self.shift).T, upper=False).T
