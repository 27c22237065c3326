"""The distributions that a flow starts from: coordinates z = loc + e^log_scale · ε, independent of each other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Base(nn.Module, ABC):
    """A law of vectors z (B, dim); with classes each has its own loc and log_scale, learned from 0.

    So a class-conditional flow is p(x|y) = p(z|y) |det dz/dx|, the same map for all classes, as Glow's class-conditional
    prior (Kingma & Dhariwal 2018) and FlowGMM (Izmailov et al. 2020, https://arxiv.org/abs/1912.13025). Without y the law
    is the even mixture of the classes.
    """

    def __init__(self, dim: int, *, classes: int = 0) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        if classes:
            self.loc = nn.Parameter(torch.zeros(classes, dim))
            self.log_scale = nn.Parameter(torch.zeros(classes, dim))
        self.register_buffer(
            "place", torch.zeros(()), persistent=False
        )  # tells samples their device and dtype

    @abstractmethod
    def standard(self, eps: Tensor) -> Tensor:
        """Return the log-density (…, dim) of each coordinate ε, in nats."""

    @abstractmethod
    def noise(self, n: int) -> Tensor:
        """Draw n standard vectors ε (n, dim)."""

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(z|y) (B,) in nats; without y log p(z)."""
        if not self.classes:
            return self.standard(z).sum(1)
        if y is None:
            each = [
                self.log_prob(z, torch.full((len(z),), k, device=z.device))
                for k in range(self.classes)
            ]
            return torch.stack(each).logsumexp(0) - math.log(self.classes)
        log_scale = self.log_scale[y]
        return (self.standard((z - self.loc[y]) * (-log_scale).exp()) - log_scale).sum(1)

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n vectors (n, dim), of the classes y (n,) if given, else of classes drawn evenly."""
        if not self.classes:
            return self.noise(n)
        if y is None:
            y = torch.randint(self.classes, (n,), device=self.place.device)
        return self.loc[y] + self.log_scale[y].exp() * self.noise(n)


class Normal(Base):
    """ε from N(0, 1)."""

    def standard(self, eps: Tensor) -> Tensor:
        return -0.5 * (eps.square() + math.log(2 * math.pi))

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, self.dim, dtype=self.place.dtype, device=self.place.device)


class Logistic(Base):
    """ε from the standard logistic law: Dinh et al. 2014, section 3.4."""

    def standard(self, eps: Tensor) -> Tensor:
        return -F.softplus(eps) - F.softplus(-eps)

    def noise(self, n: int) -> Tensor:
        u = torch.rand(n, self.dim, dtype=self.place.dtype, device=self.place.device)
        return torch.logit(u, eps=torch.finfo(u.dtype).tiny)
