"""M2, a VAE whose class is one of its latent variables: Kingma et al. 2014, https://arxiv.org/abs/1406.5298."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.vae.vae import VALUES_AT_ONCE, dimension_kl
from genlab.nn.conv import ConvEncoder, halves
from genlab.nn.mlp import ACTIVATIONS, MLP, Activation
from genlab.spec import Batch, Decay, NonNegative, Positive, Spec

UNKNOWN = -1  # the label of an item whose class the model is not told


class M2(nn.Module):
    """p(y) uniform, p(z) = N(0, I), p(x|y,z) Bernoulli; q(y|x) categorical, q(z|x,y) = N(μ(x,y), diag σ²(x,y)).

    It is told few labels: `loss` takes a class of −1 for "not known". Its code is (y, z) side by side, the class as a
    distribution: (B, classes + latent).

    Args:
        hidden: widths of the hidden layers of each network; the decoder mirrors them.
        latent: dimension of z.
        alpha: weight of the classification loss, the paper's α / N (0.1 there).
        channels: widths of LeNet's convolutions before the hidden layers of q(y|x), for images; (): none, as in the paper.
        dropout: share of the hidden units of q(y|x) that a training pass leaves out: few labels are soon known by heart.

    Raises:
        UserError: the data has no classes, or no binary values, or is too small to be halved once for each of `channels`.
    """

    conditional = True  # always: it can be asked for a class

    def __init__(
        self,
        spec: Spec,
        *,
        hidden: tuple[Positive, ...] = (500,),
        latent: Positive = 50,
        activation: Activation = "softplus",
        alpha: NonNegative = 0.1,
        channels: tuple[Positive, ...] = (),
        dropout: Decay = 0.0,
    ) -> None:
        super().__init__()
        if not spec.classes:
            raise UserError(
                "m2 learns from labels, and this data has none; model=vae learns without"
            )
        if spec.levels != 2 or spec.dequantised or tuple(spec.range) != (0, 1):
            raise UserError("m2's Bernoulli likelihood needs the values 0 and 1; "
                            "set dataset.binarize=dynamic dataset.range=[0,1]")  # fmt: skip
        if not hidden:
            raise UserError("model.hidden=[] leaves m2 no hidden layer in which x and y can meet")
        if channels and not halves(spec.shape, len(channels)):
            raise UserError(
                f"m2's q(y|x) halves an image once for each of model.channels={list(channels)}, and this data has shape "
                f"{spec.shape}; model.channels=[] has no convolutions"
            )
        self.spec, self.classes, self.latent, self.alpha = spec, spec.classes, latent, alpha
        to_class = {"activation": activation, "dropout": dropout}
        if channels:
            self.classifier = ConvEncoder(
                spec.shape, channels, spec.classes, dense=hidden, pool=True, **to_class
            )
        else:
            self.classifier = nn.Sequential(
                nn.Flatten(), *MLP(spec.dim, hidden, spec.classes, **to_class)
            )
        # the encoder's first layer acts on (x, y): its two halves stand apart, so that x is seen once for all classes
        self.stem = nn.Linear(spec.dim, hidden[0])
        self.label = nn.Embedding(spec.classes, hidden[0])
        nn.init.normal_(self.label.weight, std=hidden[0] ** -0.5)
        self.encoder = nn.Sequential(
            ACTIVATIONS[activation](), MLP(hidden[0], hidden[1:], 2 * latent, activation=activation)
        )
        self.decoder = MLP(spec.classes + latent, hidden[::-1], spec.dim, activation=activation)

    # --- the objective ----------------------------------------------------------------------------------------------

    def classify(self, x: Tensor) -> Tensor:
        """Return log q(y|x) (B, classes) in nats of x (B, *shape)."""
        return self.classifier(x).log_softmax(1)

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (…, B, latent) of q(z|x,y), of x (B, *shape) and classes y (…, B)."""
        mean, log_var = self.encoder(self.stem(x.flatten(1)) + self.label(y)).chunk(2, dim=-1)
        return mean, log_var

    def code(self, y: Tensor, z: Tensor) -> Tensor:
        """Return the code (…, classes + latent) of classes y (…) and z (…, latent)."""
        return torch.cat([F.one_hot(y, self.classes).to(z), z], -1)

    def log_likelihood(self, x: Tensor, code: Tensor) -> Tensor:
        """Return log p(x|y,z) (…, B) in nats, of x (B, *shape) and codes (…, B, classes + latent)."""
        logits = self.decoder(code)  # (…, B, D)
        return -F.binary_cross_entropy_with_logits(
            logits, x.flatten(1).expand_as(logits), reduction="none"
        ).sum(-1)

    # eq. 6: log p(x,y) ≥ E_q(z|x,y)[log p(x|y,z) + log p(y) + log p(z) − log q(z|x,y)] = −L(x,y)
    def joint_bound(self, x: Tensor, y: Tensor) -> Tensor:
        """Return one draw of −L(x, y) (…, B), a lower bound of log p(x, y) in nats, of x (B, *shape) and y (…, B)."""
        mean, log_var = self.posterior(x, y)
        # the same noise for every class: what tells the classes apart is then not the luck of their draws
        z = mean + (0.5 * log_var).exp() * torch.randn_like(
            mean[(0,) * (mean.ndim - 2)]
        )  # (…, B, latent)
        kl = dimension_kl(mean, log_var).sum(-1)
        return self.log_likelihood(x, self.code(y, z)) - math.log(self.classes) - kl

    # eq. 7: log p(x) ≥ Σ_y q(y|x) (−L(x,y)) + H(q(y|x)) = −U(x)
    def marginal_bound(self, x: Tensor, *, hold: bool = False) -> Tensor:
        """Return one draw of −U(x) (B,), a lower bound of log p(x) in nats; with `hold` q(y|x) gets no gradient."""
        log_q = self.classify(x).T  # (classes, B)
        log_q = log_q.detach() if hold else log_q
        return (log_q.exp() * (self.joint_bound(x, self.each(x)) - log_q)).sum(0)

    def each(self, x: Tensor) -> Tensor:
        """Return every class for every item: (classes, B)."""
        return torch.arange(self.classes, device=x.device)[:, None].expand(-1, len(x))

    # eqs. 8 and 9, an item: J^α / N = (N_l/N) E_l[L(x,y)] + (N_u/N) E_u[U(x)] + (α/N) E_l[−log q(y|x)]
    def loss(
        self, batch: Batch, share: float | None = None, *, hold: bool = False
    ) -> dict[str, Tensor]:
        """Return J^α / N in nats, of items of which those with y = −1 have no label.

        Args:
            share: N_l/N, the share of labelled items in the data; None: that of the batch.
            hold: let q(y|x) learn from the labelled items alone. A generator that does not know the classes yet would
                teach it those of its own making, which it then keeps.
        """
        known = batch.y != UNKNOWN
        x, y = batch.x[known], batch.y[known]
        share = len(x) / len(batch) if share is None else share
        total, parts = batch.x.new_zeros(()), {}
        if len(x):
            labelled = -self.joint_bound(x, y).mean()
            error = F.nll_loss(self.classify(x), y)
            total = total + share * labelled + self.alpha * error
            parts |= {"labelled": labelled, "classification": error}
        if len(x) < len(batch):
            unlabelled = -self.marginal_bound(batch.x[~known], hold=hold).mean()
            total = total + (1 - share) * unlabelled
            parts |= {"unlabelled": unlabelled}
        return {"loss": total, **parts}

    # --- abilities --------------------------------------------------------------------------------------------------

    def elbo(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return a lower bound (B,) with one draw, in nats: of log p(x), or given classes y (B,) of log p(x|y)."""
        return (
            self.marginal_bound(x) if y is None else self.joint_bound(x, y) + math.log(self.classes)
        )

    @torch.no_grad()
    def iwae(self, x: Tensor, k: int) -> Tensor:
        """Return log Σ_y p(y) (1/k) Σ_i p(x|y,zᵢ) p(zᵢ)/q(zᵢ|x,y) (B,) in nats, a lower bound of log p(x).

        Burda et al. 2016, https://arxiv.org/abs/1509.00519, with y summed out; k draws of z for each class.
        """
        y = self.each(x)
        mean, log_var = self.posterior(x, y)  # (classes, B, latent)
        at_once = max(1, VALUES_AT_ONCE // (x.numel() * self.classes))
        total = None
        for start in range(0, k, at_once):
            eps = torch.randn(
                min(at_once, k - start), *mean.shape, dtype=mean.dtype, device=mean.device
            )
            z = mean + (0.5 * log_var).exp() * eps  # (k, classes, B, latent)
            # log p(z) − log q(z|x,y): the constants of the two Gaussians cancel
            ratio = 0.5 * (eps.square() + log_var - z.square()).sum(-1)
            weights = (
                self.log_likelihood(x, self.code(y.expand(z.shape[:-1]), z)) + ratio
            )  # (k, classes, B)
            part = weights.flatten(0, 1).logsumexp(0)
            total = part if total is None else torch.logaddexp(total, part)
        return total - math.log(k * self.classes)

    def encode(self, x: Tensor) -> Tensor:
        """Return the code (B, classes + latent): q(y|x), and the mean of q(z|x,y) of the most probable class."""
        q = self.classify(x).exp()
        return torch.cat([q, self.posterior(x, q.argmax(1))[0]], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return p(x = 1|y,z) (B, *shape) of codes (B, classes + latent)."""
        return self.decoder(z).sigmoid().unflatten(1, self.spec.shape)

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, classes + latent), of the classes y (n,) or of uniform ones."""
        like = self.stem.weight
        y = torch.randint(self.classes, (n,), device=like.device) if y is None else y
        return self.code(y, torch.randn(n, self.latent, dtype=like.dtype, device=like.device))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Return the means p(x|y,z) (n, *shape) of n codes drawn from the prior, of the classes y (n,) if given."""
        return self.decode(self.prior(n, y))
