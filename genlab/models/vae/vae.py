"""The variational autoencoder of Kingma & Welling 2014, https://arxiv.org/abs/1312.6114."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.console import track
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.nn.conv import ConvDecoder, ConvEncoder, can_halve
from genlab.nn.mlp import MLP, Activation
from genlab.spec import Batch, DataSpec, NonNegative, Positive, PositiveFloat

MAX_DECODED_VALUES = 2**22  # decoded values that `iwae` holds in memory at a time


def validate_spec(
    spec: DataSpec, network: str, hidden: tuple[int, ...], dense: tuple[int, ...], likelihood: str
) -> None:
    """Raise UserError if the likelihood or the network does not fit the data."""
    data = f"{spec.kind} data of shape {spec.shape}"
    if spec.kind not in ("image", "points"):
        raise UserError(f"VAE supports images and points, but this dataset has {data}")
    if likelihood == "bernoulli" and spec.levels != 2:
        options = "model.likelihood=gaussian"
        if spec.is_discrete:
            options = f"preprocess.binarize=dynamic or {options} preprocess.dequantize=true"
        elif spec.kind == "image":
            options = f"preprocess.binarize=dynamic preprocess.dequantize=false or {options}"
        raise UserError(f"the Bernoulli likelihood of VAE requires binary data; set {options}")
    if likelihood == "bernoulli" and (spec.dequantized or tuple(spec.range) != (0, 1)):
        raise UserError(
            "the Bernoulli likelihood of VAE requires the values 0 and 1; "
            "set preprocess.range=[0,1] preprocess.dequantize=false"
        )
    if likelihood == "gaussian" and spec.is_discrete:
        binarize = " (and preprocess.binarize=none)" if spec.levels == 2 else ""
        raise UserError(
            "the Gaussian likelihood of VAE is a density, but this data is discrete; "
            f"set preprocess.dequantize=true{binarize}"
        )
    if network == "conv" and not (hidden and can_halve(spec.shape, len(hidden))):
        no_dense = " model.dense=[]" if dense else ""
        times = min(spec.shape[1:]).bit_length() - 1 if len(spec.shape) == 3 else 0
        shorter = list((hidden or (32,))[:times])
        fewer = f"model.hidden={shorter} or ".replace(", ", ",") if shorter else ""
        raise UserError(
            f"model.network=conv halves an image {len(hidden)} times (once per entry of "
            f"model.hidden, at least once), but this dataset has {data}; "
            f"set {fewer}model.network=mlp{no_dense}"
        )
    if network == "mlp" and dense:
        raise UserError(
            "model.dense applies to model.network=conv only; "
            "with model.network=mlp list all layers in model.hidden and set model.dense=[]"
        )


class VAE(GenerativeModel):
    """Variational autoencoder with a Bernoulli or Gaussian likelihood.

    The prior is N(0, I), the posterior N(μ(x), diag σ²(x)), and the Gaussian likelihood
    N(decoder(z), sigma² I).

    Args:
        network: "mlp", or "conv" with one stride-2 convolution per entry of `hidden`.
        hidden: widths (channels) of the encoder's layers; the decoder mirrors them.
        latent: dimension of z.
        sigma: standard deviation of the Gaussian likelihood in data units; None learns one value
            shared by all data dimensions (Rybkin et al. 2021, https://arxiv.org/abs/2006.13202).
        beta: weight of the KL term in the loss (Higgins et al. 2017,
            https://openreview.net/forum?id=Sy2fzU9gl); `elbo` and `iwae` do not use it.
        free_bits: λ, the nats of KL per code dimension that are not penalized (Kingma et al. 2016).
        reconstruction_weight: weight of −log p(x|z) in the loss; 0 trains on the KL term only.
        gradient: estimator of the gradient of E_q[log p(x|z)] with respect to the encoder: the
            pathwise one of the reparameterized z (section 2.4), or the score-function estimator
            log p(x|z) ∇ log q(z|x), whose variance is far larger (section 2.2).
        dense: widths of the fully connected layers between the convolutions and the code; the
            decoder mirrors them.

    Raises:
        UserError: the likelihood or the network does not fit the data.
    """

    samples_are_means = True
    takes_missing_values = True
    gradient_estimators = ("pathwise", "score_function")

    num_train_items: int | None = None  # set by the trainer; None: not known
    encoder: nn.Sequential
    decoder: nn.Sequential
    log_sigma: Tensor  # of the Gaussian likelihood

    def __init__(
        self,
        spec: DataSpec,
        *,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: tuple[Positive, ...] = (500,),
        latent: Positive = 20,
        activation: Activation = "tanh",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        sigma: PositiveFloat | None = None,
        beta: NonNegative = 1.0,
        free_bits: NonNegative = 0.0,
        reconstruction_weight: NonNegative = 1.0,
        gradient: Literal["pathwise", "score_function"] = "pathwise",
        dense: tuple[Positive, ...] = (),
    ) -> None:
        super().__init__()
        validate_spec(spec, network, hidden, dense, likelihood)
        self.spec, self.latent, self.likelihood = spec, latent, likelihood
        self.reconstruction_weight, self.gradient = reconstruction_weight, gradient
        self.beta, self.free_bits = beta, free_bits
        self.needs_joint_batch = free_bits > 0
        if network == "mlp":
            encoder = MLP(spec.dim, hidden, 2 * latent, activation=activation)
            self.encoder = nn.Sequential(nn.Flatten(), *encoder)
            self.decoder = MLP(self.code_dim, hidden[::-1], spec.dim, activation=activation)
        else:
            self.encoder = ConvEncoder(
                spec.shape, hidden, 2 * latent, dense=dense, activation=activation
            )
            decoder = ConvDecoder(
                self.code_dim, hidden[::-1], spec.shape, dense=dense[::-1], activation=activation
            )
            self.decoder = nn.Sequential(*decoder, nn.Flatten())
        if likelihood == "gaussian":
            if sigma is None:
                self.log_sigma = nn.Parameter(torch.zeros(()))
            else:
                self.register_buffer("log_sigma", torch.tensor(math.log(sigma)))

    @classmethod
    def gray_level_options(cls, spec: DataSpec, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "model.likelihood": "gaussian",
            "preprocess.binarize": "none",
            "preprocess.dequantize": True,
        }

    @property
    def code_dim(self) -> int:
        """Dimension of the decoder's input."""
        return self.latent

    # --- objective --------------------------------------------------------------------------------

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, latent) of q(z|x); only a conditional model uses y."""
        # only the networks may run in a lower precision, not the terms of the bound
        if self.spec.has_missing:  # the encoder receives 0, the mean of a standardized column
            x = x.nan_to_num()
        mean, log_var = self.encoder(x).to(x.dtype).chunk(2, dim=1)
        return mean, log_var

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|z) (…, B) in nats for x (B, *shape) and z (…, B, latent)."""
        x = x.flatten(1)  # (B, D)
        if self.spec.has_missing:
            return self.log_likelihood_of_known_values(x, z)
        out = self.decoder(z.flatten(0, -2)).to(x.dtype).unflatten(0, z.shape[:-1])  # (…, B, D)
        if self.likelihood == "bernoulli":
            cross_entropy = F.binary_cross_entropy_with_logits(
                out, x.expand_as(out), reduction="none"
            )
            return -cross_entropy.sum(-1)
        squares = ((x - out) * (-self.log_sigma).exp()).square().sum(-1)
        return -0.5 * squares - self.spec.dim * (self.log_sigma + 0.5 * math.log(2 * math.pi))

    # Mattei & Frellsen 2019, https://arxiv.org/abs/1812.02633, section 2: the likelihood of a
    # factorized p(x|z) without its missing values is the product over the known ones.
    def log_likelihood_of_known_values(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_o|z) (…, B) in nats of the values x_o of x (B, D) that are not NaN."""
        out = self.decoder(z.flatten(0, -2)).to(x.dtype).unflatten(0, z.shape[:-1])  # (…, B, D)
        squares = ((x.nan_to_num() - out) * (-self.log_sigma).exp()).square()
        log_prob = -0.5 * squares - self.log_sigma - 0.5 * math.log(2 * math.pi)
        return torch.where(x.isnan(), 0.0, log_prob).sum(-1)

    # Kingma et al. 2016, https://arxiv.org/abs/1606.04934, eq. 15: Σ_j max(λ, E_x KL_j) with the
    # batch mean for E_x.
    def weighted_kl_and_parts(
        self, mean: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the term that the loss adds to the distortion, in nats per sample, and its parts.

        Args:
            z: (B, latent), one sample of q(z|x) = N(mean, e^log_var).
        """
        rate = kl_per_dimension(mean, log_var).mean(0)  # (latent,)
        return self.beta * rate.clamp(min=self.free_bits).sum(), {"rate": rate.sum()}

    # equation 10 with L = 1
    def loss(self, batch: Batch, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """Return reconstruction_weight · distortion + kl_weight · kl_term, in nats per sample.

        Args:
            kl_weight: rises from 0 to 1 during a warm-up (Bowman et al. 2016; Sønderby et al.
                2016).
        """
        mean, log_var = self.posterior(batch.x, batch.y)
        z = reparameterize(mean, log_var)  # (B, latent)
        distortion = -self.expected_log_likelihood(batch, mean, log_var, z).mean()
        # of the joint batch, for terms that are not a mean over items
        kl_term, parts = self.weighted_kl_and_parts(*self.join_shards(mean, log_var, z))
        loss = self.reconstruction_weight * distortion + kl_weight * kl_term
        return {"loss": loss, **parts, "distortion": distortion}

    def expected_log_likelihood(
        self, batch: Batch, mean: Tensor, log_var: Tensor, z: Tensor
    ) -> Tensor:
        """Return log p(x|z) (B,) of the draws z of N(mean, e^log_var), in nats.

        Its gradient is the estimate of that of E_q[log p(x|z)] by `self.gradient`.
        """
        if self.gradient == "pathwise":
            return self.log_likelihood(batch.x, z, batch.y)
        z = z.detach()
        value = self.log_likelihood(batch.x, z, batch.y)
        log_q = -0.5 * (log_var + (z - mean).square() * (-log_var).exp()).sum(1)
        # the value of the second term is 0, its gradient value · ∇ log q(z|x)
        return value + value.detach() * (log_q - log_q.detach())

    # --- abilities --------------------------------------------------------------------------------

    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return the evidence lower bound (B,) in nats, estimated with one sample of z."""
        reject_labels(y)
        return self.single_sample_elbo(x)

    def single_sample_elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x|z) − KL(q(z|x) ‖ p(z)) (B,) in nats with one sample of z."""
        mean, log_var = self.posterior(x, y)
        z = reparameterize(mean, log_var)
        return self.log_likelihood(x, z, y) - gaussian_kl(mean, log_var)

    def log_importance_weights(
        self, x: Tensor, num_samples: int, y: Tensor | None = None, *, kl_weight: float = 1.0
    ) -> Tensor:
        """Return samples (num_samples, B) of log p(x, z) − log q(z|x) in nats.

        Burda et al. 2016, equation 8.

        Args:
            kl_weight: weight of log p(z) − log q(z|x), as in `loss`.
        """
        mean, log_var = self.posterior(x, y)
        eps = torch.randn(num_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        z = mean + (0.5 * log_var).exp() * eps  # (num_samples, B, latent)
        # log p(z) − log q(z|x): the constants of the two Gaussians cancel
        prior_over_posterior = 0.5 * (eps.square() + log_var - z.square()).sum(-1)
        return self.log_likelihood(x, z, y) + kl_weight * prior_over_posterior

    @torch.no_grad()
    def iwae(self, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) in nats, computed in chunks.

        Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519.
        """
        reject_labels(y)
        return self.importance_weighted_bound(x, num_samples)

    def importance_weighted_bound(
        self, x: Tensor, num_samples: int, y: Tensor | None = None
    ) -> Tensor:
        """Return log (1/k) Σ_i w_i (B,) of k = num_samples weights, computed in chunks."""
        chunk = max(1, MAX_DECODED_VALUES // x.numel())
        parts = [
            self.log_importance_weights(x, min(chunk, num_samples - i), y).logsumexp(0)
            for i in range(0, num_samples, chunk)
        ]
        return torch.stack(parts).logsumexp(0) - math.log(num_samples)

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the posterior mean (B, latent)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of the likelihood (B, *shape); images are clamped to their range."""
        out = self.decoder(z).unflatten(1, self.spec.shape)
        if self.likelihood == "bernoulli":
            return out.sigmoid()
        return out.clamp(*self.spec.range) if self.spec.kind == "image" else out

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, latent) from N(0, I)."""
        like = next(self.parameters())
        return torch.randn(n, self.latent, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes from the prior and return their likelihood means (n, *shape).

        No pixel noise is added.
        """
        reject_labels(y)
        return self.decode(self.prior(n))

    # Rezende, Mohamed & Wierstra 2014, https://arxiv.org/abs/1401.4082, appendix F: alternate
    # z ~ q(z|x) and x_unknown ~ p(x|z)
    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | None = None,
        *,
        steps: Positive | None = None,
    ) -> Tensor:
        """Return x (B, *shape) with unknown values replaced by their mean given z.

        Args:
            known: bool, broadcasts to x; True where a value is kept.
            steps: length of the Markov chain; None uses 100.
        """
        mean = self.decode(self.prior(len(x)))
        for _ in range(steps or 100):
            if self.likelihood == "bernoulli":
                drawn = torch.bernoulli(mean)
            else:
                drawn = mean + self.log_sigma.exp() * torch.randn_like(mean)
            mean = self.decode(self.sample_posterior(torch.where(known, x, drawn)))
        return torch.where(known, x, mean)

    # Metropolis-within-Gibbs: Mattei & Frellsen 2018, https://arxiv.org/abs/1802.04826.
    # Accepting each proposal would be the pseudo-Gibbs sampler of `inpaint`, which is not exact.
    @torch.no_grad()
    def impute(
        self, x: Tensor, known: Tensor, *, draws: int = 1, steps: Positive | None = None
    ) -> Tensor:
        """Draw the unknown values of points x (B, D), with their noise, by chains (draws, B, D).

        Each draw is the end of a separate chain. Its state is the code and the unknown values.

        Args:
            known: bool (B, D).
            steps: updates of each chain; None: 500, the first 50 of them pseudo-Gibbs steps that
                find a likely state.
        """
        observed, known = x.repeat(draws, 1), known.repeat(draws, 1)
        z = self.prior(len(observed))
        state = torch.where(known, observed, self.draw_values(z))
        steps = 500 if steps is None else steps
        for step in track(range(steps), "sampling", unit="steps"):
            mean, log_var = self.posterior(state)
            proposal = reparameterize(mean, log_var)
            # p(x, z) / q(z|x), of which the proposal's and the current code's are compared
            log_ratio = self.log_weight_of_code(state, proposal, mean, log_var)
            log_ratio = log_ratio - self.log_weight_of_code(state, z, mean, log_var)
            accepted = (torch.rand_like(log_ratio).log() < log_ratio) | (step < steps // 10)
            z = torch.where(accepted[:, None], proposal, z)
            state = torch.where(known, observed, self.draw_values(z))
        return state.unflatten(0, (draws, len(x)))

    def log_weight_of_code(self, x: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """Return log p(x, z) − log N(z; mean, e^log_var) (B,) in nats."""
        log_q = -0.5 * (log_var + (z - mean).square() * (-log_var).exp()).sum(1)
        return self.log_likelihood(x, z) - 0.5 * z.square().sum(1) - log_q

    def draw_values(self, z: Tensor) -> Tensor:
        """Draw x (B, *shape) from p(x|z)."""
        out = self.decoder(z).unflatten(1, self.spec.shape)
        if self.likelihood == "bernoulli":
            return torch.bernoulli(out.sigmoid())
        return out + self.log_sigma.exp() * torch.randn_like(out)

    def sample_posterior(self, x: Tensor) -> Tensor:
        """Draw a code (B, …), in the form that `decode` takes, from the posterior of x."""
        return reparameterize(*self.posterior(x))


def reparameterize(mean: Tensor, log_var: Tensor) -> Tensor:
    """Draw z (B, latent) from N(mean, e^log_var), differentiable in mean and log_var."""
    return mean + (0.5 * log_var).exp() * torch.randn_like(mean)


def kl_per_dimension(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, e^log_var) ‖ N(0, 1)) (B, latent) in nats for each dimension.

    Kingma & Welling 2014, appendix B.
    """
    return -0.5 * (1 + log_var - mean.square() - log_var.exp())


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, e^log_var) ‖ N(0, I)) (B,) in nats."""
    return kl_per_dimension(mean, log_var).sum(1)


def reject_labels(y: Tensor | None) -> None:
    """Raise UserError if labels are given: this model does not define p(x|y)."""
    if y is not None:
        raise UserError(
            "this VAE is not class-conditional, so it cannot use labels; use model=cvae"
        )
