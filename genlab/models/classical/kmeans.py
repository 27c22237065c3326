"""k-means: Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489, from k-means++ starts (Arthur & Vassilvitskii 2007)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.classical.class_conditional import refuse
from genlab.models.classical.covariance import frozen
from genlab.models.classical.full_batch import Items
from genlab.spec import Batch, Positive, Spec

STILL = 1e-4  # the share of the centres' spread by which they still move in a pass of mini-batches when it ends


def centres(items: Items, group: int | None, k: int, *, seed: int, passes: int) -> Tensor:
    """Return k centres (k, D) of a class's items (None: of all): scikit-learn's k-means, its mini-batch form where they stream.

    Raises:
        UserError: there are fewer items than centres.
    """
    if items.whole:
        from sklearn.cluster import KMeans as Lloyd

        x = torch.cat(list(items.of(group)))
        refuse_few(len(x), k, group)
        fitted = Lloyd(k, n_init=1, max_iter=passes, random_state=seed % 2**32).fit(x.cpu().numpy())
    else:
        from sklearn.cluster import MiniBatchKMeans

        fitted, seen, before = MiniBatchKMeans(k, n_init=1, random_state=seed % 2**32), 0, None
        for _ in range(passes):
            for x in items.of(group, at_least=10 * k):
                seen += len(x)
                refuse_few(seen, k, group)
                fitted.partial_fit(x.cpu().numpy())
            now = fitted.cluster_centers_.copy()
            if (
                before is not None
                and np.square(now - before).sum() <= STILL * np.square(now - now.mean(0)).sum()
            ):
                break
            before = now
    return torch.from_numpy(fitted.cluster_centers_)


def refuse_few(n: int, k: int, group: int | None) -> None:
    """Refuse to find more centres than there are items."""
    if n < k:
        where = "the training split" if group is None else f"class {group}"
        raise UserError(
            f"{where} has {n} items, too few for {k} parts; set a smaller model.components"
        )


class KMeans(nn.Module):
    """k centres, each standing for the items nearest to it. It is no distribution: it has neither density nor samples.

    A step is one start: k-means++ and Lloyd's iterations from its own seed. The start of the lowest inertia is kept, so that
    trainer.steps=5 gives the best of 5.

    Args:
        components: the number of centres.
        passes: Lloyd's iterations in a start at most; of a set that streams, passes of mini-batches.

    Raises:
        UserError: the data is neither images nor points.
    """

    def __init__(self, spec: Spec, *, components: Positive = 10, passes: Positive = 300) -> None:
        super().__init__()
        refuse("kmeans", spec, conditional=False, density=False)
        self.spec, self.passes = spec, passes
        self.centres = frozen(components, spec.dim)
        self.register_buffer(
            "inertia", torch.tensor(torch.inf, dtype=torch.float64)
        )  # of the best start so far

    @torch.no_grad()
    def improve(self, items: Items, *, step: int, seed: int) -> dict[str, Tensor]:
        """Make one start; return its inertia and the best so far: squared distances to the nearest centre, summed."""
        found = centres(items, None, len(self.centres), seed=seed, passes=self.passes).to(
            self.centres
        )
        inertia = sum(squared_distances(x, found).double().sum() for x, _ in items)
        if inertia < self.inertia:
            self.centres.copy_(found)
            self.inertia.copy_(inertia)
        return {"loss": self.inertia.clone(), "inertia/this_start": inertia}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance to the nearest centre."""
        return {"loss": squared_distances(batch.x.flatten(1), self.centres).mean()}

    def encode(self, x: Tensor) -> Tensor:
        """Return 1 for the nearest centre of x (B, *shape), 0 for the others (B, k)."""
        nearest = torch.cdist(x.flatten(1), self.centres).argmin(1)
        return F.one_hot(nearest, len(self.centres)).to(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the centre (B, *shape) that a one-hot code z (B, k) stands for; of shares, the centres' mean."""
        return (z @ self.centres).unflatten(1, self.spec.shape)


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """Return the squared distance (B,) of x (B, D) to its nearest centre (k, D)."""
    near = torch.cdist(x, centres).argmin(1)
    return (x - centres[near]).square().sum(1)
