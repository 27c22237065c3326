"""The debiasing VAE of Amini et al. 2019, https://doi.org/10.1145/3306618.3314243.

Amini, Soleimany, Schwarting, Bhatia & Rus: Uncovering and mitigating algorithmic bias through
learned latent structure.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.vae.vae import VAE, gaussian_kl, reparameterize
from genlab.nn.mlp import Activation
from genlab.spec import Batch, DataSpec, NonNegative, Positive, PositiveFloat


class DebiasVAE(VAE):
    """A classifier and a VAE that share one encoder.

    The trainer draws items with rare codes more often. The encoder returns the class logits beside
    the parameters of q(z|x) (figure 3 of the paper). Resampling uses the codes only, so no label
    has to say which items are rare.

    Args:
        classification_weight, reconstruction_weight, kl_weight: c1, c2, c3, the weights of the
            three terms of the loss.
        The other options are those of VAE.

    Raises:
        UserError: the dataset does not have labels, or for the reasons of VAE.
    """

    takes_missing_values = False

    def __init__(
        self,
        spec: DataSpec,
        *,
        network: Literal["mlp", "conv"] = "conv",
        hidden: tuple[Positive, ...] = (32, 64),
        latent: Positive = 8,
        activation: Activation = "relu",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        sigma: PositiveFloat | None = None,
        classification_weight: NonNegative = 1.0,
        reconstruction_weight: NonNegative = 1.0,
        kl_weight: NonNegative = 1.0,
    ) -> None:
        if not spec.num_classes:
            raise UserError("DebiasVAE requires labels, but this dataset has none; use model=vae")
        super().__init__(
            spec,
            network=network,
            hidden=hidden,
            latent=latent,
            activation=activation,
            likelihood=likelihood,
            sigma=sigma,
        )
        self.loss_weights = (classification_weight, reconstruction_weight, kl_weight)
        last = self.encoder[-1]
        assert isinstance(last, nn.Linear)
        self.encoder[-1] = nn.Linear(last.in_features, 2 * latent + spec.num_classes)

    def posterior_and_class_log_probs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x), and log p(y|x) (B, classes)."""
        sizes = [self.latent, self.latent, self.spec.num_classes]
        mean, log_var, logits = self.encoder(x).to(x.dtype).split(sizes, 1)
        return mean, log_var, logits.log_softmax(1)

    # eq. 3: c1 · cross-entropy + c2 · reconstruction + c3 · KL; the likelihood replaces the paper's
    # p-norm
    def loss(  # type: ignore[override]  # its trainer does not warm up
        self, batch: Batch
    ) -> dict[str, Tensor]:
        """Return c1 · classification + c2 · distortion + c3 · rate, in nats per sample."""
        assert batch.y is not None
        mean, log_var, log_p = self.posterior_and_class_log_probs(batch.x)
        z = reparameterize(mean, log_var)  # (B, latent)
        classification = F.nll_loss(log_p, batch.y)
        distortion = -self.log_likelihood(batch.x, z).mean()
        rate = gaussian_kl(mean, log_var).mean()
        c1, c2, c3 = self.loss_weights
        loss = c1 * classification + c2 * distortion + c3 * rate
        return {
            "loss": loss,
            "classification": classification,
            "distortion": distortion,
            "rate": rate,
        }

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x)."""
        mean, log_var, _ = self.posterior_and_class_log_probs(x)
        return mean, log_var

    def classify(self, x: Tensor) -> Tensor:
        """Return log p(y|x) (B, classes) in nats."""
        return self.posterior_and_class_log_probs(x)[2]


# section 3.3: W(z(x)|X) ∝ Π_i 1 / (Q̂_i(z_i(x)|X) + α), with Q̂_i the histogram of the data's codes
# along dimension i
def resampling_weights(z: Tensor, *, num_bins: int, alpha: float) -> Tensor:
    """Return the probability (N,) of drawing each item, given the codes z (N, d) of all items.

    Args:
        num_bins: bins of each dimension's histogram, from the smallest code to the largest. The
            histogram is normalized to a density.
        alpha: added to the density; a larger value gives more uniform probabilities.
    """
    z = z.double()
    low, high = z.amin(0), z.amax(0)  # (d,)
    width = ((high - low) / num_bins).clamp(min=torch.finfo(z.dtype).tiny)
    bins = ((z - low) / width).long().clamp(0, num_bins - 1)  # (N, d)
    counts = torch.zeros(num_bins, z.shape[1], dtype=z.dtype, device=z.device)
    counts.scatter_add_(0, bins, torch.ones_like(z))
    density = counts.gather(0, bins) / (len(z) * width)  # (N, d)
    return (-(density + alpha).log().sum(1)).softmax(0)
