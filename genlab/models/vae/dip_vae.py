"""DIP-VAE: Kumar, Sattigeri & Balakrishnan 2018, https://arxiv.org/abs/1711.00848."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.models.vae.vae import VAE
from genlab.spec import DataSpec, NonNegative


class DIPVAE(VAE):
    """A VAE that regularizes the covariance of q(z) = E_x q(z|x) toward the identity.

    Args:
        variant: "i" matches Cov_x[μ(x)] to the identity (DIP-VAE-I), "ii" the covariance of z,
            E_x[diag σ²(x)] + Cov_x[μ(x)] (DIP-VAE-II).
        off_diagonal_weight: λ_od, weight of the squared covariances between dimensions.
        diagonal_weight: λ_d, weight of the squared differences of the variances from 1.
        options: those of VAE.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        variant: Literal["i", "ii"] = "ii",
        off_diagonal_weight: NonNegative = 10.0,
        diagonal_weight: NonNegative = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        self.needs_joint_batch = True  # the covariance
        self.variant = variant
        self.off_diagonal_weight, self.diagonal_weight = off_diagonal_weight, diagonal_weight

    # eqs. 6 and 7: λ_od Σ_{i≠j} C_ij² + λ_d Σ_i (C_ii − 1)²
    def weighted_kl_and_parts(
        self, mean: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the KL term plus the covariance regularizer, and their parts."""
        kl_term, parts = super().weighted_kl_and_parts(mean, log_var, z)
        c = self.code_covariance(mean, log_var)  # (latent, latent)
        variances = c.diagonal()
        off_diagonal = c.square().sum() - variances.square().sum()
        diagonal = (variances - 1).square().sum()
        regularizer = self.off_diagonal_weight * off_diagonal + self.diagonal_weight * diagonal
        return kl_term + regularizer, {**parts, "off_diagonal": off_diagonal, "diagonal": diagonal}

    def code_covariance(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Return the batch covariance (latent, latent) that the variant constrains.

        That is the second term of equation 5, or both terms.
        """
        centered = mean - mean.mean(0)
        c = centered.mT @ centered / len(mean)
        return c if self.variant == "i" else c + torch.diag(log_var.exp().mean(0))
