"""InfoGAN: Chen et al. 2016, https://arxiv.org/abs/1606.03657."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from genlab.errors import UserError
from genlab.models.gan.base import Game, ToRange
from genlab.models.gan.dcgan import initialise
from genlab.models.gan.discriminator import Condition
from genlab.spec import Count, NonNegative, Positive, Spec

SLOPE = 0.1  # of the leaky ReLU


class InfoGAN(Game):
    """A game in which G's codes can be read off its samples, with the paper's networks for digits (table 1).

    A code is (noise, category one-hot, continuous codes, and in a conditional model the class), side by side. Q(c|x), on
    the features of D, is a softmax over the categories and a Gaussian for each continuous code.

    Args:
        latent: dimension of the noise, of which Q tells nothing.
        categories: values of the categorical code, all equally likely.
        continuous: continuous codes, each even on [−1, 1].
        width: channels at half the image's side, 64 in the paper; twice as many at a quarter, 16 times as many units.
        categorical_weight, continuous_weight: λ of −log Q of either, in nats.

    Raises:
        UserError: the items are no images whose sides 4 divides, or `condition` shows D's features the class.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive = 62,
        categories: Positive = 10,
        continuous: Count = 2,
        width: Positive = 64,
        categorical_weight: NonNegative = 1.0,
        continuous_weight: NonNegative = 0.1,
        condition: Condition = "projection",
        **options,
    ) -> None:
        if spec.kind != "image" or any(side % 4 for side in spec.shape[1:]):
            raise UserError("InfoGAN needs images whose sides 4 divides, "
                            f"and this dataset gives {spec.kind}s of shape {spec.shape}; set prepare.size=32")  # fmt: skip
        super().__init__(
            spec, latent=latent + categories + continuous, condition=condition, **options
        )
        if self.conditional and condition == "concat":
            raise UserError(
                "InfoGAN reads a code off an image without its class; set model.condition=projection"
            )
        self.sizes = (
            latent,
            categories,
            continuous,
            self.code - self.latent,
        )  # of the code's parts
        self.categorical_weight, self.continuous_weight = categorical_weight, continuous_weight
        size = (spec.shape[1] // 4, spec.shape[2] // 4)
        units = 16 * width
        self.generator = nn.Sequential(
            nn.Linear(self.code, units), nn.BatchNorm1d(units), nn.ReLU(inplace=True),
            nn.Linear(units, 2 * width * math.prod(size)), nn.BatchNorm1d(2 * width * math.prod(size)),
            nn.ReLU(inplace=True), nn.Unflatten(1, (2 * width, *size)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, spec.shape[0], 4, stride=2, padding=1), ToRange(*spec.range),
        ).apply(initialise)  # fmt: skip
        features = nn.Sequential(
            nn.Conv2d(spec.shape[0], width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(SLOPE, inplace=True),
            nn.Flatten(), nn.Linear(2 * width * math.prod(size), units), nn.BatchNorm1d(units),
            nn.LeakyReLU(SLOPE, inplace=True),
        )  # fmt: skip
        self.discriminator = self.critic(features, (units,), initialise=initialise)
        # Q's own layers are a head of D: they share its features, and D's optimizer has them
        self.discriminator.recognition = nn.Sequential(
            nn.Linear(units, 2 * width), nn.BatchNorm1d(2 * width), nn.LeakyReLU(SLOPE, inplace=True),
            nn.Linear(2 * width, categories + 2 * continuous),
        ).apply(initialise)  # fmt: skip

    def recognised(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q(c|x) of D's features h: the categories' log-probabilities (B, K), means and log-variances (B, L)."""
        _, categories, continuous, _ = self.sizes
        logits, mean, log_var = self.discriminator.recognition(h).split(
            [categories, continuous, continuous], 1
        )
        return logits.log_softmax(1), mean, log_var

    # eqs. 5 and 6: λ L_I = λ E[log Q(c|x)] + λ H(c) bounds λ I(c; G(z, c)); H(c) is constant, and G and Q maximise the rest
    def recovered(self, z: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Return −λ E[log Q(c|x)] in nats of the categorical and of the continuous part of codes z (B, code)."""
        _, category, c, _ = z.split(self.sizes, 1)
        log_q, mean, log_var = self.recognised(h)
        losses = {"categorical": self.categorical_weight * cross_entropy(log_q, category)}
        if c.shape[1]:
            nats = 0.5 * (
                (c - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)
            )  # (B, L)
            losses["continuous"] = self.continuous_weight * nats.sum(1).mean()
        return losses

    # --- abilities ------------------------------------------------------------------------------------------------

    @property
    def choices(self) -> dict[str, slice]:
        """The parts of a code that are one-hot, by name: the category, and in a conditional model the class."""
        noise, categories, *_ = self.sizes
        return {"category": slice(noise, noise + categories), **super().choices}

    @torch.no_grad()
    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, code): noise, an even category, continuous codes even on [−1, 1], and the class where told."""
        z = super().prior(n, y)
        _, category, c, _ = z.split(self.sizes, 1)  # views
        drawn = torch.randint(category.shape[1], (n,), device=z.device)
        category.copy_(one_hot(drawn, category.shape[1]))
        c.uniform_(-1, 1)
        return z

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean (B, code) of the code that x (B, *shape) stands for: Q's, and the prior's where Q tells nothing."""
        log_q, mean, _ = self.recognised(self.discriminator.seen(x))
        noise, _, _, classes = self.sizes
        unknown = [
            x.new_full((len(x), size), value)
            for size, value in ((noise, 0.0), (classes, 1 / max(1, classes)))
        ]
        return torch.cat([unknown[0], log_q.exp(), mean, unknown[1]], 1)

    def category(self, z: Tensor) -> Tensor:
        """Return the category (B,) int64 of codes z (B, code), the most probable one of a mean."""
        return z.split(self.sizes, 1)[1].argmax(1)
