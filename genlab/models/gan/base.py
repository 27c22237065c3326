"""The base class of GANs: codes and sampling, and the losses of both networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from genlab.errors import UserError
from genlab.models.gan.augment import AUGMENTATIONS, AugmentName, NoAugmentation
from genlab.models.gan.discriminator import ClassMap, Condition, Discriminator, OneHotConcat
from genlab.models.gan.losses import LOSSES, LossName
from genlab.models.gan.regularizers import DiscriminatorRegularization
from genlab.nn.batch_norm import frozen_running_statistics
from genlab.nn.minibatch_stddev import MinibatchStddev
from genlab.spec import Batch, DataSpec, NonNegative, Positive

Noise = Literal["normal", "uniform"]


class GANBase(DiscriminatorRegularization):
    """A generator G(z) and a discriminator D(x), which a subclass creates.

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661. G takes a code (B, code_dim): the noise
    z, followed in a conditional model by the one-hot class (Mirza & Osindero 2014,
    https://arxiv.org/abs/1411.1784). D takes samples (B, *shape) and, in a conditional model, their
    classes (B,), and returns logits (B,). Every loss and every regularizer works with every
    network.

    Args:
        latent: dimension of the noise z.
        minibatch_stddev: let D see how much a batch varies (Karras et al. 2018).
        augment: of the images that D receives: none, DiffAugment (Zhao et al. 2020) or adaptive
            (Karras et al. 2020).
        condition: how D uses the class; see `Discriminator`.
        d_learns_fake_classes: with an auxiliary condition: D learns the classes of G's samples too
            (Odena et al. 2017, eq. 3), and not only those of the data.
        g_class_weight: with an auxiliary condition: weight of the class loss in G's loss.
        regularization: of D; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data is discrete, `conditional` needs labels that the data does not have, or
            `augment` does not fit the data or the loss.
    """

    discriminator: Discriminator

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: Positive = 100,
        noise: Noise = "normal",
        loss: LossName = "non_saturating",
        minibatch_stddev: bool = False,
        augment: AugmentName = "none",
        conditional: bool = False,
        condition: Condition = "concat",
        d_learns_fake_classes: bool = False,
        g_class_weight: NonNegative = 1.0,
        **regularization: Any,
    ) -> None:
        super().__init__(**regularization)
        validate_gan_options(type(self).__name__, spec, conditional, augment, loss)
        self.spec = spec
        self.latent, self.noise, self.conditional = latent, noise, conditional
        self.conditional_prior = conditional
        if conditional:  # withdraws abilities: the codes contain classes, and D takes them too
            self.prior_quantiles = None  # type: ignore[assignment, method-assign]
            self.discriminate = None  # type: ignore[assignment, method-assign]
        self.code_dim = latent + (spec.num_classes if conditional else 0)
        self.objective = LOSSES[loss]
        self.discriminates_by_probability = self.objective.has_probability
        self.minibatch_stddev, self.condition = minibatch_stddev, condition
        self.d_learns_fake_classes = d_learns_fake_classes
        self.g_class_weight = g_class_weight
        self.augment = AUGMENTATIONS[augment](spec.range)

    @property
    def discriminator_shape(self) -> tuple[int, ...]:
        """The shape of D's input: the data's, plus the class if it is joined to the input."""
        first, *rest = self.spec.shape
        if not (self.conditional and self.condition == "concat"):
            return self.spec.shape
        return (first + (1 if rest else self.spec.num_classes), *rest)

    def make_discriminator(
        self,
        features: nn.Module,
        shape: tuple[int, ...],
        *,
        join: nn.Module | None = None,
        initialize: Callable[[nn.Module], None] | None = None,
    ) -> Discriminator:
        """Return D with the heads and the regularization that the options ask for.

        Args:
            features: a network from inputs (B, *discriminator_shape) to features (B, *shape).
            join: how `concat` joins the class to a sample. None appends one more map to an image
                and the one-hot class to a vector.
            initialize: draws the weights of a layer; None keeps PyTorch's initialization.
        """
        num_classes = self.spec.num_classes if self.conditional else 0
        if num_classes and self.condition == "concat" and join is None:
            size = self.spec.shape[1:]
            join = ClassMap(num_classes, size) if size else OneHotConcat(num_classes)
        discriminator = Discriminator(
            features,
            shape,
            join=join,
            num_classes=num_classes,
            condition=self.condition,
            minibatch_stddev=self.minibatch_stddev,
            bias=not self.objective.is_shift_invariant,
        )
        if initialize is not None:
            discriminator.apply(initialize)
        self.apply_spectral_norm_if_enabled(discriminator)
        return discriminator

    # --- losses -----------------------------------------------------------------------------------

    def discriminator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return D's loss on a real batch and as many fake samples; G and its statistics are kept.

        Args:
            penalty_scale: factor of the gradient penalties. 0 leaves them out; k makes up for
                k − 1 updates without them.
        """
        x, y = batch.x, batch.y if self.conditional else None
        with torch.no_grad(), frozen_running_statistics(self.generator):
            z = self.prior(len(x), y)
            fake_x = self.generator(z)
        D, x = self.discriminator, self.enable_gradient_for_r1(x, penalty_scale)
        # separate passes: batch normalization uses the statistics of real and of fake data
        real_input, fake_input = self.augment(x), self.augment(fake_x)
        h, fake_h = D.extract_features(real_input, y), D.extract_features(fake_input, y)
        real, fake = D.logits(h, y), D.logits(fake_h, y)  # (B,)
        self.augment.adapt_probability(real.detach() - self.objective.boundary_logit)
        loss = self.objective.discriminator(real, fake)
        logs = self.objective.discriminator_log_entries(real, fake, loss)
        # R1 is the gradient at the data itself, through the augmentation, as in Karras et al. 2020
        penalties, penalty_logs = self.weighted_penalties(
            lambda between: D(between, y), real, x, (real_input, fake_input), penalty_scale
        )
        loss, logs = sum(penalties, loss), logs | penalty_logs
        if D.class_head is not None:  # Odena et al. 2017, eq. 3: the two parts of L_C
            assert y is not None
            logs["classification"] = cross_entropy(D.class_logits(h), y)
            loss = loss + logs["classification"]
            if self.d_learns_fake_classes:
                logs["classification/fake"] = cross_entropy(D.class_logits(fake_h), y)
                loss = loss + logs["classification/fake"]
        code_losses = self.code_recovery_losses(z, fake_h)
        return {"loss": sum(code_losses.values(), loss), **logs, **code_losses}

    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return G's loss on as many codes as the batch has samples, with its labels; D is kept."""
        y = batch.y if self.conditional else None
        z = self.prior(len(batch), y)
        fake_x = self.generator(z)
        D = self.discriminator
        with frozen_running_statistics(D):
            h = D.extract_features(self.augment(fake_x), y)
            code_losses = self.code_recovery_losses(z, h)
            with torch.no_grad():
                real = D(self.augment(batch.x), y) if self.objective.needs_real else None
        loss = self.objective.generator(D.logits(h, y), real)
        logs = diversity_ratio_logs(fake_x, batch.x)
        if D.class_head is not None:  # Odena et al. 2017, eq. 3, on samples
            assert y is not None
            logs["classification/generator"] = cross_entropy(D.class_logits(h), y)
            loss = loss + self.g_class_weight * logs["classification/generator"]
        return {
            "loss": sum(code_losses.values(), loss),
            **logs,
            **{f"{name}/generator": value for name, value in code_losses.items()},
        }

    def code_recovery_losses(self, z: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Return losses of recovering codes z (B, code_dim) from D's features h of their samples.

        Both networks minimize them. The base class has none.
        """
        return {}

    def set_num_shards(self, num_shards: int) -> None:
        self.augment.num_shards = num_shards

    # --- suggestions for failing trainings --------------------------------------------------------

    def suggest_against_collapse(self) -> list[str]:
        """Suggest the minibatch standard deviation, if D does not have it."""
        has_stddev = any(isinstance(m, MinibatchStddev) for m in self.discriminator.modules())
        return [] if has_stddev else ["++model.minibatch_stddev=true"]

    def augmentation_overrides(self) -> list[str]:
        """Suggest DiffAugment for images that are not augmented yet."""
        is_plain = type(self.augment) is NoAugmentation and self.spec.kind == "image"
        return ["++model.augment=diffaugment"] if is_plain else []

    # --- abilities --------------------------------------------------------------------------------

    @property
    def code_choices(self) -> dict[str, slice]:
        """The one-hot parts of a code by name: in a conditional model the class."""
        if not self.conditional:
            return {}
        return {"class": slice(self.code_dim - self.spec.num_classes, self.code_dim)}

    @torch.no_grad()
    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, code_dim): noise, and in a conditional model the one-hot class.

        Args:
            y: classes (n,); None draws them uniformly.

        Raises:
            UserError: y is given and the model is not conditional.
        """
        if y is not None and not self.conditional:
            raise UserError(
                f"this {type(self).__name__} was trained without labels, so it cannot draw a given "
                "class; train with model.conditional=true"
            )
        like = next(self.parameters())
        z = like.new_empty(n, self.latent)
        z = z.normal_() if self.noise == "normal" else z.uniform_(-1, 1)
        if not self.conditional:
            return z
        if y is None:
            y = torch.randint(self.spec.num_classes, (n,), device=like.device)
        return torch.cat([z, one_hot(y.to(like.device), self.spec.num_classes).to(z)], 1)

    def prior_quantiles(self, u: Tensor) -> Tensor:
        """Return the noise (B, latent) at quantiles u (B, latent); not if it is conditional."""
        return torch.special.ndtri(u) if self.noise == "normal" else 2 * u - 1

    def discriminate(self, x: Tensor) -> Tensor:
        """Return D's logits (B,) of x (B, *shape), without augmentation; not if conditional."""
        return self.discriminator(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) (B, *shape) of codes z (B, code_dim), within the range of images."""
        return self.generator(z)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, **sampler: Any) -> Tensor:
        """Draw n samples (n, *shape), of the classes y (n,) if given.

        Raises:
            UserError: y is given and the model is not conditional.
        """
        return self.decode(self.prior(n, y))


def validate_gan_options(
    name: str, spec: DataSpec, conditional: bool, augment: AugmentName, loss: LossName
) -> None:
    """Refuse data and options that do not go together.

    Raises:
        UserError: says what to change.
    """
    if spec.kind not in ("image", "points"):
        raise UserError(
            f"{name} needs continuous values, and this dataset has {spec.kind}; "
            "choose images or points, such as dataset=digits"
        )
    if conditional and not spec.num_classes:
        raise UserError(
            f"{name} with model.conditional=true needs labels, and this dataset has none; "
            "set model.conditional=false"
        )
    if augment != "none" and spec.kind != "image":
        raise UserError(f"model.augment={augment} is for images; set model.augment=none")
    # of a shift-invariant loss the signs of the logits are arbitrary
    if augment == "ada" and LOSSES[loss].is_shift_invariant:
        *others, last = [key for key, value in LOSSES.items() if not value.is_shift_invariant]
        raise UserError(
            f"model.augment=ada depends on the sign of D's logits, which is arbitrary with "
            f"model.loss={loss}; set model.loss to {', '.join(others)} or {last}, or "
            "model.augment=diffaugment"
        )


class ScaledTanh(nn.Module):
    """tanh, scaled and shifted from (−1, 1) to the data's range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.center, self.half_range = (low + high) / 2, (high - low) / 2

    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        if (self.center, self.half_range) == (0, 1):
            return x
        return self.center + self.half_range * x


def neighbor_rms_distance(x: Tensor) -> Tensor:
    """Return the root mean squared difference of each sample of x (B, …) to the next one."""
    return (x - x.roll(1, 0)).square().mean().sqrt()


def diversity_ratio_logs(fake: Tensor, real: Tensor, suffix: str = "") -> dict[str, Tensor]:
    """Return the distance between fake samples (B, …) relative to that between real samples.

    A ratio near 0 means mode collapse. The result is empty for a single sample.
    """
    if len(fake) < 2:
        return {}
    ratio = neighbor_rms_distance(fake.detach()) / neighbor_rms_distance(real)
    return {f"diversity_ratio{suffix}": ratio}
