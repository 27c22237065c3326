"""Denoising autoencoder: Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294.

Extended in Vincent et al. 2010, JMLR 11, 3371–3408.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.autoencoder.autoencoder import Autoencoder, reconstruction_squared_error
from genlab.spec import Batch, DataSpec, NonNegative


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder that reconstructs the clean x from a corrupted x̃ ~ q(x̃|x).

    Args:
        noise: "gaussian", "masking" (values become 0), or "salt_and_pepper" (values become 0 or 1
            with equal probability).
        noise_level: for masking and salt and pepper the probability ν that a value is corrupted,
            independently of the others; for Gaussian noise the standard deviation in data units.
        options: those of Autoencoder.

    Raises:
        UserError: a probability above 1, salt and pepper on points, or for the reasons of
            Autoencoder.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        noise: Literal["gaussian", "masking", "salt_and_pepper"] = "masking",
        noise_level: NonNegative = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if noise != "gaussian" and noise_level > 1:
            raise UserError(
                f"model.noise={noise} corrupts a fraction of the values, so "
                f"model.noise_level={noise_level} must be at most 1"
            )
        if noise == "salt_and_pepper" and spec.kind != "image":
            raise UserError(
                "model.noise=salt_and_pepper sets values to the ends of their range, but points "
                "are unbounded; set model.noise=gaussian"
            )
        self.noise, self.noise_level = noise, noise_level

    # section 3.3 of the 2010 paper
    def corrupt(self, x: Tensor) -> Tensor:
        """Draw x̃ (B, *shape) from q(x̃|x)."""
        if self.noise == "gaussian":
            return x + self.noise_level * torch.randn_like(x)
        is_corrupted = torch.rand_like(x) < self.noise_level
        values = torch.zeros_like(x) if self.noise == "masking" else torch.randint_like(x, 2)
        return torch.where(is_corrupted, values, x)

    # eq. 5 of the 2008 paper with squared error
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of reconstructing the clean item from a corrupted one."""
        z = self.encode(self.corrupt(batch.x))
        return {"loss": reconstruction_squared_error(batch.x, self.decode_flat(z))}

    def denoise(self, x: Tensor, *, sigma: float | None = None) -> Tensor:
        """Return the reconstruction (B, *shape) of the noisy x (B, *shape)."""
        return self.decode(self.encode(x))
