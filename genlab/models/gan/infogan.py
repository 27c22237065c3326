"""InfoGAN: Chen et al. 2016, https://arxiv.org/abs/1606.03657."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from genlab.errors import UserError
from genlab.models.gan.base import GANBase, ScaledTanh
from genlab.models.gan.dcgan import initialize_weights
from genlab.models.gan.discriminator import Condition
from genlab.spec import Count, DataSpec, NonNegative, Positive

NEGATIVE_SLOPE = 0.1  # of the leaky ReLUs


class InfoGAN(GANBase):
    """A GAN whose codes can be recovered from its samples.

    A code concatenates noise, a one-hot category, continuous codes and, in a conditional model, the
    class. Q(c|x), on the features of D, is a softmax over the categories and a Gaussian for each
    continuous code. The networks are those of the paper
    for digits (table 1).

    Args:
        latent: dimension of the noise, which Q does not recover.
        num_categories: values of the categorical code, all equally likely.
        num_continuous: number of continuous codes, each uniform on [−1, 1].
        width: channels at half the image's side, 64 in the paper; there are twice as many at a
            quarter of the side and 16 times as many units.
        categorical_weight, continuous_weight: λ of −log Q of each part, in nats.

    Raises:
        UserError: the data is not images with sides divisible by 4, or `condition` would show the
            class to D's features.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: Positive = 62,
        num_categories: Positive = 10,
        num_continuous: Count = 2,
        width: Positive = 64,
        categorical_weight: NonNegative = 1.0,
        continuous_weight: NonNegative = 0.1,
        condition: Condition = "projection",
        **options: Any,
    ) -> None:
        if spec.kind != "image" or any(side % 4 for side in spec.shape[1:]):
            raise UserError(
                "InfoGAN needs images with sides divisible by 4, and this dataset gives "
                f"{spec.kind} data of shape {spec.shape}; set preprocess.size=32"
            )
        code_dim = latent + num_categories + num_continuous
        super().__init__(spec, latent=code_dim, condition=condition, **options)
        # withdraws the ability: the code has categories
        self.prior_quantiles = None  # type: ignore[assignment, method-assign]
        if self.conditional and condition == "concat":
            raise UserError(
                "InfoGAN recovers the code of an image without its class; "
                "set model.condition=projection"
            )
        # of the code's parts: noise, category, continuous codes, class
        self.code_sizes = (latent, num_categories, num_continuous, self.code_dim - self.latent)
        self.categorical_weight, self.continuous_weight = categorical_weight, continuous_weight
        num_units = 16 * width
        self.generator = make_generator(spec, self.code_dim, width, num_units)
        self.discriminator = self.make_discriminator(
            make_shared_features(spec, width, num_units),
            (num_units,),
            initialize=initialize_weights,
        )
        # Q's own layers are a head of D: they share its features and its optimizer
        self.discriminator.recognition = nn.Sequential(
            nn.Linear(num_units, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.Linear(2 * width, num_categories + 2 * num_continuous),
        ).apply(initialize_weights)

    def code_posterior(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q(c|x) for D's features h.

        These are the log-probabilities (B, K) of the categories and the means and log-variances
        (B, L) of the continuous codes.
        """
        _, num_categories, num_continuous, _ = self.code_sizes
        logits, mean, log_var = self.discriminator.recognition(h).split(
            [num_categories, num_continuous, num_continuous], 1
        )
        return logits.log_softmax(1), mean, log_var

    # eqs. 5 and 6: λ L_I = λ E[log Q(c|x)] + λ H(c) bounds λ I(c; G(z, c)) from below;
    # H(c) is constant, and G and Q maximize the rest
    def code_recovery_losses(self, z: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Return −λ E[log Q(c|x)] in nats of both parts of codes z (B, code_dim)."""
        _, category, c, _ = z.split(self.code_sizes, 1)
        log_q, mean, log_var = self.code_posterior(h)
        losses = {"categorical": self.categorical_weight * cross_entropy(log_q, category)}
        if c.shape[1]:
            squared_error = (c - mean).square() * (-log_var).exp()
            nats = 0.5 * (squared_error + log_var + math.log(2 * math.pi))  # (B, L)
            losses["continuous"] = self.continuous_weight * nats.sum(1).mean()
        return losses

    # --- abilities --------------------------------------------------------------------------------

    @property
    def code_choices(self) -> dict[str, slice]:
        """The one-hot parts of a code by name: the category, and the class if conditional."""
        start, num_categories, *_ = self.code_sizes
        return {"category": slice(start, start + num_categories), **super().code_choices}

    @torch.no_grad()
    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, code_dim): noise, a category, continuous codes and perhaps the class.

        Categories are equally likely, continuous codes uniform on [−1, 1].
        """
        z = super().prior(n, y)
        _, category, c, _ = z.split(self.code_sizes, 1)  # views
        drawn = torch.randint(category.shape[1], (n,), device=z.device)
        category.copy_(one_hot(drawn, category.shape[1]))
        c.uniform_(-1, 1)
        return z

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the mean code (B, code_dim) of x (B, *shape).

        It is the mean of Q, and that of the prior for the parts that Q does not recover.
        """
        log_q, mean, _ = self.code_posterior(self.discriminator.extract_features(x))
        noise_dim, _, _, num_classes = self.code_sizes
        noise = x.new_zeros(len(x), noise_dim)
        classes = x.new_full((len(x), num_classes), 1 / max(1, num_classes))
        return torch.cat([noise, log_q.exp(), mean, classes], 1)

    def category(self, z: Tensor) -> Tensor:
        """Return the category (B,) int64 of codes z (B, code_dim), the most probable of a mean."""
        return z.split(self.code_sizes, 1)[1].argmax(1)


def make_generator(spec: DataSpec, code_dim: int, width: int, num_units: int) -> nn.Module:
    """Return G, from codes (B, code_dim) to images (B, *shape)."""
    size = (spec.shape[1] // 4, spec.shape[2] // 4)
    num_values = 2 * width * math.prod(size)
    return nn.Sequential(
        nn.Linear(code_dim, num_units),
        nn.BatchNorm1d(num_units),
        nn.ReLU(inplace=True),
        nn.Linear(num_units, num_values),
        nn.BatchNorm1d(num_values),
        nn.ReLU(inplace=True),
        nn.Unflatten(1, (2 * width, *size)),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(width, spec.shape[0], 4, stride=2, padding=1),
        ScaledTanh(*spec.range),
    ).apply(initialize_weights)


def make_shared_features(spec: DataSpec, width: int, num_units: int) -> nn.Module:
    """Return the shared layers of D and Q, from images (B, *shape) to features (B, num_units)."""
    size = (spec.shape[1] // 4, spec.shape[2] // 4)
    return nn.Sequential(
        nn.Conv2d(spec.shape[0], width, 4, stride=2, padding=1),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        nn.Flatten(),
        nn.Linear(2 * width * math.prod(size), num_units),
        nn.BatchNorm1d(num_units),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
    )
