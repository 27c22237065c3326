"""The importance-weighted autoencoder of Burda, Grosse & Salakhutdinov 2016.

https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.vae import VAE
from genlab.spec import Batch, DataSpec, Positive


class IWAE(VAE):
    """A VAE trained on the importance-weighted bound, which is tighter than the ELBO.

    The bound also constrains the form of the posterior less.

    Args:
        iwae_samples: k, the samples of z per item in the loss.
        options: those of VAE.

    Raises:
        UserError: beta, free_bits or reconstruction_weight is set, but this bound is not a sum of a
            KL term and a reconstruction term; or for the reasons of VAE.
    """

    def __init__(self, spec: DataSpec, *, iwae_samples: Positive = 50, **options: Any) -> None:
        super().__init__(spec, **options)
        if self.beta != 1 or self.free_bits:
            raise UserError(
                "the IWAE bound does not contain a KL term that could be weighted; "
                "set model.beta=1 model.free_bits=0, or use model=vae"
            )
        if self.reconstruction_weight != 1 or self.gradient != "pathwise":
            raise UserError(
                "the IWAE bound is one expectation of pathwise gradients; leave out "
                "model.reconstruction_weight and model.gradient, or use model=vae"
            )
        self.iwae_samples = iwae_samples

    # eq. 8: L_k = E[log (1/k) Σ_i w_i]. Its automatic differentiation gives eq. 14:
    # Σ_i w̃_i ∇ log w_i with w̃ = w / Σ w.
    def loss(self, batch: Batch, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """Return −L_k in nats per sample, and the mean −log w, whose expectation is −ELBO."""
        log_w = self.log_importance_weights(batch.x, self.iwae_samples, kl_weight=kl_weight)
        bound = log_w.logsumexp(0) - math.log(self.iwae_samples)  # of log_w (k, B)
        return {"loss": -bound.mean(), "negative_elbo": -log_w.detach().mean()}
