"""The denoising autoencoder of Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294, and 2010 (JMLR 11, 3371–3408)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.autoencoder.autoencoder import Autoencoder, squared_error
from genlab.spec import Batch, NonNegative, Spec


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder that is shown x̃ ~ q(x̃|x), a corrupted item, and asked for the clean x.

    Args:
        noise: "gaussian", "masking" (values become 0), or "salt_and_pepper" (values become 0 or 1, as likely).
        level: the share ν of the values that masking or salt and pepper destroys, each independently of the others;
            of Gaussian noise its standard deviation, in data units.
        options: Autoencoder's.

    Raises:
        UserError: a share above 1, salt and pepper on points, or Autoencoder's reasons.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        noise: Literal["gaussian", "masking", "salt_and_pepper"] = "masking",
        level: NonNegative = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if noise != "gaussian" and level > 1:
            raise UserError(
                f"model.noise={noise} destroys a share of the values, and model.level={level} is above 1"
            )
        if noise == "salt_and_pepper" and spec.kind != "image":
            raise UserError(
                "salt and pepper are the ends of a range, which points have none of; set model.noise=gaussian"
            )
        self.noise, self.level = noise, level

    # section 3.3 of the 2010 paper
    def corrupt(self, x: Tensor) -> Tensor:
        """Draw x̃ (B, *shape) from q(x̃|x)."""
        if self.noise == "gaussian":
            return x + self.level * torch.randn_like(x)
        destroyed = torch.rand_like(x) < self.level
        values = torch.zeros_like(x) if self.noise == "masking" else torch.randint_like(x, 2)
        return torch.where(destroyed, values, x)

    # eq. 5 of the 2008 paper with squared error
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error of the clean item's reconstruction from a corrupted one, averaged over the batch."""
        return {
            "loss": squared_error(batch.x, self.reconstruction(self.encode(self.corrupt(batch.x))))
        }

    def denoise(self, x: Tensor) -> Tensor:
        """Return the clean item (B, *shape) that the noisy x (B, *shape) most likely came from."""
        return self.decode(self.encode(x))
