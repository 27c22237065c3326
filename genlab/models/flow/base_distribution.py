"""Base distributions of flows, with independent coordinates z = loc + e^log_scale · ε."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BaseDistribution(nn.Module, ABC):
    """A distribution of vectors z (B, dim), which may depend on a class.

    Each class has a learned loc and log_scale, initially 0. A class-conditional flow is p(x|y) =
    p(z|y) |det dz/dx|, with the same map for all classes, like Glow's class-conditional prior
    (Kingma & Dhariwal 2018) and FlowGMM (Izmailov et al. 2020, https://arxiv.org/abs/1912.13025).
    Without y the distribution is the even mixture of the classes.

    Args:
        num_classes: number of classes; 0 for a distribution without classes.
    """

    reference: Tensor

    def __init__(self, dim: int, *, num_classes: int = 0) -> None:
        super().__init__()
        self.dim, self.num_classes = dim, num_classes
        if num_classes:
            self.loc = nn.Parameter(torch.zeros(num_classes, dim))
            self.log_scale = nn.Parameter(torch.zeros(num_classes, dim))
        # a tensor that has the device and dtype of samples
        self.register_buffer("reference", torch.zeros(()), persistent=False)

    @abstractmethod
    def standard_log_prob_per_dim(self, eps: Tensor) -> Tensor:
        """Return the log-density (…, dim) of each coordinate ε, in nats."""

    @abstractmethod
    def standard_sample(self, n: int) -> Tensor:
        """Draw n standard vectors ε (n, dim)."""

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(z|y) (B,) in nats, or log p(z) without y."""
        if not self.num_classes:
            return self.standard_log_prob_per_dim(z).sum(1)
        if y is None:
            by_class = [
                self.log_prob(z, torch.full((len(z),), k, device=z.device))
                for k in range(self.num_classes)
            ]
            return torch.stack(by_class).logsumexp(0) - math.log(self.num_classes)
        log_scale = self.log_scale[y]
        eps = (z - self.loc[y]) * (-log_scale).exp()
        return (self.standard_log_prob_per_dim(eps) - log_scale).sum(1)

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n vectors (n, dim), of the classes y (n,) if given, otherwise of random classes."""
        if not self.num_classes:
            return self.standard_sample(n)
        if y is None:
            y = torch.randint(self.num_classes, (n,), device=self.reference.device)
        return self.loc[y] + self.log_scale[y].exp() * self.standard_sample(n)


class Normal(BaseDistribution):
    """ε ~ N(0, 1)."""

    def standard_log_prob_per_dim(self, eps: Tensor) -> Tensor:
        return -0.5 * (eps.square() + math.log(2 * math.pi))

    def standard_sample(self, n: int) -> Tensor:
        return torch.randn(n, self.dim, dtype=self.reference.dtype, device=self.reference.device)


class Logistic(BaseDistribution):
    """ε from the standard logistic distribution: Dinh et al. 2014, section 3.4."""

    def standard_log_prob_per_dim(self, eps: Tensor) -> Tensor:
        return -F.softplus(eps) - F.softplus(-eps)

    def standard_sample(self, n: int) -> Tensor:
        u = torch.rand(n, self.dim, dtype=self.reference.dtype, device=self.reference.device)
        return torch.logit(u, eps=torch.finfo(u.dtype).tiny)
