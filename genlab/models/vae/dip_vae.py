"""DIP-VAE: Kumar, Sattigeri & Balakrishnan 2018, https://arxiv.org/abs/1711.00848."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.models.vae.vae import VAE
from genlab.spec import NonNegative, Spec


class DIPVAE(VAE):
    """A VAE whose inferred prior q(z) = E_x q(z|x) is pushed to have the covariance of p(z): none between dimensions.

    Args:
        form: "i" matches Cov_x[μ(x)] to the identity, "ii" the covariance of z itself, E_x[diag σ²(x)] + Cov_x[μ(x)].
        off_diagonal: λ_od, weight of the squared covariances between dimensions.
        diagonal: λ_d, weight of the squared difference of the variances from 1.
        options: VAE's.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        form: Literal["i", "ii"] = "ii",
        off_diagonal: NonNegative = 10.0,
        diagonal: NonNegative = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        self.form, self.off_diagonal, self.diagonal = form, off_diagonal, diagonal

    # eqs. 6 and 7: λ_od Σ_{i≠j} C_ij² + λ_d Σ_i (C_ii − 1)²
    def penalty(self, mean: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        penalty, parts = super().penalty(mean, log_var, z)
        c = self.covariance(mean, log_var)  # (latent, latent)
        variances = c.diagonal()
        off = c.square().sum() - variances.square().sum()
        on = (variances - 1).square().sum()
        return penalty + self.off_diagonal * off + self.diagonal * on, {
            **parts,
            "off_diagonal": off,
            "diagonal": on,
        }

    def covariance(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Return the covariance (latent, latent) over the batch that the form constrains: equation 5's second term, or both."""
        centred = mean - mean.mean(0)
        c = centred.mT @ centred / len(mean)
        return c if self.form == "i" else c + torch.diag(log_var.exp().mean(0))
