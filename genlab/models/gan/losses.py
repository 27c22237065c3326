"""The GAN losses, in the notation of their papers.

A loss is a pair of functions of D's logits: one for D to minimize and one for G. For some losses
σ(logit) is D's probability that a sample is real; for others the logit itself is the value of the
critic. A new loss is two functions, its name in `LossName` and its line in `LOSSES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

LossName = Literal[
    "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"
]


class Loss(NamedTuple):
    """The losses of D, `discriminator(real, fake)`, and of G, `generator(fake, real)`.

    Both take logits (B,) of real and fake samples and return a scalar to minimize.

    Attributes:
        chance_loss: D's loss when all logits are 0; 0 if the loss is not bounded below.
        has_probability: D(x) is σ(logit); otherwise it is the logit itself.
        needs_real: the generator's loss uses the logits of real data; otherwise it receives None.
        is_shift_invariant: adding a constant to all logits changes nothing, so D needs no bias.
        boundary_logit: the logit of a D that cannot tell real from fake.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    chance_loss: float
    has_probability: bool = False
    needs_real: bool = False
    is_shift_invariant: bool = False
    boundary_logit: float = 0

    def discriminator_log_entries(
        self, real: Tensor, fake: Tensor, loss: Tensor
    ) -> dict[str, Tensor]:
        """Return the mean of D on real and fake data, and D's advantage, for the log.

        D's values are probabilities if its logits (B, …) define them. The advantage is the share of
        the chance loss that D has eliminated: 0 if it cannot tell real from fake, 1 if it is
        certain of every sample. It is not defined for a loss without a lower bound.
        """
        value = torch.sigmoid if self.has_probability else Tensor.detach
        logs = {"D(x)": value(real).mean(), "D(G(z))": value(fake).mean()}
        if self.chance_loss:
            logs["d_advantage"] = 1 - loss.detach() / self.chance_loss
        return logs


# Goodfellow et al. 2014, eq. 1: min_G max_D V(D, G) = E[log D(x)] + E[log(1 − D(G(z)))];
# with D = σ(a): −log D = softplus(−a) and −log(1 − D) = softplus(a).
def minimax_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return −V(D, G), which D minimizes; it is log 4 if D = 1/2 everywhere."""
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_generator_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return E[log(1 − D(G(z)))], G's part of V (eq. 1).

    Its gradient vanishes where D is certain that a sample is fake.
    """
    return -softplus(fake).mean()


def non_saturating_generator_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return −E[log D(G(z))], with the same fixed point and a strong early gradient."""
    return softplus(-fake).mean()


# Mao et al. 2017, https://arxiv.org/abs/1611.04076, eq. 2 with a = 0, b = c = 1 (eq. 9).
def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ½E[(D(x) − 1)²] + ½E[D(G(z))²]."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def least_squares_generator_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return ½E[(D(G(z)) − 1)²]."""
    return (fake - 1).square().mean() / 2


# Lim & Ye 2017, https://arxiv.org/abs/1705.02894;
# Miyato et al. 2018, https://arxiv.org/abs/1802.05957, eqs. 16 and 17.
def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E[max(0, 1 − D(x))] + E[max(0, 1 + D(G(z)))]."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


# Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875, eq. 2:
# W(p, q) = max over 1-Lipschitz D of E[D(x)] − E[D(G(z))].
def wasserstein_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E[D(G(z))] − E[D(x)]; at the best 1-Lipschitz D it is minus W(p, q)."""
    return fake.mean() - real.mean()


def wasserstein_generator_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return −E[D(G(z))]."""
    return -fake.mean()


# Jolicoeur-Martineau 2019, https://arxiv.org/abs/1807.00734, eqs. 8 and 9 with f = softplus:
# each real sample is compared with one fake sample.
def relativistic_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return −E[log σ(D(x) − D(G(z)))]."""
    return softplus(fake - real).mean()


def relativistic_generator_loss(fake: Tensor, real: Tensor | None) -> Tensor:
    """Return −E[log σ(D(G(z)) − D(x))]: D's loss with real and fake exchanged."""
    assert real is not None
    return relativistic_discriminator_loss(fake, real)


LOSSES: dict[str, Loss] = {
    "minimax": Loss(
        minimax_discriminator_loss,
        minimax_generator_loss,
        chance_loss=math.log(4),
        has_probability=True,
    ),
    "non_saturating": Loss(
        minimax_discriminator_loss,
        non_saturating_generator_loss,
        chance_loss=math.log(4),
        has_probability=True,
    ),
    "least_squares": Loss(
        least_squares_discriminator_loss,
        least_squares_generator_loss,
        chance_loss=0.5,
        boundary_logit=0.5,
    ),
    "hinge": Loss(hinge_discriminator_loss, wasserstein_generator_loss, chance_loss=2),
    "wasserstein": Loss(
        wasserstein_discriminator_loss,
        wasserstein_generator_loss,
        chance_loss=0,
        is_shift_invariant=True,
    ),
    "relativistic": Loss(
        relativistic_discriminator_loss,
        relativistic_generator_loss,
        chance_loss=math.log(2),
        needs_real=True,
        is_shift_invariant=True,
    ),
}
