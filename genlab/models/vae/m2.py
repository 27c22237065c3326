"""M2, a VAE whose class is one of its latent variables: Kingma et al. 2014.

Semi-supervised learning with deep generative models, https://arxiv.org/abs/1406.5298.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.vae.vae import MAX_DECODED_VALUES, kl_per_dimension
from genlab.nn.conv import ConvEncoder, can_halve
from genlab.nn.mlp import ACTIVATIONS, MLP, Activation
from genlab.spec import Batch, DataSpec, Decay, NonNegative, Positive

UNLABELED = -1  # the label of an item whose class the model does not receive


class M2(GenerativeModel):
    """Semi-supervised VAE with p(y) uniform, p(z) = N(0, I) and Bernoulli p(x|y,z).

    The posterior is q(y|x) q(z|x,y), categorical and N(μ(x,y), diag σ²(x,y)). `loss` treats items
    with the label −1 as unlabeled. Its code concatenates the class probabilities y and z:
    (B, classes + latent).

    Args:
        hidden: widths of the hidden layers of each network; the decoder mirrors them.
        latent: dimension of z.
        alpha: weight of the classification loss, the paper's α / N (0.1 there).
        channels: widths of the LeNet convolutions before the hidden layers of q(y|x), for images;
            () uses no convolutions, as in the paper.
        dropout: dropout rate of the hidden units of q(y|x); a few labels are overfitted quickly.

    Raises:
        UserError: the dataset does not have labels or binary values, or its images are too small to
            be halved once per entry of `channels`.
    """

    samples_are_means = True

    conditional = True
    conditional_prior = True
    classifier: nn.Sequential
    encoder: nn.Sequential
    decoder: nn.Sequential

    gray_level_recipe = "cvae"

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: tuple[Positive, ...] = (500,),
        latent: Positive = 50,
        activation: Activation = "softplus",
        alpha: NonNegative = 0.1,
        channels: tuple[Positive, ...] = (),
        dropout: Decay = 0.0,
    ) -> None:
        super().__init__()
        validate_spec(spec, hidden, channels)
        num_classes = spec.num_classes
        self.spec, self.num_classes, self.latent, self.alpha = spec, num_classes, latent, alpha
        options: dict[str, Any] = {"activation": activation, "dropout": dropout}
        if channels:
            self.classifier = ConvEncoder(
                spec.shape, channels, num_classes, dense=hidden, pool=True, **options
            )
        else:
            self.classifier = nn.Sequential(
                nn.Flatten(), *MLP(spec.dim, hidden, num_classes, **options)
            )
        # The encoder's first layer acts on (x, y). Its two halves are separate modules, so that the
        # half of x is computed once for all classes.
        self.stem = nn.Linear(spec.dim, hidden[0])
        self.label = nn.Embedding(num_classes, hidden[0])
        nn.init.normal_(self.label.weight, std=hidden[0] ** -0.5)
        self.encoder = nn.Sequential(
            ACTIVATIONS[activation](), MLP(hidden[0], hidden[1:], 2 * latent, activation=activation)
        )
        self.decoder = MLP(num_classes + latent, hidden[::-1], spec.dim, activation=activation)

    # --- objective --------------------------------------------------------------------------------

    def classify(self, x: Tensor) -> Tensor:
        """Return log q(y|x) (B, classes) in nats for x (B, *shape)."""
        return self.classifier(x).to(x.dtype).log_softmax(1)

    def posterior(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (…, B, latent) of q(z|x,y).

        Args:
            x: (B, *shape).
            y: classes (…, B); required.
        """
        assert y is not None, "q(z|x,y) requires classes"
        h = self.encoder(self.stem(x.flatten(1)) + self.label(y))
        # only the networks may run in a lower precision, not the terms of the bound
        mean, log_var = h.to(x.dtype).chunk(2, dim=-1)
        return mean, log_var

    def join_class_and_latent(self, y: Tensor, z: Tensor) -> Tensor:
        """Return the code (…, classes + latent) of classes y (…) and z (…, latent)."""
        return torch.cat([F.one_hot(y, self.num_classes).to(z), z], -1)

    def log_likelihood(self, x: Tensor, code: Tensor) -> Tensor:
        """Return log p(x|y,z) (…, B) in nats.

        Args:
            x: (B, *shape).
            code: (…, B, classes + latent).
        """
        logits = self.decoder(code).to(x.dtype)  # (…, B, D)
        targets = x.flatten(1).expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)

    # eq. 6: log p(x,y) ≥ E_q(z|x,y)[log p(x|y,z) + log p(y) + log p(z) − log q(z|x,y)] = −L(x,y)
    def labeled_elbo(self, x: Tensor, y: Tensor) -> Tensor:
        """Return −L(x, y) (…, B), a lower bound of log p(x, y) in nats, with one sample of z.

        Args:
            x: (B, *shape).
            y: classes (…, B).
        """
        mean, log_var = self.posterior(x, y)
        # All classes share the noise, so that it does not add to the differences between classes.
        noise = torch.randn_like(mean[(0,) * (mean.ndim - 2)])  # (B, latent)
        z = mean + (0.5 * log_var).exp() * noise  # (…, B, latent)
        kl = kl_per_dimension(mean, log_var).sum(-1)
        return (
            self.log_likelihood(x, self.join_class_and_latent(y, z))
            - math.log(self.num_classes)
            - kl
        )

    # eq. 7: log p(x) ≥ Σ_y q(y|x) (−L(x,y)) + H(q(y|x)) = −U(x)
    def unlabeled_elbo(self, x: Tensor, *, detach_classifier: bool = False) -> Tensor:
        """Return −U(x) (B,), a lower bound of log p(x) in nats, with one sample of z.

        Args:
            detach_classifier: stop the gradient to q(y|x).
        """
        log_q = self.classify(x).T  # (classes, B)
        log_q = log_q.detach() if detach_classifier else log_q
        return (log_q.exp() * (self.labeled_elbo(x, self.every_class_per_item(x)) - log_q)).sum(0)

    def every_class_per_item(self, x: Tensor) -> Tensor:
        """Return every class for every item of x: (classes, B)."""
        return torch.arange(self.num_classes, device=x.device)[:, None].expand(-1, len(x))

    # eqs. 8 and 9, per item:
    # J^α / N = (N_l/N) E_l[L(x,y)] + (N_u/N) E_u[U(x)] + (α/N) E_l[−log q(y|x)]
    def loss(
        self,
        batch: Batch,
        labeled_weight: float | None = None,
        *,
        detach_classifier: bool = False,
    ) -> dict[str, Tensor]:
        """Return J^α / N in nats; items with y = −1 are unlabeled.

        Args:
            labeled_weight: N_l/N, the fraction of labeled items in the data; None uses that of the
                batch.
            detach_classifier: train q(y|x) on the labeled items only. Early in training
                the unlabeled bound would train q(y|x) toward clusters that are not the classes.
        """
        assert batch.y is not None
        labeled = batch.y != UNLABELED
        x, y = batch.x[labeled], batch.y[labeled]
        weight = len(x) / len(batch) if labeled_weight is None else labeled_weight
        total = batch.x.new_zeros(())
        parts: dict[str, Tensor] = {}
        if len(x):
            labeled_loss = -self.labeled_elbo(x, y).mean()
            classification = F.nll_loss(self.classify(x), y)
            total = total + weight * labeled_loss + self.alpha * classification
            parts |= {"labeled": labeled_loss, "classification": classification}
        if len(x) < len(batch):
            unlabeled_loss = -self.unlabeled_elbo(
                batch.x[~labeled], detach_classifier=detach_classifier
            ).mean()
            total = total + (1 - weight) * unlabeled_loss
            parts |= {"unlabeled": unlabeled_loss}
        return {"loss": total, **parts}

    # --- abilities --------------------------------------------------------------------------------

    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return a lower bound (B,) in nats of log p(x), or of log p(x|y) for classes y (B,).

        It is estimated with one sample of z.
        """
        if y is None:
            return self.unlabeled_elbo(x)
        return self.labeled_elbo(x, y) + math.log(self.num_classes)

    @torch.no_grad()
    def iwae(self, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Return the importance-weighted bound (B,) of log p(x) in nats; y is ignored.

        The classes are summed out: log Σ_y p(y) (1/k) Σ_i p(x|y,zᵢ) p(zᵢ)/q(zᵢ|x,y) with
        k = num_samples samples of z per class: Burda et al. 2016, https://arxiv.org/abs/1509.00519.
        """
        y = self.every_class_per_item(x)
        mean, log_var = self.posterior(x, y)  # (classes, B, latent)
        chunk = max(1, MAX_DECODED_VALUES // (x.numel() * self.num_classes))
        total: Tensor | None = None
        for start in range(0, num_samples, chunk):
            n = min(chunk, num_samples - start)
            eps = torch.randn(n, *mean.shape, dtype=mean.dtype, device=mean.device)
            z = mean + (0.5 * log_var).exp() * eps  # (n, classes, B, latent)
            # log p(z) − log q(z|x,y): the constants of the two Gaussians cancel
            prior_over_posterior = 0.5 * (eps.square() + log_var - z.square()).sum(-1)
            code = self.join_class_and_latent(y.expand(z.shape[:-1]), z)
            log_w = self.log_likelihood(x, code) + prior_over_posterior  # (n, classes, B)
            part = log_w.flatten(0, 1).logsumexp(0)
            total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        return total - math.log(num_samples * self.num_classes)

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the code (B, classes + latent): q(y|x), and the mean of q(z|x,y) at its mode y."""
        q = self.classify(x).exp()
        return torch.cat([q, self.posterior(x, q.argmax(1))[0]], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return p(x = 1|y,z) (B, *shape) of codes (B, classes + latent)."""
        return self.decoder(z).sigmoid().unflatten(1, self.spec.shape)

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, classes + latent), of the classes y (n,) or of uniform ones."""
        like = self.stem.weight
        y = torch.randint(self.num_classes, (n,), device=like.device) if y is None else y
        return self.join_class_and_latent(
            y, torch.randn(n, self.latent, dtype=like.dtype, device=like.device)
        )

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Return likelihood means (n, *shape) of prior samples, of the classes y (n,) if given."""
        return self.decode(self.prior(n, y))


def validate_spec(spec: DataSpec, hidden: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Raise UserError if the networks or the Bernoulli likelihood do not fit the data."""
    if not spec.num_classes:
        raise UserError("M2 trains on labels, but this dataset has none; use model=vae")
    if spec.levels != 2 or spec.dequantized or tuple(spec.range) != (0, 1):
        raise UserError(
            "the Bernoulli likelihood of M2 requires the values 0 and 1; "
            "set preprocess.binarize=dynamic preprocess.range=[0,1]"
        )
    if not hidden:
        raise UserError("model.hidden=[] leaves M2 without a layer that combines x and y")
    if channels and not can_halve(spec.shape, len(channels)):
        raise UserError(
            f"q(y|x) of M2 halves an image once per entry of model.channels={list(channels)}, but "
            f"this data has shape {spec.shape}; model.channels=[] uses no convolutions"
        )
