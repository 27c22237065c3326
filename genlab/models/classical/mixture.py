"""Mixtures fitted by EM: Dempster, Laird & Rubin 1977.

https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.models.classical.class_conditional import ClassConditionalDensity, fill_rows_by_group
from genlab.models.classical.covariance import frozen_parameter
from genlab.models.classical.full_batch import TrainingItems
from genlab.models.classical.kmeans import fit_kmeans, require_enough_items
from genlab.models.classical.missing_cells import fill_with_column_means
from genlab.spec import DataSpec

# Lloyd iterations (passes, if the items are streamed) of the k-means that initializes EM
INIT_KMEANS_ITERATIONS = 20


class Mixture(ClassConditionalDensity):
    """p(x) = Σ_k π_k p(x|k), fitted by EM.

    A subclass implements the density, the sampling and the M-step of the components.

    Args:
        num_components: K, per class if the model is conditional.
    """

    def __init__(self, spec: DataSpec, *, num_components: int, conditional: bool) -> None:
        super().__init__(spec, conditional=conditional)
        self.num_components = num_components
        self.weight = frozen_parameter(self.num_groups, num_components, value=1 / num_components)

    @abstractmethod
    def component_log_probs(self, x: Tensor, group: int) -> Tensor:
        """Return log p(x|k) (B, K) in nats for flat x (B, D)."""

    @abstractmethod
    def sample_component(self, n: int, group: int, k: int) -> Tensor:
        """Draw n flat items (n, D) of component k."""

    @abstractmethod
    def component_means(self, group: int) -> Tensor:
        """Return the components' means (K, D)."""

    @abstractmethod
    def sufficient_statistics(self, x: Tensor, r: Tensor, group: int) -> dict[str, Tensor]:
        """Return the sums over items that `m_step` needs.

        Args:
            x: flat items (B, D).
            r: their responsibilities (B, K), the weights of the sums.
        """

    @abstractmethod
    def m_step(self, statistics: dict[str, Tensor], group: int) -> None:
        """Set the parameters of a group to the maximum-likelihood values.

        Args:
            statistics: the `sufficient_statistics` of all items, with "n" (K,), the sum of the
                responsibilities.
        """

    def place_components(self, centers: Tensor, group: int) -> None:
        """Move the components of a group to their first centers (K, D), if they have centers.

        A covariance about them is precise also where the data are far from 0.
        """

    def require_enough_items(self, n: int, group: int | None) -> None:
        """Raise UserError if n items are too few for the number of components."""
        require_enough_items(n, self.num_components, group, "model.num_components")

    # --- expectation–maximization -----------------------------------------------------------------

    def log_joint(self, x: Tensor, group: int) -> Tensor:
        """Return log π_k p(x|k) (B, K) in nats for flat x (B, D)."""
        return self.weight[group].log() + self.component_log_probs(x, group)

    @torch.no_grad()
    def fit_step(self, items: TrainingItems, *, step: int, seed: int) -> dict[str, Tensor]:
        """Make one EM pass; the first step initializes by k-means before it.

        Returns:
            The loss: mean −log p before the M-step of this pass, in nats per sample.
        """
        if step == 0:
            self.initialize_by_kmeans(items, seed)
        return self.em_pass(items)

    def em_pass(
        self, items: TrainingItems, centers: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Make one EM pass over the items.

        Args:
            centers: for each group (K, D). If given, each item is assigned to the component of its
                nearest center instead of by the posterior.
        """
        totals: list[dict[str, Tensor]] = [{} for _ in range(self.num_groups)]
        for x, y in items:
            for g, total in enumerate(totals):
                members = x[y == g] if self.conditional else x
                if not len(members):
                    continue
                log_joint = self.log_joint(members, g)  # (B, K)
                if centers is None:
                    r = log_joint.softmax(1)  # the E-step: r_k = p(k|x)
                else:
                    r = one_hot_nearest(members, centers[g])
                statistics = self.sufficient_statistics(members, r, g) | {
                    "n": r.double().sum(0),
                    "log_prob": log_joint.logsumexp(1).double().sum(),
                }
                for name, value in statistics.items():
                    total[name] = total[name] + value if name in total else value
        zero = torch.zeros(()).double()
        counts = torch.stack([total["n"].sum() if total else zero for total in totals])
        self.class_probs.copy_(counts / counts.sum())
        for g, total in enumerate(totals):
            if total:
                self.weight[g] = (total["n"] / total["n"].sum()).to(self.weight)
                self.m_step(total, g)
        log_prob = sum(total["log_prob"] for total in totals if total)
        return {"loss": -log_prob / counts.sum()}

    def initialize_by_kmeans(self, items: TrainingItems, seed: int) -> None:
        """Make the M-step for the hard assignments of k-means, as scikit-learn's mixtures do."""
        if self.spec.has_missing:
            items = fill_with_column_means(items)
        centers = []
        for g in range(self.num_groups):
            found = fit_kmeans(
                items,
                g if self.conditional else None,
                self.num_components,
                seed=seed,
                max_iterations=INIT_KMEANS_ITERATIONS,
                option="model.num_components",
            )
            centers.append(found.to(self.class_probs))
            self.place_components(centers[-1], g)
        self.em_pass(items, centers)

    # --- abilities --------------------------------------------------------------------------------

    def group_log_prob(self, x: Tensor, group: int) -> Tensor:
        """Return log Σ_k π_k p(x|k) (B,) in nats for flat x (B, D)."""
        return self.log_joint(x, group).logsumexp(1)

    def sample_group(self, n: int, group: int) -> Tensor:
        """Draw n flat items (n, D), each from a component drawn by the weights."""
        components = torch.multinomial(self.weight[group], n, replacement=True)
        return fill_rows_by_group(
            self.weight.new_empty(n, self.spec.dim),
            components,
            lambda rows, k: self.sample_component(int(rows.sum()), group, k),
        )

    @torch.no_grad()
    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the posterior p(k|x) (B, G·K) over the components of all G groups."""
        x = x.flatten(1)
        log_joint = [p.log() + self.log_joint(x, g) for g, p in enumerate(self.class_probs)]
        return torch.cat(log_joint, 1).softmax(1)

    def category(self, z: Tensor) -> Tensor:
        """Return the most probable component (B,) of codes z (B, G·K)."""
        return z.argmax(1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the mean (B, *shape) of the components weighted by z (B, G·K)."""
        means = torch.cat([self.component_means(g) for g in range(self.num_groups)])  # (G·K, D)
        return (z @ means).unflatten(1, self.spec.shape)


def one_hot_nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Return the one-hot index (B, K) of the center (K, D) nearest to each x (B, D)."""
    return F.one_hot(torch.cdist(x, centers).argmin(1), len(centers)).to(x)
