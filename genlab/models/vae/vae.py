"""The variational autoencoder of Kingma & Welling 2014, https://arxiv.org/abs/1312.6114."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.nn.conv import ConvDecoder, ConvEncoder, halves
from genlab.nn.mlp import MLP, Activation
from genlab.spec import Batch, NonNegative, Positive, PositiveFloat, Spec

VALUES_AT_ONCE = 2**22  # decoded values that `iwae` holds in memory at a time


def check(
    spec: Spec, network: str, hidden: tuple[int, ...], dense: tuple[int, ...], likelihood: str
) -> None:
    """Refuse data that p(x|z) is no likelihood of, or that the network cannot take."""
    name = f"{spec.kind} data of shape {spec.shape}"
    if spec.kind not in ("image", "points"):
        raise UserError(f"vae takes images or points, and this is {name}")
    if likelihood == "bernoulli" and spec.levels != 2:
        mend = "dataset.binarize=dynamic or " if spec.kind == "image" else ""
        raise UserError(
            f"vae's Bernoulli likelihood needs binary data; set {mend}model.likelihood=gaussian"
        )
    if likelihood == "bernoulli" and (spec.dequantised or tuple(spec.range) != (0, 1)):
        raise UserError(
            "vae's Bernoulli likelihood needs the values 0 and 1; set dataset.range=[0,1] dataset.dequantise=false"
        )
    if likelihood == "gaussian" and spec.discrete:
        raise UserError(
            "vae's Gaussian likelihood is a density and this data is discrete; set dataset.dequantise=true"
            + (" (and dataset.binarize=none)" if spec.levels == 2 else "")
        )
    if network == "conv" and not (hidden and halves(spec.shape, len(hidden))):
        raise UserError(
            f"vae's network conv halves an image {len(hidden)} times (once for each of model.hidden, at least one), "
            f"and this is {name}; set model.network=mlp or another model.hidden"
        )
    if network == "mlp" and dense:
        raise UserError(
            "vae's network mlp has fully connected layers alone: give them all in model.hidden, model.dense=[]"
        )


class VAE(nn.Module):
    """A VAE: prior N(0, I), posterior N(μ(x), diag σ²(x)), likelihood Bernoulli or N(decoder(z), sigma² I).

    Args:
        network: "mlp", or "conv": stride-2 convolutions, one for each of `hidden`.
        hidden: widths (channels) of the encoder's layers; the decoder mirrors them.
        latent: dimension of z.
        sigma: the Gaussian likelihood's standard deviation in data units; None learns one for all values
            (Rybkin et al. 2021, https://arxiv.org/abs/2006.13202).
        beta: weight of the KL term in the loss (Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl); `elbo`
            and `iwae` stay true bounds.
        free_bits: λ, the nats of each code dimension's KL that cost nothing (Kingma et al. 2016).
        dense: widths of fully connected layers between the convolutions and the code, each way.

    Raises:
        UserError: the likelihood or the network does not fit the data.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: tuple[Positive, ...] = (500,),
        latent: Positive = 20,
        activation: Activation = "tanh",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        sigma: PositiveFloat | None = None,
        beta: NonNegative = 1.0,
        free_bits: NonNegative = 0.0,
        dense: tuple[Positive, ...] = (),
    ) -> None:
        super().__init__()
        check(spec, network, hidden, dense, likelihood)
        self.spec, self.latent, self.likelihood = spec, latent, likelihood
        self.beta, self.free_bits = beta, free_bits
        if network == "mlp":
            encoder = MLP(spec.dim, hidden, 2 * latent, activation=activation)
            self.encoder = nn.Sequential(nn.Flatten(), *encoder)
            self.decoder = MLP(self.code_size, hidden[::-1], spec.dim, activation=activation)
        else:
            self.encoder = ConvEncoder(
                spec.shape, hidden, 2 * latent, dense=dense, activation=activation
            )
            decoder = ConvDecoder(
                self.code_size, hidden[::-1], spec.shape, dense=dense[::-1], activation=activation
            )
            self.decoder = nn.Sequential(*decoder, nn.Flatten())
        if likelihood == "gaussian" and sigma is None:
            self.log_sigma = nn.Parameter(torch.zeros(()))
        elif likelihood == "gaussian":
            self.register_buffer("log_sigma", torch.tensor(math.log(sigma)))

    @property
    def code_size(self) -> int:
        """The width of the decoder's input."""
        return self.latent

    # --- the objective ----------------------------------------------------------------------------------------------

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x); the classes y matter to a conditional model alone."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|z) (…, B) in nats, of x (B, *shape) and z (…, B, latent)."""
        x, out = (
            x.flatten(1),
            self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1]),
        )  # (B, D), (…, B, D)
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none").sum(
                -1
            )
        squares = ((x - out) * (-self.log_sigma).exp()).square().sum(-1)
        return -0.5 * squares - self.spec.dim * (self.log_sigma + 0.5 * math.log(2 * math.pi))

    # Kingma et al. 2016, https://arxiv.org/abs/1606.04934, eq. 15: Σ_j max(λ, E_x KL_j), of the batch's mean
    def penalty(self, mean: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the loss adds to the distortion, in nats a sample, and its parts; z (B, latent) is a draw of q."""
        rate = dimension_kl(mean, log_var).mean(0)  # (latent,)
        return self.beta * rate.clamp(min=self.free_bits).sum(), {"rate": rate.sum()}

    # equation 10 with L = 1
    def loss(self, batch: Batch, warmth: float = 1.0) -> dict[str, Tensor]:
        """Return distortion + warmth · penalty, in nats a sample.

        Args:
            warmth: how much of the penalty counts, rising from 0 to 1 in a warm-up (Bowman et al. 2016; Sønderby et al. 2016).
        """
        mean, log_var = self.posterior(batch.x, batch.y)
        z = draw(mean, log_var)  # (B, latent)
        distortion = -self.log_likelihood(batch.x, z, batch.y).mean()
        penalty, parts = self.penalty(mean, log_var, z)
        return {"loss": distortion + warmth * penalty, **parts, "distortion": distortion}

    # --- abilities --------------------------------------------------------------------------------------------------

    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the evidence lower bound (B,) with one draw of z, in nats."""
        refuse_classes(y)
        return self.bound(x)

    def bound(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|z) − KL(q(z|x) ‖ p(z)) (B,) with one draw of z, in nats."""
        mean, log_var = self.posterior(x, y)
        return self.log_likelihood(x, draw(mean, log_var), y) - gaussian_kl(mean, log_var)

    def log_weights(
        self, x: Tensor, k: int, y: Tensor | None = None, *, warmth: float = 1.0
    ) -> Tensor:
        """Return k draws (k, B) of log p(x, z) − log q(z|x), in nats: Burda et al. 2016, equation 8.

        Args:
            warmth: weight of log p(z) − log q(z|x), as in `loss`.
        """
        mean, log_var = self.posterior(x, y)
        eps = torch.randn(k, *mean.shape, dtype=mean.dtype, device=mean.device)  # (k, B, latent)
        z = mean + (0.5 * log_var).exp() * eps
        # log p(z) − log q(z|x): the constants of the two Gaussians cancel
        prior_over_posterior = 0.5 * (eps.square() + log_var - z.square()).sum(-1)  # (k, B)
        return self.log_likelihood(x, z, y) + warmth * prior_over_posterior

    @torch.no_grad()
    def iwae(self, x: Tensor, k: int) -> Tensor:
        """Return the importance-weighted bound (B,) with k draws, in nats, in bounded memory for any k.

        Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519.
        """
        return self.weighted_bound(x, k)

    def weighted_bound(self, x: Tensor, k: int, y: Tensor | None = None) -> Tensor:
        """Return log (1/k) Σ_i w_i (B,) of k weights, a part of them at a time."""
        at_once = max(1, VALUES_AT_ONCE // x.numel())
        parts = [
            self.log_weights(x, min(at_once, k - i), y).logsumexp(0) for i in range(0, k, at_once)
        ]
        return torch.stack(parts).logsumexp(0) - math.log(k)

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior's mean (B, latent)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the likelihood's mean (B, *shape); an image's is cut to its range."""
        out = self.decoder(z).unflatten(1, self.spec.shape)
        if self.likelihood == "bernoulli":
            return out.sigmoid()
        return out.clamp(*self.spec.range) if self.spec.kind == "image" else out

    def prior(self, n: int) -> Tensor:
        """Draw n codes (n, latent) from N(0, I)."""
        like = next(self.parameters())
        return torch.randn(n, self.latent, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes from the prior and return their likelihoods' means (n, *shape): no pixel noise is added."""
        refuse_classes(y)
        return self.decode(self.prior(n))

    # Rezende, Mohamed & Wierstra 2014, https://arxiv.org/abs/1401.4082, appendix F: z ~ q(z|x), x_unknown ~ p(x|z), …
    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, steps: Positive = 100) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False at their means given z, after `steps` steps of a chain."""
        mean = self.decode(self.prior(len(x)))
        for _ in range(steps):
            if self.likelihood == "bernoulli":
                drawn = torch.bernoulli(mean)
            else:
                drawn = mean + self.log_sigma.exp() * torch.randn_like(mean)
            mean = self.decode(self.draw_code(torch.where(known, x, drawn)))
        return torch.where(known, x, mean)

    def draw_code(self, x: Tensor) -> Tensor:
        """Draw a code (B, …), as `decode` takes it, from the posterior of x (B, *shape)."""
        return draw(*self.posterior(x))


def draw(mean: Tensor, log_var: Tensor) -> Tensor:
    """Draw z (B, latent) from N(mean, e^log_var), as a differentiable function of both."""
    return mean + (0.5 * log_var).exp() * torch.randn_like(mean)


def dimension_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return each dimension's KL(N(mean, e^log_var) ‖ N(0, 1)) (B, latent) in nats: Kingma & Welling 2014, appendix B."""
    return -0.5 * (1 + log_var - mean.square() - log_var.exp())


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, e^log_var) ‖ N(0, I)) (B,) in nats."""
    return dimension_kl(mean, log_var).sum(1)


def refuse_classes(y: Tensor | None) -> None:
    """Refuse labels: this model has no p(x|y)."""
    if y is not None:
        raise UserError("vae knows no classes, and classes were given")
