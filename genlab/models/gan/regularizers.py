"""Discriminator regularizers: gradient penalties, weight clipping, spectral norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.nn.batch_norm import batch_norm_layers, constant_batch_statistics
from genlab.nn.broadcast import expand_like
from genlab.spec import Batch, NonNegative

# The input of D: samples (B, …), or a list with one tensor for each scale.
DiscriminatorInput = Tensor | list[Tensor]


# Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, eq. 9:
# R1 = γ/2 E_data |∇_x D(x)|², with D the logit.
def r1_penalty(real: Tensor, x: Tensor) -> Tensor:
    """Return E|∇_x D(x)|² (scalar).

    Args:
        real: logits (B, …) of the data.
        x: the data (B, …) that the logits were computed from, with requires_grad.
    """
    return input_gradient(real, x).square().sum(1).mean()


# Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, eq. 3:
# λ E (|∇_x̂ D(x̂)| − 1)², x̂ = εx + (1 − ε)G(z), ε ~ U[0, 1].
def gradient_penalty(
    D: Callable[[DiscriminatorInput], Tensor], x: DiscriminatorInput, fake_x: DiscriminatorInput
) -> Tensor:
    """Return E(|∇_x̂ D(x̂)| − 1)² (scalar) at random points x̂ between real and fake samples.

    The scales of a multi-scale sample are one point: its gradient is that of all scales together.

    Args:
        D: maps samples to logits (B, …).
        x, fake_x: real and fake samples, each (B, …) or a list with one tensor for each scale.
    """
    scales = list(zip(as_scale_list(x), as_scale_list(fake_x), strict=True))
    first = scales[0][0]
    epsilon = torch.rand(len(first), dtype=first.dtype, device=first.device)
    between = []
    for real, fake in scales:
        weight = expand_like(epsilon, real)
        between.append((weight * real + (1 - weight) * fake).detach().requires_grad_())
    value = D(between[0] if isinstance(x, Tensor) else between)
    return (input_gradient(value, between).norm(dim=1) - 1).square().mean()


def input_gradient(logits: Tensor, x: DiscriminatorInput) -> Tensor:
    """Return ∇_x D (B, D) with its graph.

    The logits (B, …) of each sample depend on that sample only. If a sample has several logits, of
    patches or of scales, D is their mean, as in the losses.
    """
    value = logits.reshape(len(logits), -1).mean(1)  # (B,)
    gradients = torch.autograd.grad(value.sum(), as_scale_list(x), create_graph=True)
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def as_scale_list(x: DiscriminatorInput) -> list[Tensor]:
    """Return the scales of a batch as a list, also if there is only one."""
    return [x] if isinstance(x, Tensor) else x


def sum_losses(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more losses (scalars)."""
    first, *rest = losses
    return sum(rest, first)


# Arjovsky et al. 2017, Algorithm 1: w ← clip(w, −c, c).
@torch.no_grad()
def clip_weights(net: nn.Module, c: float) -> None:
    """Clip every weight of `net` to [−c, c] in place, which bounds its Lipschitz constant."""
    torch._foreach_clamp_min_(list(net.parameters()), -c)
    torch._foreach_clamp_max_(list(net.parameters()), c)


