"""GAN: Goodfellow et al. 2014, Generative Adversarial Nets, https://arxiv.org/abs/1406.2661."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genlab.models.gan.game import Game, Noise, ToRange
from genlab.models.gan.losses import Name
from genlab.spec import Decay, NonNegative, Positive, Spec


class GAN(Game):
    """Two multilayer perceptrons, on images or points of any shape.

    Args:
        hidden: widths of G's layers, with ReLU; its output is a tanh over the range of images, linear for points.
        discriminator_hidden: widths of D's layers, with leaky ReLU of `slope` (0: ReLU).
        dropout: share of D's units that a training pass leaves out.
        r1: γ of the gradient penalty γ/2 E|∇D(x)|² on data (Mescheder et al. 2018).

    Raises:
        UserError: the data is of tokens, or `conditional` and the data has no labels.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive = 100,
        hidden: tuple[Positive, ...] = (1200, 1200),
        discriminator_hidden: tuple[Positive, ...] = (240, 240),
        slope: NonNegative = 0.2,
        dropout: Decay = 0.0,
        noise: Noise = "normal",
        loss: Name = "non_saturating",
        r1: NonNegative = 0.0,
        conditional: bool = False,
    ) -> None:
        super().__init__(spec, latent=latent, noise=noise, loss=loss, r1=r1, conditional=conditional)
        out: list[nn.Module] = [] if spec.kind == "points" else [ToRange(*spec.range)]
        widths = (self.code, *hidden)
        self.generator = nn.Sequential(
            *(layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())),
            nn.Linear(widths[-1], spec.dim),
            *out,
            nn.Unflatten(1, spec.shape),
        )
        self.discriminator = Discriminator(spec, discriminator_hidden, slope, dropout, spec.classes * conditional)


class Discriminator(nn.Module):
    """D: items (B, *shape), with one-hot classes where it has any, to logits (B,)."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...], slope: float, dropout: float, classes: int) -> None:
        super().__init__()
        self.classes = classes
        widths = (spec.dim + classes, *hidden)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.LeakyReLU(slope)] + ([nn.Dropout(dropout)] if dropout else [])
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = x.flatten(1)  # (B, D)
        if self.classes:
            x = torch.cat([x, one_hot(y, self.classes).to(x)], 1)
        return self.layers(x).squeeze(1)  # (B,)
