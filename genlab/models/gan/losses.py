"""The GAN losses in their papers' letters: what D minimises and what G minimises, given D's logits.

A loss is a pair of functions of logits: σ(logit) is D's probability that an item is real, or the logit itself is the
critic's value. A new loss is two functions, its name in `Name` and its line in `LOSSES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

Name = Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"]


class Loss(NamedTuple):
    """`discriminator(real, fake)` and `generator(fake, real)`: logits (B,) to a scalar to be minimised.

    `real` is None for the generator of a loss that is not `paired`: only a paired one looks at data there. `par` is
    D's loss when all logits are 0; `probability`: D(x) is σ(logit), else the logit itself; not `absolute`: a constant added
    to all logits changes nothing, so that D has none to learn. `undecided`: the logit of a D that cannot tell the two apart.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    par: float
    probability: bool = False
    paired: bool = False
    absolute: bool = True
    undecided: float = 0

    def judged(self, real: Tensor, fake: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """Return what D thinks of data and of samples, as probabilities where its logits (B, …) are such, and its advantage.

        The advantage is the share of its loss that D has rid itself of: 0 where it knows nothing, 1 where it is sure of all;
        a loss without a bound has none.
        """
        shown = torch.sigmoid if self.probability else Tensor.detach
        logs = {"D(x)": shown(real).mean(), "D(G(z))": shown(fake).mean()}
        return logs | {"advantage": 1 - loss.detach() / self.par} if self.par else logs


# Goodfellow et al. 2014, eq. 1: min_G max_D V(D, G) = E[log D(x)] + E[log(1 − D(G(z)))];
# with D = σ(a): −log D = softplus(−a) and −log(1 − D) = softplus(a).
def minus_value(real: Tensor, fake: Tensor) -> Tensor:
    """Return −V(D, G), which D minimises; at D = 1/2 everywhere it is log 4."""
    return softplus(-real).mean() + softplus(fake).mean()


def saturating(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return E[log(1 − D(G(z)))], G's part of V (eq. 1); its gradient dies where D is sure."""
    return -softplus(fake).mean()


def non_saturating(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return −E[log D(G(z))], the same fixed point with a strong gradient early on (section 3)."""
    return softplus(-fake).mean()


# Mao et al. 2017, https://arxiv.org/abs/1611.04076, eq. 2 with a = 0, b = c = 1 (eq. 9).
def squares(real: Tensor, fake: Tensor) -> Tensor:
    """Return ½E[(D(x) − 1)²] + ½E[D(G(z))²]."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def square(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return ½E[(D(G(z)) − 1)²]."""
    return (fake - 1).square().mean() / 2


# Lim & Ye 2017, https://arxiv.org/abs/1705.02894; Miyato et al. 2018, https://arxiv.org/abs/1802.05957, eqs. 16 and 17.
def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return E[max(0, 1 − D(x))] + E[max(0, 1 + D(G(z)))]."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


# Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875, eq. 2: W(p, q) = max over 1-Lipschitz D of E[D(x)] − E[D(G(z))].
def minus_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Return E[D(G(z))] − E[D(x)]; of the best 1-Lipschitz D it is minus the Wasserstein-1 distance."""
    return fake.mean() - real.mean()


def minus_score(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return −E[D(G(z))]."""
    return -fake.mean()


# Jolicoeur-Martineau 2019, https://arxiv.org/abs/1807.00734, eqs. 8 and 9 with f = softplus: one real against one fake.
def more_real(real: Tensor, fake: Tensor) -> Tensor:
    """Return −E[log σ(D(x) − D(G(z)))]; the generator's loss is the same with the two exchanged."""
    return softplus(fake - real).mean()


LOSSES: dict[str, Loss] = {
    "minimax": Loss(minus_value, saturating, par=math.log(4), probability=True),
    "non_saturating": Loss(minus_value, non_saturating, par=math.log(4), probability=True),
    "least_squares": Loss(squares, square, par=0.5, undecided=0.5),
    "hinge": Loss(hinge, minus_score, par=2),
    "wasserstein": Loss(minus_distance, minus_score, par=0, absolute=False),
    "relativistic": Loss(more_real, more_real, par=math.log(2), paired=True, absolute=False),
}
