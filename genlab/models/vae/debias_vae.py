"""The debiasing VAE of Amini, Soleimany, Schwarting, Bhatia & Rus 2019, https://doi.org/10.1145/3306618.3314243."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.vae.vae import VAE, draw, gaussian_kl
from genlab.nn.mlp import Activation
from genlab.spec import Batch, NonNegative, Positive, PositiveFloat, Spec


class DebiasVAE(VAE):
    """A classifier and a VAE that share one encoder; where its codes are rare, the trainer draws items more often.

    The encoder gives the classes' logits beside the parameters of q(z|x) (the paper's figure 3). The density of the codes
    never sees a label of what is rare: `resampling` needs the codes alone.

    Args:
        classification, reconstruction, regularisation: c1, c2, c3, the weights of the loss's three terms.
        The other options are VAE's.

    Raises:
        UserError: the data has no classes, or VAE's reasons.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        network: Literal["mlp", "conv"] = "conv",
        hidden: tuple[Positive, ...] = (32, 64),
        latent: Positive = 8,
        activation: Activation = "relu",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        sigma: PositiveFloat | None = None,
        classification: NonNegative = 1.0,
        reconstruction: NonNegative = 1.0,
        regularisation: NonNegative = 1.0,
    ) -> None:
        if not spec.classes:
            raise UserError(
                "debias_vae learns the classes beside the codes, and this data has none; use model=vae"
            )
        super().__init__(
            spec,
            network=network,
            hidden=hidden,
            latent=latent,
            activation=activation,
            likelihood=likelihood,
            sigma=sigma,
        )
        self.weights = (classification, reconstruction, regularisation)
        last = self.encoder[-1]
        self.encoder[-1] = nn.Linear(last.in_features, 2 * latent + spec.classes)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x), and log p(y|x) (B, classes)."""
        mean, log_var, logits = self.encoder(x).split(
            [self.latent, self.latent, self.spec.classes], 1
        )
        return mean, log_var, logits.log_softmax(1)

    # eq. 3: c1 · cross-entropy + c2 · reconstruction + c3 · KL; the likelihood takes the place of the paper's p-norm
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return c1 · classification + c2 · distortion + c3 · rate, in nats a sample."""
        mean, log_var, log_p = self.heads(batch.x)
        z = draw(mean, log_var)  # (B, latent)
        classification = F.nll_loss(log_p, batch.y)
        distortion = -self.log_likelihood(batch.x, z).mean()
        rate = gaussian_kl(mean, log_var).mean()
        c1, c2, c3 = self.weights
        parts = {"classification": classification, "distortion": distortion, "rate": rate}
        return {"loss": c1 * classification + c2 * distortion + c3 * rate, **parts}

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x)."""
        return self.heads(x)[:2]

    def classify(self, x: Tensor) -> Tensor:
        """Return log p(y|x) (B, classes) in nats."""
        return self.heads(x)[2]


# section 3.3: W(z(x)|X) ∝ Π_i 1 / (Q̂_i(z_i(x)|X) + α), with Q̂_i the histogram of the data's codes along dimension i
def resampling(z: Tensor, *, bins: int, alpha: float) -> Tensor:
    """Return the probability (N,) with which each of the items with codes z (N, d) is drawn.

    Args:
        bins: of the histograms, each from a dimension's least code to its greatest; a density, so that its integral is 1.
        alpha: the larger, the closer to uniform.
    """
    z = z.double()
    low, high = z.amin(0), z.amax(0)  # (d,)
    width = ((high - low) / bins).clamp(min=torch.finfo(z.dtype).tiny)
    at = ((z - low) / width).long().clamp(0, bins - 1)  # (N, d)
    count = torch.zeros(bins, z.shape[1], dtype=z.dtype, device=z.device).scatter_add_(
        0, at, torch.ones_like(z)
    )
    density = count.gather(0, at) / (len(z) * width)  # (N, d)
    return (-(density + alpha).log().sum(1)).softmax(0)
