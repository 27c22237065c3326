"""The conditional VAE of Sohn, Lee & Yan 2015 with class labels as the condition.

Learning structured output representation using deep conditional generative models, NeurIPS 28.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.vae.vae import VAE, gaussian_kl, reparameterize
from genlab.spec import DataSpec


class CVAE(VAE):
    """Class-conditional VAE: p(x|z,y) and q(z|x,y) depend on the class y.

    The prior p(z) = N(0, I) does not depend on y. The code concatenates z and the one-hot class:
    (B, latent + classes). Where no class is given, p(y) is uniform.

    Args:
        options: those of VAE.

    Raises:
        UserError: the dataset does not have labels, or for the reasons of VAE.
    """

    conditional = True
    conditional_prior = True
    takes_missing_values = False
    impute = None  # type: ignore[assignment]  # the class of a row is not known

    def __init__(self, spec: DataSpec, **options: Any) -> None:
        if not spec.num_classes:
            raise UserError("CVAE requires labels, but this dataset has none; use model=vae")
        self.num_classes = spec.num_classes
        super().__init__(spec, **options)
        # A layer of the concatenation (x, y) computes W x + U y. W (x + e_y) computes the same with
        # W e_y as the column of U for y, and it also works for convolutions.
        self.label = nn.Embedding(spec.num_classes, spec.dim)
        nn.init.normal_(self.label.weight, std=0.1)

    @property
    def code_dim(self) -> int:
        """Dimension of the decoder's input."""
        return self.latent + self.num_classes

    # --- objective: equation 4 of the paper, with a prior that does not depend on the class -------

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x,y); the classes y (B,) are required."""
        assert y is not None, "q(z|x,y) requires classes"
        return super().posterior(x + self.label(y).view_as(x))

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|z,y) (…, B) in nats for x (B, *shape), z (…, B, latent) and y (B,)."""
        assert y is not None, "p(x|z,y) requires classes"
        return super().log_likelihood(x, self.join_class_and_latent(z, y))

    def join_class_and_latent(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the code (…, B, latent + classes) of z (…, B, latent) and the classes y (B,)."""
        return torch.cat([z, F.one_hot(y, self.num_classes).to(z).expand(*z.shape[:-1], -1)], -1)

    # --- abilities --------------------------------------------------------------------------------

    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return a lower bound (B,) in nats, estimated with one sample of z per class.

        It bounds log p(x|y) for the classes y (B,), or log p(x) if y is None.
        """
        return self.iwae(x, 1) if y is None else self.single_sample_elbo(x, y)

    @torch.no_grad()
    def iwae(self, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) of log p(x|y), or of log p(x), in nats.

        Without y, num_samples are drawn for each class and the classes are summed out.
        """
        if y is not None:
            return self.importance_weighted_bound(x, num_samples, y)
        per_class = self.apply_to_each_class(
            x, lambda x, y: self.importance_weighted_bound(x, num_samples, y)
        )
        return per_class.logsumexp(1) - math.log(self.num_classes)

    def apply_to_each_class(
        self, x: Tensor, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return function(x, y) (B, classes) with y set to each class in turn."""
        classes = (x.new_full((len(x),), c, dtype=torch.long) for c in range(self.num_classes))
        return torch.stack([function(x, y) for y in classes], 1)

    def encode(self, x: Tensor, y: Tensor | None = None, *, steps: int | None = None) -> Tensor:
        """Return the posterior mean and the one-hot class (B, latent + classes).

        Without y the most likely class is used.
        """
        y = self.class_elbos(x).argmax(1) if y is None else y
        return self.join_class_and_latent(self.posterior(x, y)[0], y)

    def class_elbos(self, x: Tensor) -> Tensor:
        """Return log p(x|z,y) − KL(q(z|x,y) ‖ p(z)) (B, classes) at the posterior mean z.

        It is deterministic.
        """

        def elbo_at_mean(x: Tensor, y: Tensor) -> Tensor:
            mean, log_var = self.posterior(x, y)
            return self.log_likelihood(x, mean, y) - gaussian_kl(mean, log_var)

        return self.apply_to_each_class(x, elbo_at_mean)

    def sample_posterior(self, x: Tensor) -> Tensor:
        """Draw y by Bayes' rule from `class_elbos`, then z from q(z|x,y).

        Returns:
            The code (B, latent + classes).
        """
        y = self.class_elbos(x).softmax(1).multinomial(1).squeeze(1)
        return self.join_class_and_latent(reparameterize(*self.posterior(x, y)), y)

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, latent + classes), of the classes y (n,) or of uniform ones."""
        z = super().prior(n)
        if y is None:
            y = torch.randint(self.num_classes, (n,), device=z.device)
        return self.join_class_and_latent(z, y)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Return likelihood means (n, *shape) of prior samples, of the classes y (n,) if given."""
        return self.decode(self.prior(n, y))
