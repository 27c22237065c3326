"""Sparse autoencoders with a KL penalty (Ng 2011) or an L1 penalty (Glorot et al. 2011).

Ng 2011, https://web.stanford.edu/class/cs294a/sparseAutoencoder.pdf;
Glorot, Bordes & Bengio 2011, https://proceedings.mlr.press/v15/glorot11a.html.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.autoencoder.autoencoder import Autoencoder, reconstruction_squared_error
from genlab.spec import Batch, DataSpec, Fraction, NonNegative


class SparseAutoencoder(Autoencoder):
    """An autoencoder whose code, often larger than the data, has few active units at a time.

    Args:
        sparsity: "kl" uses logistic code units and penalizes a mean activation other than
            `sparsity_target` (Ng 2011, section 3). "l1" uses ReLU code units and penalizes their
            sum (Glorot et al. 2011, section 3.1; an L1 penalty on codes was introduced by
            Olshausen & Field 1996, https://doi.org/10.1038/381607a0).
        sparsity_weight: weight of the penalty relative to the squared error.
        sparsity_target: ρ, the mean activation of a unit that "kl" aims at; "l1" ignores it.
        options: those of Autoencoder.

    Raises:
        UserError: a target of 0 or 1, or for the reasons of Autoencoder.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        sparsity: Literal["kl", "l1"] = "kl",
        sparsity_weight: NonNegative = 6.0,
        sparsity_target: Fraction = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if sparsity_target in (0, 1):
            raise UserError(
                f"model.sparsity_target={sparsity_target} cannot be reached by a logistic unit; "
                "set a value between 0 and 1, such as 0.1"
            )
        self.sparsity = sparsity
        self.needs_joint_batch = sparsity == "kl"  # the mean activations
        self.sparsity_weight, self.sparsity_target = sparsity_weight, sparsity_target

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the code (B, latent): in (0, 1) for "kl", non-negative for "l1"."""
        a = self.encoder(x)
        return a.sigmoid() if self.sparsity == "kl" else a.relu()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return squared error + sparsity_weight · penalty, averaged over the batch."""
        z = self.encode(batch.x)
        error = reconstruction_squared_error(batch.x, self.decode_flat(z))
        if self.sparsity == "kl":
            (joint_z,) = self.join_shards(z)
            penalty = bernoulli_kl(self.sparsity_target, joint_z.mean(0)).sum()
        else:
            penalty = z.abs().sum(1).mean()
        return {"loss": error + self.sparsity_weight * penalty, "error": error, "sparsity": penalty}


# Ng 2011, section 3: KL(ρ ‖ ρ̂_j) = ρ log(ρ / ρ̂_j) + (1 − ρ) log((1 − ρ) / (1 − ρ̂_j))
def bernoulli_kl(p: float, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) in nats between Bernoulli distributions, for each q in (0, 1)."""
    p_tensor = torch.as_tensor(p, dtype=q.dtype, device=q.device)
    q = q.clamp(1e-6, 1 - 1e-6)  # a unit may be off for a whole batch
    return p_tensor * (p_tensor / q).log() + (1 - p_tensor) * ((1 - p_tensor) / (1 - q)).log()