# Miyato et al. 2018, https://arxiv.org/abs/1802.05957, eq. 8:
# W / σ(W), where power iteration computes σ(W), the largest singular value of W.
def add_spectral_norm(net: nn.Module) -> nn.Module:
    """Apply spectral normalization to all linear, convolution and embedding layers, in place."""
    for layer in list(net.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
            spectral_norm(layer)
    return net


class DiscriminatorRegularization(GenerativeModel):
    """Base class of all adversarial models: regularization of the discriminator by options.

    Every option goes with every network and every loss.

    Args:
        r1: γ of γ/2 E|∇D(x)|² on data (Mescheder et al. 2018).
        gradient_penalty: λ of λ E(|∇D(x̂)| − 1)² between real and fake (Gulrajani et al. 2017).
        weight_clip: c to which D's weights are clipped after each of its updates (Arjovsky et al.
            2017); 0 disables it.
        spectral_norm: divide D's weights by their spectral norm (Miyato et al. 2018).
        penalize_through_batch: with batch normalization in D, let the gradients of both penalties
            pass the statistics of the batch, so that they are not those of single samples. Runs of
            older versions do.

    Raises:
        UserError: `spectral_norm` with a network whose layers scale their weights at run time.
    """

    discriminator: nn.Module
    generator: nn.Module

    # The layers scale their weights at run time, which spectral normalization would undo.
    has_equalized_lr: ClassVar[bool] = False
    # The model has a discriminator; a translation model may be trained without one.
    is_adversarial: bool = True
    # `generator_loss` contains a penalty that is computed only every few steps.
    has_generator_penalty: bool = False

    def __init__(
        self,
        *,
        r1: NonNegative = 0.0,
        gradient_penalty: NonNegative = 0.0,
        weight_clip: NonNegative = 0.0,
        spectral_norm: bool = False,
        penalize_through_batch: bool = False,
    ) -> None:
        super().__init__()
        if spectral_norm and self.has_equalized_lr:
            raise UserError(
                f"{type(self).__name__} has an equalized learning rate, which spectral "
                "normalization would undo; set model.spectral_norm=false"
            )
        self.r1 = r1
        self.gradient_penalty = gradient_penalty
        self.weight_clip = weight_clip
        self.spectral_norm = spectral_norm
        self.penalize_through_batch = penalize_through_batch

    def discriminator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return D's loss, leaving G untouched, and the entries for the log.

        Args:
            penalty_scale: factor of the gradient penalties. 0 leaves them out; k makes up for
                k − 1 updates without them.
        """
        raise NotImplementedError

    def generator_loss(self, batch: Batch, penalty_scale: float = 1) -> dict[str, Tensor]:
        """Return G's loss, leaving D untouched, and the entries for the log.

        Args:
            penalty_scale: factor of G's own penalty, if it has one.
        """
        raise NotImplementedError

    def apply_spectral_norm_if_enabled(self, discriminator: nn.Module) -> None:
        """Add the spectral normalization that the options ask for to an initialized D, in place."""
        if self.spectral_norm:
            add_spectral_norm(discriminator)

    def enable_gradient_for_r1(self, x: Tensor, penalty_scale: float) -> Tensor:
        """Return data x (B, …) with requires_grad if R1 will need its gradient."""
        return x.detach().requires_grad_() if self.r1 * penalty_scale else x

    def weighted_penalties(
        self,
        D: Callable[[DiscriminatorInput], Tensor],
        real: Tensor,
        x: Tensor,
        inputs: tuple[DiscriminatorInput, DiscriminatorInput],
        penalty_scale: float,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the weighted penalties (scalars) for D's loss, and the unweighted ones by name.

        Args:
            D: maps its input to logits (B, …), by `self.discriminator`.
            real: the logits (B, …) of the data x (B, …), as `enable_gradient_for_r1` returned it.
                If D has batch normalization, they are computed again with constant statistics.
            inputs: the real and the fake input of D, for example after augmentation.
            penalty_scale: see `discriminator_loss`.
        """
        weighted, logs = [], {}
        if self.r1 * penalty_scale:
            if batch_norm_layers(self.discriminator) and not self.penalize_through_batch:
                with constant_batch_statistics(self.discriminator):
                    real = D(inputs[0])
            # the gradient with respect to the data, through what is done to them before D
            logs["r1"] = r1_penalty(real, x)
            weighted.append(self.r1 * penalty_scale / 2 * logs["r1"])
        if self.gradient_penalty * penalty_scale:
            logs["gradient_penalty"] = gradient_penalty(D, *inputs)
            weighted.append(self.gradient_penalty * penalty_scale * logs["gradient_penalty"])
        return weighted, logs

    # Gulrajani et al. 2017, section 4: "We omit batch normalization", as it makes D a function of
    # the batch, while the penalty is on the gradient at each point.
    def refuse_penalty_through_batch_norm(self) -> None:
        """Refuse the gradient penalty with batch normalization in D.

        Raises:
            UserError: says what to train instead.
        """
        if not (self.gradient_penalty and self.is_adversarial):
            return
        if batch_norm_layers(self.discriminator) and not self.penalize_through_batch:
            raise UserError(
                f"the gradient penalty is on D's gradient at single samples, but D of "
                f"{type(self).__name__} has batch normalization, which makes it a function of the "
                "batch; set +regularizer=r1 or +regularizer=spectral_norm instead, or "
                "model=wgan_gp, whose D has none"
            )

    def clip_discriminator_weights(self) -> None:
        """Clip D's weights after an update of D, if `weight_clip` is set."""
        if self.weight_clip:
            clip_weights(self.discriminator, self.weight_clip)

    def set_num_shards(self, num_shards: int) -> None:
        """Receive the number of shards of a joint batch; adaptive augmentation needs it."""

    # --- suggestions for failing trainings --------------------------------------------------------

    def suggest_regularization(self) -> list[str]:
        """Return overrides that regularize D more strongly.

        There are none if a gradient penalty or clipping already limits D's gradient, which R1 would
        change. Each override sets one value; `+regularizer=` would reset the others.
        """
        if self.r1:
            return [f"++model.r1={2 * self.r1:g}"]
        if self.gradient_penalty or self.weight_clip:
            return []
        if self.has_equalized_lr or self.spectral_norm:
            return ["++model.r1=0.1"]
        return ["++model.r1=0.1", "++model.spectral_norm=true"]

    def suggest_against_collapse(self) -> list[str]:
        """Return overrides of further options that counteract mode collapse."""
        return []

    def augmentation_overrides(self) -> list[str]:
        """Return overrides that augment the images for D, if that is possible and not done yet."""
        return []
