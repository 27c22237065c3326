"""β-TCVAE: Chen, Li, Grosse & Duvenaud 2018, https://arxiv.org/abs/1802.04942."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.vae import VAE
from genlab.spec import DataSpec, NonNegative


class TCVAE(VAE):
    """A VAE that decomposes the KL term into three parts and weights each of them.

    `elbo` and `iwae` do not use the weights and stay valid bounds. The estimate of q(z) uses
    `num_train_items`; without it the batch counts as the whole training set.

    Args:
        alpha: weight of the index-code mutual information.
        beta: weight of the total correlation.
        gamma: weight of the dimension-wise KL.
        options: those of VAE.

    Raises:
        UserError: free_bits is set, since it applies to another sum; or for the reasons of VAE.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 6.0,
        gamma: NonNegative = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, beta=beta, **options)
        if self.free_bits:
            raise UserError(
                "the loss of TCVAE does not contain the KL of q(z|x) per dimension that free bits "
                "apply to; set model.free_bits=0, or use model=vae"
            )
        self.needs_joint_batch = True  # the estimate of q(z)
        self.alpha, self.gamma = alpha, gamma

    # eq. 2: KL(q(z|x) ‖ p(z)) = I_q(z; n) + KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j)),
    # averaged over items n
    def decompose_kl(
        self, mean: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mutual information, total correlation and dimension-wise KL, each (B,), in nats.

        Each is an estimate from one sample z (B, latent) per item.
        """
        log_q_zx = normal_log_prob(z, mean, log_var).sum(1)  # (B,)
        log_p_z = normal_log_prob(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
        # log q(z_i|x_j) of each dimension, (B, B, latent)
        pairs = normal_log_prob(z[:, None], mean, log_var)
        weights = self.minibatch_stratified_log_weights(len(z), like=z)  # (B, B)
        log_q_z = (weights + pairs.sum(2)).logsumexp(1)
        log_q_zj = (weights[..., None] + pairs).logsumexp(1).sum(1)
        return log_q_zx - log_q_z, log_q_z - log_q_zj, log_q_zj - log_p_z

    # Appendix C.2, stratified sampling of q(z) = 1/N Σ_n q(z|n): the item that z comes from
    # contributes its own term, and the other B − 1 items represent the remaining N − 1. Here those
    # are weighted equally, which is the mean of the paper's estimator over the choice of its last
    # item.
    def minibatch_stratified_log_weights(self, batch_size: int, *, like: Tensor) -> Tensor:
        """Return the log-weight (B, B) of item j in the estimate of q(z_i)."""
        n = max(self.num_train_items or batch_size, batch_size)
        if batch_size > 1:
            own, others = -math.log(n), math.log((n - 1) / (n * (batch_size - 1)))
        else:
            own, others = 0.0, -math.inf
        shape = (batch_size, batch_size)
        weights = torch.full(shape, others, dtype=like.dtype, device=like.device)
        return weights.fill_diagonal_(own)

    # eq. 4: the loss adds α I + β TC + γ Σ KL_j
    def weighted_kl_and_parts(
        self, mean: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the three parts of the KL, and the parts."""
        terms = self.decompose_kl(mean, log_var, z)
        information, correlation, dimension_kl = (term.mean() for term in terms)
        kl_term = self.alpha * information + self.beta * correlation + self.gamma * dimension_kl
        return kl_term, {
            "rate": information + correlation + dimension_kl,
            "information": information,
            "total_correlation": correlation,
            "dimension_kl": dimension_kl,
        }


def normal_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return log N(z; mean, e^log_var) of each value, in nats."""
    return -0.5 * ((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi))
