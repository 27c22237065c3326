"""Mixtures fitted by EM: Dempster, Laird & Rubin 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.models.classical.class_conditional import Density
from genlab.models.classical.covariance import frozen
from genlab.models.classical.full_batch import Items
from genlab.models.classical.kmeans import centres
from genlab.spec import Spec

START = 20  # of Lloyd's iterations (passes over a set that streams) in the k-means that a fit starts from


class Mixture(Density):
    """p(x) = Σ_k π_k p(x|k): a subclass gives the parts' densities, draws, moments and their maximisation.

    Args:
        components: K, of each class where the model is conditional.
    """

    def __init__(self, spec: Spec, *, components: int, conditional: bool) -> None:
        super().__init__(spec, conditional=conditional)
        self.components = components
        self.weight = frozen(self.groups, components, value=1 / components)  # π

    @abstractmethod
    def log_parts(self, x: Tensor, group: int) -> Tensor:
        """Return log p(x|k) (B, K) in nats of flat x (B, D)."""

    @abstractmethod
    def draw_part(self, n: int, group: int, k: int) -> Tensor:
        """Draw n flat items (n, D) of component k."""

    @abstractmethod
    def mean_part(self, group: int) -> Tensor:
        """Return the components' means (K, D)."""

    @abstractmethod
    def moments(self, x: Tensor, r: Tensor, group: int) -> dict[str, Tensor]:
        """Return the sums over flat x (B, D), weighted by the responsibilities r (B, K), that `maximise` needs."""

    @abstractmethod
    def maximise(self, moments: dict[str, Tensor], group: int) -> None:
        """The M-step: take the most likely parameters for the moments of all items."""

    # --- expectation–maximisation -------------------------------------------------------------------------------------

    def log_joint(self, x: Tensor, group: int) -> Tensor:
        """Return log π_k p(x|k) (B, K) in nats of flat x (B, D)."""
        return self.weight[group].log() + self.log_parts(x, group)

    @torch.no_grad()
    def improve(self, items: Items, *, step: int, seed: int) -> dict[str, Tensor]:
        """Make one pass of EM; the first one starts from k-means. Return −log p, in nats a sample, before its M-step."""
        if step == 0:
            self.start(items, seed)
        return self.em(items)

    def em(self, items: Items, starts: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Make one pass of EM, with each item wholly in the part of its nearest centre where `starts` (K, D) are given."""
        totals: list[dict[str, Any]] = [{} for _ in range(self.groups)]
        for x, y in items:
            for g, total in enumerate(totals):
                inside = x if not self.conditional else x[y == g]
                if not len(inside):
                    continue
                log_joint = self.log_joint(inside, g)  # (B, K)
                # the E-step: r_k = p(k|x)
                r = log_joint.softmax(1) if starts is None else nearest(inside, starts[g])
                parts = self.moments(inside, r, g) | {
                    "n": r.double().sum(0),
                    "log_prob": log_joint.logsumexp(1).double().sum(),
                }
                for name, part in parts.items():
                    total[name] = total[name] + part if name in total else part
        counts = torch.stack([t["n"].sum() if t else torch.zeros(()).double() for t in totals])
        self.share.copy_(counts / counts.sum())
        for g, total in enumerate(totals):
            if total:
                self.weight[g] = (total["n"] / total["n"].sum()).to(self.weight)
                self.maximise(total, g)
        return {"loss": -sum(t["log_prob"] for t in totals if t) / counts.sum()}

    def start(self, items: Items, seed: int) -> None:
        """Take the M-step for the hard assignments of a k-means of each class, as scikit-learn's mixtures do."""
        found = []
        for g in range(self.groups):
            group = g if self.conditional else None
            found.append(
                centres(items, group, self.components, seed=seed, passes=START).to(self.share)
            )
        self.em(items, found)

    # --- abilities ------------------------------------------------------------------------------------------------------

    def log_density(self, x: Tensor, group: int) -> Tensor:
        """Return log Σ_k π_k p(x|k) (B,) in nats of flat x (B, D)."""
        return self.log_joint(x, group).logsumexp(1)

    def draw(self, n: int, group: int) -> Tensor:
        """Draw n flat items (n, D), each of a component drawn by the weights."""
        ks = torch.multinomial(self.weight[group], n, replacement=True)
        return self.each(
            ks,
            self.weight.new_empty(n, self.spec.dim),
            lambda where, k: self.draw_part(int(where.sum()), group, k),
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior p(k|x) (B, G·K) of x (B, *shape) over the components of all classes."""
        parts = [p.log() + self.log_joint(x.flatten(1), g) for g, p in enumerate(self.share)]
        return torch.cat(parts, 1).softmax(1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the mean (B, *shape) of the components weighted by z (B, G·K)."""
        means = torch.cat([self.mean_part(g) for g in range(self.groups)])  # (G·K, D)
        return (z @ means).unflatten(1, self.spec.shape)


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Return 1 for the nearest of the centres (K, D) to x (B, D), 0 for the others (B, K)."""
    return F.one_hot(torch.cdist(x, centres).argmin(1), len(centres)).to(x)
