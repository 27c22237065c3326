"""What every two-player model shares: the two losses, the codes, and sampling. The players are the subclass's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.modules.batchnorm import _BatchNorm

from genlab.errors import UserError
from genlab.models.gan.losses import LOSSES, Name, r1_penalty
from genlab.spec import Batch, Spec

Noise = Literal["normal", "uniform"]


class Game(nn.Module):
    """A generator G(z) and a discriminator D(x), which a subclass makes, and their game (Goodfellow et al. 2014).

    G takes a code (B, code): noise z, followed in a conditional model by the one-hot class (Mirza & Osindero 2014,
    https://arxiv.org/abs/1411.1784). D takes items (B, *shape) and, in a conditional model, their classes (B,), and
    gives logits (B,).

    Raises:
        UserError: the data is of tokens, or `conditional` and the data has no labels.
    """

    generator: nn.Module
    discriminator: nn.Module

    def __init__(self, spec: Spec, *, latent: int, noise: Noise, loss: Name, r1: float, conditional: bool) -> None:
        super().__init__()
        name = type(self).__name__
        if spec.kind == "tokens":
            raise UserError(f"{name} needs values that can change a little, and this dataset has tokens; "
                            "choose images or points, such as dataset=digits")  # fmt: skip
        if conditional and not spec.classes:
            raise UserError(f"{name} with model.conditional=true needs labels, and this dataset has none; "
                            "set model.conditional=false")  # fmt: skip
        self.spec = spec
        self.latent, self.noise, self.conditional = latent, noise, conditional
        self.code = latent + (spec.classes if conditional else 0)
        self.objective = LOSSES[loss]
        self.r1 = r1

    # --- the game -------------------------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return D's loss in nats on real items and as many of G's; G is left untouched, its statistics included."""
        x, y = batch.x, batch.y if self.conditional else None
        with torch.no_grad(), fixed(self.generator):
            fake_x = self.generator(self.prior(len(x), y))
        if self.r1:
            x = x.detach().requires_grad_()
        # real and fake in batches of their own: each is normalised by its own statistics
        real, fake = self.discriminator(x, y), self.discriminator(fake_x, y)  # (B,)
        loss = self.objective.discriminator(real, fake)
        logs = {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}
        if self.r1:
            logs["r1"] = r1_penalty(real, x)
            loss = loss + self.r1 / 2 * logs["r1"]
        return {"loss": loss, **logs}

    def generator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return G's loss on as many codes as the batch has items, with its labels; D is left untouched."""
        y = batch.y if self.conditional else None
        fake_x = self.generator(self.prior(len(batch), y))
        with fixed(self.discriminator):
            fake = self.discriminator(fake_x, y)  # (B,)
        return {"loss": self.objective.generator(fake)}

    # --- abilities ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, code): noise, and in a conditional model the one-hot of y (n,), or of classes drawn evenly.

        Raises:
            UserError: y is given and the model is not conditional.
        """
        if y is not None and not self.conditional:
            raise UserError(f"this {type(self).__name__} was trained without labels: it cannot draw a given class; "
                            "train with model.conditional=true")  # fmt: skip
        like = next(self.parameters())
        z = like.new_empty(n, self.latent)
        z = z.normal_() if self.noise == "normal" else z.uniform_(-1, 1)
        if not self.conditional:
            return z
        if y is None:
            y = torch.randint(self.spec.classes, (n,), device=like.device)
        return torch.cat([z, one_hot(y.to(like.device), self.spec.classes).to(z)], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) (B, *shape) of codes (B, code), within the data's range if it has one."""
        return self.generator(z)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n items (n, *shape), of the classes y (n,) if given.

        Raises:
            UserError: y is given and the model is not conditional.
        """
        return self.decode(self.prior(n, y))


class ToRange(nn.Module):
    """tanh, stretched from (−1, 1) to the data's range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.middle, self.half = (low + high) / 2, (high - low) / 2

    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        return x if (self.middle, self.half) == (0, 1) else self.middle + self.half * x


@contextmanager
def fixed(net: nn.Module) -> Iterator[None]:
    """Let `net` play without recording batch statistics, so that its opponent's update leaves it as it was."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False  # in training it then normalises by the batch and keeps its buffers
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
