"""What the outputs of an autoregressive network mean: p(a value | those before it), over a picture's discrete levels.

A likelihood has `params`, the numbers that it wants for each value (for each pixel, if `joint`); `log_prob`, which scores
data in the dataset's own range; and `sample` and `complete`, which draw it. The axis of the params comes second, and
whatever follows it is the data's: the same class serves pictures (B, P, C, H, W), sequences (B, P, T) and one position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.spec import Spec

Name = Literal["bernoulli", "categorical", "mixture"]


class Likelihood(ABC):
    """The levels 0 … levels − 1 of a picture's values, spread evenly over its range from `low` to `high`."""

    params: int
    joint = False  # whether a pixel's channels are drawn at once, from one set of outputs

    def __init__(self, spec: Spec) -> None:
        self.levels = spec.levels
        self.low, self.high = spec.range

    def index(self, x: Tensor) -> Tensor:
        """Return the levels (int64) of values in the data's range."""
        return ((x - self.low) * ((self.levels - 1) / (self.high - self.low))).round().long()

    def value(self, index: Tensor, like: Tensor) -> Tensor:
        """Return the values of levels, in the data's range and in the type of `like`."""
        return self.low + index.to(like.dtype) * ((self.high - self.low) / (self.levels - 1))

    @abstractmethod
    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        """Return log p(x) (B,) in nats, summed over the values x (B, *shape), from out (B, P, *shape)."""

    @abstractmethod
    def sample(self, out: Tensor) -> Tensor:
        """Draw values (B, *shape), in the data's range, from out (B, P, *shape)."""

    def complete(self, out: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn from out."""
        return torch.where(known, x, self.sample(out))


class Bernoulli(Likelihood):
    """Two levels; the output is the logit of the higher one."""

    params = 1

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        logit, on = out.squeeze(1).to(x.dtype), self.index(x).to(x.dtype)
        return -total(F.binary_cross_entropy_with_logits(logit, on, reduction="none"))

    def sample(self, out: Tensor) -> Tensor:
        return self.value(out.squeeze(1).sigmoid().bernoulli(), out)


class Categorical(Likelihood):
    """Any number of levels, each with its own logit: van den Oord et al. 2016, https://arxiv.org/abs/1601.06759."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.params = spec.levels

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        return -total(F.cross_entropy(out.to(x.dtype), self.index(x), reduction="none"))

    def sample(self, out: Tensor) -> Tensor:
        return self.value(categorical(out), out)


class MixtureOfLogistics(Likelihood):
    """K logistics, each discretised to the levels: Salimans et al. 2017, section 2.1, https://arxiv.org/abs/1701.05517.

    A pixel's C channels share the mixture's component; within it the mean of a channel is linear in the channels before it
    (section 2.2). Of x (B, C, *where) and out (B, P, *where), P = K (1 + 2C + C (C − 1) / 2): the log-weights, means and
    log-scales, and coefficients. The lowest and the highest level take the logistic's tails, so that the levels' probabilities
    sum to 1 exactly; the difference of the two sigmoids is taken in logarithms, where the paper's code falls back on a density.
    """

    joint = True

    def __init__(self, spec: Spec, components: int = 10) -> None:
        super().__init__(spec)
        c = spec.shape[0] if spec.kind == "image" else 1
        self.components, self.channels = components, c
        self.params = components * (1 + 2 * c + c * (c - 1) // 2)

    def parts(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-weights (B, K, *where), and means, log-scales and coefficients (B, C or C(C−1)/2, K, *where)."""
        k, c = self.components, self.channels
        weights, rest = out[:, :k].log_softmax(1), out[:, k:].unflatten(1, (-1, k))
        return weights, rest[:, :c], rest[:, c : 2 * c].clamp(-7, 20), rest[:, 2 * c :].tanh()

    def mean(self, means: Tensor, coefficients: Tensor, u: list[Tensor]) -> Tensor:
        """Return the means (B, K, *where) of the channel that follows the channels u, each (B, *where): equation 3."""
        c = len(u)
        first = c * (c - 1) // 2  # of this channel's row in the triangle of coefficients
        return sum((coefficients[:, first + i] * u[i].unsqueeze(1) for i in range(c)), means[:, c])

    def log_level(self, u: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Return the log-probability (B, K, *where) of the levels u (B, *where), scaled to [−1, 1]: equation 2."""
        half = 1 / (self.levels - 1)  # half of the distance between two levels
        u, inverse = u.unsqueeze(1), (-log_scale).exp()
        above, below = (u + half - mean) * inverse, (u - half - mean) * inverse
        top, bottom = u > 1 - half, u < half - 1
        # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b − a)), with a = ∞ at the top and b = −∞ at the bottom
        upper = torch.where(top, 0.0, F.logsigmoid(above))
        lower = torch.where(bottom, 0.0, F.logsigmoid(-below))
        return (
            upper
            + lower
            + torch.where(top | bottom, 0.0, (-torch.expm1(-2 * half * inverse)).log())
        )

    def scaled(self, x: Tensor) -> Tensor:
        """Return the levels of x on [−1, 1], in x's type."""
        return self.index(x).to(x.dtype) * (2 / (self.levels - 1)) - 1

    def log_prob(self, out: Tensor, x: Tensor) -> Tensor:
        weights, means, log_scales, coefficients = self.parts(
            out.to(x.dtype)
        )  # bf16 is too coarse for tails
        u = list(self.scaled(x).unbind(1))
        for c in range(self.channels):
            weights = weights + self.log_level(
                u[c], self.mean(means, coefficients, u[:c]), log_scales[:, c]
            )
        return total(weights.logsumexp(1))

    def sample(self, out: Tensor) -> Tensor:
        x = out.new_zeros(len(out), self.channels, *out.shape[2:])
        return self.complete(out, x, torch.zeros_like(x, dtype=torch.bool))

    def complete(self, out: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """Return x (B, C, *where), the unknown channels drawn in order, each given the channels before it."""
        weights, means, log_scales, coefficients = self.parts(out)
        given, u = self.scaled(x), []
        for c in range(self.channels):
            mean, log_scale = self.mean(means, coefficients, u), log_scales[:, c]
            k = categorical(weights).unsqueeze(1)  # of p(component | the channels before)
            noise = torch.rand_like(given[:, c]).clamp(1e-7, 1 - 1e-7).logit()  # standard logistic
            draw = mean.gather(1, k).squeeze(1) + log_scale.gather(1, k).squeeze(1).exp() * noise
            level = ((draw + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
            u.append(torch.where(known[:, c], given[:, c], level * (2 / (self.levels - 1)) - 1))
            weights = weights + self.log_level(u[-1], mean, log_scale)
        drawn = ((torch.stack(u, 1) + 1) * ((self.levels - 1) / 2)).round()
        return torch.where(known, x, self.value(drawn, x))


def total(values: Tensor) -> Tensor:
    """Return the sum (B,) over all axes but the first, of which there may be none."""
    return values.reshape(len(values), -1).sum(1)


def categorical(logits: Tensor) -> Tensor:
    """Draw indices (B, *where) of the second axis of logits (B, K, *where)."""
    p = logits.softmax(1).movedim(1, -1)  # (B, *where, K)
    return p.reshape(-1, p.shape[-1]).multinomial(1).view(p.shape[:-1])


def make(name: Name, spec: Spec, *, components: int = 10) -> Likelihood:
    """Return the likelihood of that name for the data.

    Raises:
        UserError: the data is no picture of discrete levels, or not of two where two are needed.
    """
    if spec.kind != "image":
        raise UserError(
            f"autoregressive pixel models take images, and this is {spec.kind} data of shape {spec.shape}"
        )
    if not spec.discrete:
        raise UserError(
            "autoregressive pixel models need discrete levels; set prepare.dequantise=false"
        )
    if name == "bernoulli" and spec.levels != 2:
        raise UserError(
            f"the Bernoulli likelihood needs binary data, and this has {spec.levels} levels; set prepare.binarize=dynamic, "
            "or model.likelihood=categorical"
        )
    if name == "mixture":
        return MixtureOfLogistics(spec, components)
    return Bernoulli(spec) if name == "bernoulli" else Categorical(spec)
