"""Sparse autoencoders: Ng 2011, https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf (KL); Glorot et al. 2011 (L1)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.autoencoder.autoencoder import Autoencoder, squared_error
from genlab.spec import Batch, Fraction, NonNegative, Spec


class SparseAutoencoder(Autoencoder):
    """An autoencoder whose code, often larger than the data, has few units on at a time.

    Args:
        sparsity: "kl": logistic code units, each to be on in a share `target` of the items (Ng 2011, section 3); "l1":
            rectified code units of small sum (Glorot, Bordes & Bengio 2011, https://proceedings.mlr.press/v15/glorot11a.html,
            section 3.1; an L1 cost of codes goes back to Olshausen & Field 1996, https://doi.org/10.1038/381607a0).
        weight: of the sparsity's cost beside the squared error.
        target: ρ, the mean activation that "kl" asks of a unit; "l1" has no use for it.
        options: Autoencoder's.

    Raises:
        UserError: a target of 0 or 1, or Autoencoder's reasons.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        sparsity: Literal["kl", "l1"] = "kl",
        weight: NonNegative = 6.0,
        target: Fraction = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if target in (0, 1):
            raise UserError(
                f"model.target={target}: no logistic unit is always off or always on; give a share between"
            )
        self.sparsity, self.weight, self.target = sparsity, weight, target

    def encode(self, x: Tensor) -> Tensor:
        """Return the code (B, latent) of x (B, *shape): between 0 and 1 with "kl", 0 or above with "l1"."""
        a = self.encoder(x)
        return a.sigmoid() if self.sparsity == "kl" else a.relu()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return squared error + weight · the sparsity's cost, averaged over the batch."""
        z = self.encode(batch.x)
        error = squared_error(batch.x, self.reconstruction(z))
        cost = (
            bernoulli_kl(self.target, z.mean(0)).sum()
            if self.sparsity == "kl"
            else z.abs().sum(1).mean()
        )
        return {"loss": error + self.weight * cost, "error": error, "sparsity": cost}


# Ng 2011, section 3: KL(ρ ‖ ρ̂_j) = ρ log(ρ / ρ̂_j) + (1 − ρ) log((1 − ρ) / (1 − ρ̂_j))
def bernoulli_kl(p: float, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) in nats between two coins, for each q in (0, 1)."""
    p = torch.as_tensor(p, dtype=q.dtype, device=q.device)
    q = q.clamp(1e-6, 1 - 1e-6)  # a unit that is off for a whole batch
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
