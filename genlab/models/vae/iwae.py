"""The importance-weighted autoencoder of Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.vae import VAE
from genlab.spec import Batch, Positive, Spec


class IWAE(VAE):
    """A VAE trained on the bound of k weighted draws, which is tighter and asks less of the posterior's form.

    Args:
        k: draws of z for each item in the loss.
        options: VAE's.

    Raises:
        UserError: an option that weighs a KL term, which this bound does not have; or VAE's reasons.
    """

    def __init__(self, spec: Spec, *, k: Positive = 50, **options: Any) -> None:
        super().__init__(spec, **options)
        if self.beta != 1 or self.free_bits:
            raise UserError(
                "iwae's bound has no KL term to weigh; set model.beta=1 model.free_bits=0, or model=vae"
            )
        self.k = k

    # eq. 8: L_k = E[log (1/k) Σ_i w_i]. Automatic differentiation of it is eq. 14: Σ_i w̃_i ∇ log w_i, w̃ = w / Σ w.
    def loss(self, batch: Batch, warmth: float = 1.0) -> dict[str, Tensor]:
        """Return −L_k in nats a sample, and the mean −log w, whose expectation is −ELBO."""
        log_w = self.log_weights(batch.x, self.k, warmth=warmth)  # (k, B)
        bound = log_w.logsumexp(0) - math.log(self.k)
        return {"loss": -bound.mean(), "negative_elbo": -log_w.detach().mean()}
