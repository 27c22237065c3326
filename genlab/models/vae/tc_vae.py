"""β-TCVAE: Chen, Li, Grosse & Duvenaud 2018, https://arxiv.org/abs/1802.04942."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.vae import VAE
from genlab.spec import NonNegative, Spec


class TCVAE(VAE):
    """A VAE whose KL term is taken apart into three, each with a weight of its own; `elbo` and `iwae` stay true bounds.

    Args:
        alpha: weight of the index-code mutual information.
        beta: weight of the total correlation.
        gamma: weight of the dimension-wise KL.
        options: VAE's.

    Raises:
        UserError: free bits, which are those of another sum; or VAE's reasons.
    """

    items: int | None = (
        None  # training items N, which the trainer tells; None: the batch is all that there is
    )

    def __init__(
        self,
        spec: Spec,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 6.0,
        gamma: NonNegative = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, beta=beta, **options)
        if self.free_bits:
            raise UserError(
                "tc_vae's loss has no KL of each dimension to leave free; set model.free_bits=0, or model=vae"
            )
        self.alpha, self.gamma = alpha, gamma

    # eq. 2: KL(q(z|x) ‖ p(z)) = I_q(z; n) + KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j)), in the mean over items n
    def decomposition(
        self, mean: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return one draw of mutual information, total correlation and dimension-wise KL, each (B,), in nats."""
        log_q_zx = log_normal(z, mean, log_var).sum(1)  # (B,)
        log_p_z = log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
        pairs = log_normal(
            z[:, None], mean, log_var
        )  # (B, B, latent): log q(z_i|x_j) of each dimension
        weights = self.log_shares(len(z), like=z)  # (B, B)
        log_q_z = (weights + pairs.sum(2)).logsumexp(1)
        log_q_zj = (weights[..., None] + pairs).logsumexp(1).sum(1)
        return log_q_zx - log_q_z, log_q_z - log_q_zj, log_q_zj - log_p_z

    # Appendix C.2, stratified sampling: of q(z) = 1/N Σ_n q(z|n) the term of z's own item is known to be in it, and the
    # others stand for the other N − 1; here each counts the same, the mean over which of them is the paper's last one
    def log_shares(self, batch: int, *, like: Tensor) -> Tensor:
        """Return the logarithm (B, B) of item j's weight in the estimate of q(z_i)."""
        n = max(self.items or batch, batch)
        others = math.log((n - 1) / (n * (batch - 1))) if batch > 1 else -math.inf
        shares = torch.full((batch, batch), others, dtype=like.dtype, device=like.device)
        return shares.fill_diagonal_(-math.log(n) if batch > 1 else 0.0)

    # eq. 4: the loss adds α I + β TC + γ Σ KL_j
    def penalty(self, mean: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        information, correlation, dimensions = (
            term.mean() for term in self.decomposition(mean, log_var, z)
        )
        penalty = self.alpha * information + self.beta * correlation + self.gamma * dimensions
        parts = {
            "information": information,
            "total_correlation": correlation,
            "dimension_kl": dimensions,
        }
        return penalty, {"rate": information + correlation + dimensions, **parts}


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return log N(z; mean, e^log_var) of each value, in nats."""
    return -0.5 * ((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi))
