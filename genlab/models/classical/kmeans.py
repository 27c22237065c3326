"""k-means: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489.

It starts from k-means++ (Arthur & Vassilvitskii 2007).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.classical.class_conditional import validate_spec
from genlab.models.classical.covariance import frozen_parameter
from genlab.models.classical.full_batch import TrainingItems
from genlab.spec import Batch, DataSpec, Positive

# Mini-batch k-means ends when a pass moves the centers by less than this fraction of their spread
# (both as sums of squares).
CONVERGENCE_TOLERANCE = 1e-4


def fit_kmeans(
    items: TrainingItems,
    group: int | None,
    k: int,
    *,
    seed: int,
    max_iterations: int,
    option: str = "model.num_clusters",
) -> Tensor:
    """Return k centers (k, D), fitted by scikit-learn.

    Items that are streamed are fitted by mini-batch k-means.

    Args:
        group: class whose items are fitted; None uses all items.
        max_iterations: Lloyd iterations, or passes over streamed items.
        option: the option that sets k, for the error message.

    Raises:
        UserError: there are fewer items than centers.
    """
    random_state = seed % 2**32
    if items.full_batch:
        from sklearn.cluster import KMeans as SklearnKMeans

        x = torch.cat(list(items.iterate_group_items(group)))
        require_enough_items(len(x), k, group, option)
        kmeans = SklearnKMeans(k, n_init=1, max_iter=max_iterations, random_state=random_state)
        kmeans.fit(x.cpu().numpy())
        return torch.from_numpy(kmeans.cluster_centers_)

    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(k, n_init=1, random_state=random_state)
    num_items, previous = 0, None
    for _ in track(range(max_iterations), "k-means", unit="passes"):
        for x in items.iterate_group_items(group, min_items=10 * k):
            num_items += len(x)
            require_enough_items(num_items, k, group, option)
            kmeans.partial_fit(x.cpu().numpy())
        centers = kmeans.cluster_centers_.copy()
        if previous is not None:
            movement = np.square(centers - previous).sum()
            spread = np.square(centers - centers.mean(0)).sum()
            if movement <= CONVERGENCE_TOLERANCE * spread:
                break
        previous = centers
    return torch.from_numpy(kmeans.cluster_centers_)


def require_enough_items(n: int, k: int, group: int | None, option: str) -> None:
    """Raise UserError if there are fewer items n than centers k."""
    if n < k:
        where = "the training split" if group is None else f"class {group}"
        raise UserError(f"{where} has {n} items, too few for {option}={k}; set {option}={n}")


class KMeans(GenerativeModel):
    """k centers, each representing the items nearest to it.

    It does not define a distribution, so it has neither a density nor samples. One training step is
    one run: k-means++ and Lloyd iterations with a new seed. The run with the lowest inertia is
    kept, so that trainer.steps=5 gives the best of 5.

    Args:
        num_clusters: the number of centers.
        max_iterations: maximum of Lloyd iterations per run, or of passes over streamed items.

    Raises:
        UserError: the data is neither images nor points.
    """

    inertia: Tensor

    def __init__(
        self, spec: DataSpec, *, num_clusters: Positive = 10, max_iterations: Positive = 300
    ) -> None:
        super().__init__()
        validate_spec("kmeans", spec, conditional=False, is_density=False)
        self.spec, self.max_iterations = spec, max_iterations
        self.centers = frozen_parameter(num_clusters, spec.dim)
        # of the best run so far
        self.register_buffer("inertia", torch.tensor(torch.inf, dtype=torch.float64))

    def require_enough_items(self, n: int, group: int | None) -> None:
        """Raise UserError if n items are too few for the number of clusters."""
        require_enough_items(n, len(self.centers), group, "model.num_clusters")

    @torch.no_grad()
    def fit_step(self, items: TrainingItems, *, step: int, seed: int) -> dict[str, Tensor]:
        """Make one run; return the lowest inertia so far and the inertia of this run.

        The inertia is the sum of squared distances to the nearest center.
        """
        centers = fit_kmeans(
            items, None, len(self.centers), seed=seed, max_iterations=self.max_iterations
        ).to(self.centers)
        inertia = torch.zeros_like(self.inertia)
        for x, _ in items:
            inertia += squared_distance_to_nearest(x, centers).double().sum()
        if inertia < self.inertia:
            self.centers.copy_(centers)
            self.inertia.copy_(inertia)
        return {"loss": self.inertia.clone(), "inertia/this_start": inertia}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance to the nearest center."""
        return {"loss": squared_distance_to_nearest(batch.x.flatten(1), self.centers).mean()}

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the one-hot index (B, k) of the center nearest to x (B, *shape)."""
        nearest = torch.cdist(x.flatten(1), self.centers).argmin(1)
        return F.one_hot(nearest, len(self.centers)).to(x)

    def category(self, z: Tensor) -> Tensor:
        """Return the number (B,) of the center of codes z (B, k)."""
        return z.argmax(1)

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of the centers (B, *shape) weighted by z (B, k).

        For a one-hot z that is one center.
        """
        return (z @ self.centers).unflatten(1, self.spec.shape)


def squared_distance_to_nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distance (B,) of x (B, D) to its nearest center (k, D)."""
    nearest = torch.cdist(x, centers).argmin(1)
    return (x - centers[nearest]).square().sum(1)
