"""The conditional VAE of Sohn, Lee & Yan 2015 (NeurIPS 28, "Learning structured output representation"), with classes given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.vae.vae import VAE, draw, gaussian_kl
from genlab.spec import Spec


class CVAE(VAE):
    """p(z) = N(0, I), whatever the class; p(x|z,y) and q(z|x,y) are told the class y.

    Its code is (z, y) side by side, the class as one-hot values: (B, latent + classes). Where no class is given, all are
    taken to be as likely.

    Args:
        options: VAE's.

    Raises:
        UserError: the data has no classes; or VAE's reasons.
    """

    conditional = True  # always: it can be asked for a class

    def __init__(self, spec: Spec, **options: Any) -> None:
        if not spec.classes:
            raise UserError("cvae is told classes, and this data has none; use model=vae")
        self.classes = spec.classes
        super().__init__(spec, **options)
        # a layer of (x, y) side by side is W x + U y; W (x + e_y) is that too, with W e_y for U's column of y, and serves
        # convolutions as well
        self.label = nn.Embedding(spec.classes, spec.dim)
        nn.init.normal_(self.label.weight, std=0.1)

    @property
    def code_size(self) -> int:
        return self.latent + self.classes

    # --- the objective: equation 4 of the paper, with a prior that does not depend on the class -----------------------------

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x,y), of the classes y (B,)."""
        return super().posterior(x + self.label(y).view_as(x))

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """Return log p(x|z,y) (…, B) in nats, of x (B, *shape), z (…, B, latent) and y (B,)."""
        return super().log_likelihood(x, self.code(z, y))

    def code(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the code (…, B, latent + classes) of z (…, B, latent) and the classes y (B,)."""
        return torch.cat([z, F.one_hot(y, self.classes).to(z).expand(*z.shape[:-1], -1)], -1)

    # --- abilities --------------------------------------------------------------------------------------------------

    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return a random lower bound (B,) in nats: of log p(x|y) for the classes y (B,), or of log p(x), y summed out."""
        return self.iwae(x, 1) if y is None else self.bound(x, y)

    @torch.no_grad()
    def iwae(self, x: Tensor, k: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) with k draws (of each class), in nats, of log p(x|y) or of log p(x)."""
        if y is not None:
            return self.weighted_bound(x, k, y)
        return self.of_each(x, lambda x, y: self.weighted_bound(x, k, y)).logsumexp(1) - math.log(
            self.classes
        )

    def of_each(self, x: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return function(x, y) (B, classes) of every class y."""
        return torch.stack(
            [function(x, x.new_full((len(x),), c, dtype=torch.long)) for c in range(self.classes)],
            1,
        )

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the posterior's mean with the class (B, latent + classes); without y the likeliest class."""
        y = self.class_bounds(x).argmax(1) if y is None else y
        return self.code(self.posterior(x, y)[0], y)

    def class_bounds(self, x: Tensor) -> Tensor:
        """Return each class's log p(x|z,y) − KL(q(z|x,y) ‖ p(z)) (B, classes) at the posterior's mean z: no noise."""

        def bound(x: Tensor, y: Tensor) -> Tensor:
            mean, log_var = self.posterior(x, y)
            return self.log_likelihood(x, mean, y) - gaussian_kl(mean, log_var)

        return self.of_each(x, bound)

    def draw_code(self, x: Tensor) -> Tensor:
        """Draw a code (B, latent + classes): y by Bayes' rule from `class_bounds`, then z from q(z|x,y)."""
        y = self.class_bounds(x).softmax(1).multinomial(1).squeeze(1)
        return self.code(draw(*self.posterior(x, y)), y)

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, latent + classes), of the classes y (n,) or of any."""
        z = super().prior(n)
        return self.code(z, torch.randint(self.classes, (n,), device=z.device) if y is None else y)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Return the likelihoods' means (n, *shape) of codes drawn from the prior, of the classes y (n,) or of any."""
        return self.decode(self.prior(n, y))
