"""What every two-player model shares: the two losses, the codes, and sampling. The players are the subclass's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from genlab.errors import UserError
from genlab.models.gan import augment as augments
from genlab.models.gan.discriminator import ClassMap, Condition, Critic, OneHot
from genlab.models.gan.losses import LOSSES, Name
from genlab.models.gan.regularizers import Restrained
from genlab.nn.minibatch_stddev import MinibatchDeviation
from genlab.spec import Batch, Positive, Spec

Noise = Literal["normal", "uniform"]


class Game(Restrained):
    """A generator G(z) and a discriminator D(x), which a subclass makes, and their game (Goodfellow et al. 2014).

    G takes a code (B, code): noise z, followed in a conditional model by the one-hot class (Mirza & Osindero 2014,
    https://arxiv.org/abs/1411.1784). D takes items (B, *shape) and, in a conditional model, their classes (B,), and
    gives logits (B,). Losses and regularisers fit every network.

    Args:
        latent: dimension of the noise z.
        deviation: show D how much a batch differs (Karras et al. 2018).
        augment: what D is shown: images as they are, by DiffAugment (Zhao et al. 2020) or adaptively (Karras et al. 2020).
        condition: how D is told the class, and `auxiliary`: tells it.
        restraints: what holds D smooth, see `Restrained`.

    Raises:
        UserError: the data is of tokens, `conditional` and the data has no labels, or `augment` goes not with the data or
            the loss.
    """

    generator: nn.Module
    discriminator: Critic

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive = 100,
        noise: Noise = "normal",
        loss: Name = "non_saturating",
        deviation: bool = False,
        augment: augments.Name = "none",
        conditional: bool = False,
        condition: Condition = "concat",
        **restraints,
    ) -> None:
        super().__init__(**restraints)
        name = type(self).__name__
        if spec.kind not in ("image", "points"):
            raise UserError(f"{name} needs values that can change a little, and this dataset has {spec.kind}; "
                            "choose images or points, such as dataset=digits")  # fmt: skip
        if conditional and not spec.classes:
            raise UserError(f"{name} with model.conditional=true needs labels, and this dataset has none; "
                            "set model.conditional=false")  # fmt: skip
        if augment != "none" and spec.kind != "image":
            raise UserError(f"model.augment={augment} is for images; set model.augment=none")
        if (
            augment == "ada" and not LOSSES[loss].absolute
        ):  # what the signs of D's values are is left to chance there
            *others, last = [name for name, one in LOSSES.items() if one.absolute]
            raise UserError(f"model.augment=ada follows the signs of D's values, which mean nothing with model.loss={loss}; "
                            f"set model.loss to {', '.join(others)} or {last}, or model.augment=diffaugment")  # fmt: skip
        self.spec = spec
        self.latent, self.noise, self.conditional = latent, noise, conditional
        self.code = latent + (spec.classes if conditional else 0)
        self.objective = LOSSES[loss]
        self.deviation, self.condition = deviation, condition
        self.augment = augments.AUGMENTS[augment](spec.range)

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape that D's network is given: the data's, with a place for the class where it is joined to the input."""
        first, *rest = self.spec.shape
        if not (self.conditional and self.condition == "concat"):
            return self.spec.shape
        return (first + (1 if rest else self.spec.classes), *rest)

    def critic(
        self,
        features: nn.Module,
        shape: tuple[int, ...],
        *,
        join: nn.Module | None = None,
        initialise: Callable[[nn.Module], None] | None = None,
    ) -> Critic:
        """Return D, of a network from items (B, *seen) to features (B, *shape), as the options dress it.

        Args:
            join: how `concat` joins the class to an item; None: a map more of an image, the one-hot class of a vector.
            initialise: draws the weights of a layer; None: PyTorch's own.
        """
        classes = self.spec.classes * self.conditional
        if classes and self.condition == "concat" and join is None:
            size = self.spec.shape[1:]
            join = ClassMap(classes, size) if size else OneHot(classes)
        dress = {
            "condition": self.condition,
            "deviation": self.deviation,
            "bias": self.objective.absolute,
        }
        critic = Critic(features, shape, join=join, classes=classes, **dress)
        if initialise is not None:
            critic.apply(initialise)
        return self.restrained(critic)

    # --- the game -------------------------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        """Return D's loss on real items and as many of G's; G is left untouched, its statistics included.

        Args:
            penalty: the weight of the gradient penalties: 0 leaves them out, k makes up for k − 1 times left out.
        """
        x, y = batch.x, batch.y if self.conditional else None
        with torch.no_grad(), fixed(self.generator):
            z = self.prior(len(x), y)
            fake_x = self.generator(z)
        D, x = self.discriminator, self.sloped(x, penalty)
        # real and fake in batches of their own: each is normalised by its own statistics
        shown, fake_shown = self.augment(x), self.augment(fake_x)
        h, fake_h = D.seen(shown, y), D.seen(fake_shown, y)
        real, fake = D.judged(h, y), D.judged(fake_h, y)  # (B,)
        self.augment.heed(real.detach() - self.objective.undecided)
        loss = self.objective.discriminator(real, fake)
        logs = self.objective.judged(real, fake, loss)
        # R1 is taken at the data themselves, through the augmentation, as Karras et al. 2020 have it
        paid, found = self.penalties(
            lambda between: D(between, y), real, x, shown, fake_shown, penalty
        )
        loss, logs = sum(paid, loss), logs | found
        if D.class_head is not None:  # Odena et al. 2017, eq. 3, on data
            logs["classification"] = cross_entropy(D.named(h), y)
            loss = loss + logs["classification"]
        recovered = self.recovered(z, fake_h)
        return {"loss": sum(recovered.values(), loss), **logs, **recovered}

    def generator_loss(self, batch: Batch, penalty: float = 1) -> dict[str, Tensor]:
        """Return G's loss on as many codes as the batch has items, with its labels; D is left untouched."""
        y = batch.y if self.conditional else None
        z = self.prior(len(batch), y)
        fake_x = self.generator(z)
        D = self.discriminator
        with fixed(D):
            h = D.seen(self.augment(fake_x), y)
            recovered = self.recovered(z, h)
            with torch.no_grad():
                real = D(self.augment(batch.x), y) if self.objective.paired else None
        loss = self.objective.generator(D.judged(h, y), real)
        logs = spread_of(fake_x, batch.x)
        if D.class_head is not None:  # … and on samples
            logs["classification/generator"] = cross_entropy(D.named(h), y)
            loss = loss + logs["classification/generator"]
        return {
            "loss": sum(recovered.values(), loss),
            **logs,
            **{f"{k}/generator": v for k, v in recovered.items()},
        }

    def recovered(self, z: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Return the losses of reading codes z (B, code) off D's features h of their samples, which both players pay."""
        return {}

    # --- what to try where the game goes wrong ------------------------------------------------------------------------

    def wider(self) -> list[str]:
        """Return overrides that let D see how much samples differ; none where it sees that."""
        sees = any(isinstance(part, MinibatchDeviation) for part in self.discriminator.modules())
        return [] if sees else ["++model.deviation=true"]

    def augmented(self) -> list[str]:
        """Return overrides that show D more than the images themselves; none where it is shown more, or no images."""
        plain = type(self.augment) is augments.Unchanged
        return ["++model.augment=diffaugment"] if plain and self.spec.kind == "image" else []

    # --- abilities ------------------------------------------------------------------------------------------------

    @property
    def choices(self) -> dict[str, slice]:
        """The parts of a code that are one-hot, by name: in a conditional model the class."""
        return (
            {"class": slice(self.code - self.spec.classes, self.code)} if self.conditional else {}
        )

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


def pairwise_distance(x: Tensor) -> Tensor:
    """Return the root mean squared distance a value between the items of x (B, …) and their neighbours in the batch."""
    return (x - x.roll(1, 0)).square().mean().sqrt()


def spread_of(made: Tensor, truth: Tensor, to: str = "") -> dict[str, Tensor]:
    """Return how far items that were made (B, …) lie from one another in parts of the truth's; nothing of an item alone."""
    if len(made) < 2:
        return {}
    return {f"spread{to}": pairwise_distance(made.detach()) / pairwise_distance(truth)}


@contextmanager
def fixed(net: nn.Module) -> Iterator[None]:
    """Let `net` play without recording statistics, so that its opponent's update leaves it as it was."""
    parts = list(net.modules())
    norms = [m for m in parts if isinstance(m, _BatchNorm) and m.track_running_stats]
    spectra = [m for m in parts if isinstance(m, _SpectralNorm) and m.training]
    for norm in norms:
        norm.track_running_stats = (
            False  # in training it then normalises by the batch and keeps its buffers
        )
    for spectrum in spectra:
        spectrum.training = False  # no step of its power iteration
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for spectrum in spectra:
            spectrum.training = True
