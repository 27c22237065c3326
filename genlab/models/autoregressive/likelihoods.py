"""Likelihoods of a value given earlier values, over the discrete levels of an image.

A likelihood has `num_params`, the number of parameters of each value (of each pixel, if it is
joint); `log_prob`, of data in the dataset's range; and `sample` and `sample_unknown_values`. The
parameters are in dimension 1, and all later dimensions are those of the data. So the same class
serves images (B, P, C, H, W), sequences (B, P, T) and single positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.spec import DataSpec

LikelihoodName = Literal["bernoulli", "categorical", "mixture"]


class Likelihood(ABC):
    """A distribution of the levels 0 … levels − 1 of an image's values.

    The levels are spaced evenly over the range from `low` to `high`.
    """

    num_params: int
    # Whether all channels of a pixel are drawn together, from one set of parameters.
    is_joint: bool = False

    def __init__(self, spec: DataSpec) -> None:
        self.levels = spec.levels
        self.low, self.high = spec.range

    def values_to_levels(self, x: Tensor) -> Tensor:
        """Return the levels (int64) of values in the data's range."""
        return ((x - self.low) * ((self.levels - 1) / (self.high - self.low))).round().long()

    def levels_to_values(self, levels: Tensor, like: Tensor) -> Tensor:
        """Return the values of levels, in the data's range and with the dtype of `like`."""
        return self.low + levels.to(like.dtype) * ((self.high - self.low) / (self.levels - 1))

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return log p(x) (B,) in nats, summed over x (B, *shape), from params (B, P, *shape)."""

    @abstractmethod
    def sample(self, params: Tensor) -> Tensor:
        """Draw values (B, *shape), in the data's range, from params (B, P, *shape)."""

    @abstractmethod
    def level_probs(self, params: Tensor) -> Tensor:
        """Return the probabilities (B, levels) of each level of one value, from params (B, P).

        If the likelihood is joint, they are those of a pixel's first channel.
        """

    def sample_unknown_values(self, params: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn from params."""
        return torch.where(known, x, self.sample(params))


class Bernoulli(Likelihood):
    """Two levels; the parameter is the logit of the higher one."""

    num_params = 1

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logit, target = params.squeeze(1).to(x.dtype), self.values_to_levels(x).to(x.dtype)
        return -sum_per_item(F.binary_cross_entropy_with_logits(logit, target, reduction="none"))

    def sample(self, params: Tensor) -> Tensor:
        return self.levels_to_values(params.squeeze(1).sigmoid().bernoulli(), params)

    def level_probs(self, params: Tensor) -> Tensor:
        return torch.cat([(-params).sigmoid(), params.sigmoid()], 1)


class Categorical(Likelihood):
    """Any number of levels, each with its own logit.

    van den Oord et al. 2016, https://arxiv.org/abs/1601.06759.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.num_params = spec.levels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        target = self.values_to_levels(x)
        return -sum_per_item(F.cross_entropy(params.to(x.dtype), target, reduction="none"))

    def sample(self, params: Tensor) -> Tensor:
        return self.levels_to_values(sample_categorical(params), params)

    def level_probs(self, params: Tensor) -> Tensor:
        return params.softmax(1)


class MixtureOfLogistics(Likelihood):
    """A mixture of K logistics, discretized to the levels.

    Salimans et al. 2017, section 2.1, https://arxiv.org/abs/1701.05517. The C channels of a pixel
    share the mixture's component, in which the mean of a channel is linear in the channels before
    it (section 2.2). For x (B, C, *shape) the parameters are (B, P, *shape) with P = K (1 + 2C + C
    (C − 1) / 2): log-weights, means, log-scales and coefficients. The lowest and the highest level
    include the tails of the logistic, so that the probabilities of the levels sum to exactly 1. The
    difference of the two sigmoids is computed in logarithms, where the paper's code uses a density.
    """

    is_joint = True

    def __init__(self, spec: DataSpec, num_components: int = 10) -> None:
        super().__init__(spec)
        c = spec.shape[0] if spec.kind == "image" else 1
        self.num_components, self.channels = num_components, c
        self.num_params = num_components * (1 + 2 * c + c * (c - 1) // 2)

    def split_params(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-weights (B, K, *shape), means, log-scales and coefficients.

        Means and log-scales are (B, C, K, *shape), coefficients (B, C(C−1)/2, K, *shape).
        """
        k, c = self.num_components, self.channels
        log_weights, rest = params[:, :k].log_softmax(1), params[:, k:].unflatten(1, (-1, k))
        means, log_scales = rest[:, :c], rest[:, c : 2 * c].clamp(-7, 20)
        return log_weights, means, log_scales, rest[:, 2 * c :].tanh()

    def next_channel_means(self, means: Tensor, coefficients: Tensor, u: list[Tensor]) -> Tensor:
        """Return the means (B, K, *shape) of the channel after the channels u (equation 3).

        Args:
            u: earlier channels, each (B, *shape).
        """
        c = len(u)
        first = c * (c - 1) // 2  # start of this channel's row in the triangle of coefficients
        mean = means[:, c]
        for i in range(c):
            mean = mean + coefficients[:, first + i] * u[i].unsqueeze(1)
        return mean

    def discretized_logistic_log_prob(self, u: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Return the log-probability (B, K, *shape) of the levels u (B, *shape) (equation 2).

        Args:
            u: levels scaled to [−1, 1].
        """
        half = 1 / (self.levels - 1)  # half of the distance between two levels
        u, inverse = u.unsqueeze(1), (-log_scale).exp()
        above, below = (u + half - mean) * inverse, (u - half - mean) * inverse
        is_top, is_bottom = u > 1 - half, u < half - 1
        # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b − a)),
        # with a = ∞ at the top and b = −∞ at the bottom
        upper = torch.where(is_top, 0.0, F.logsigmoid(above))
        lower = torch.where(is_bottom, 0.0, F.logsigmoid(-below))
        log_difference = (-torch.expm1(-2 * half * inverse)).log()
        return upper + lower + torch.where(is_top | is_bottom, 0.0, log_difference)

    def scale_to_minus1_1(self, x: Tensor) -> Tensor:
        """Return the levels of x scaled to [−1, 1], with the dtype of x."""
        return self.values_to_levels(x).to(x.dtype) * (2 / (self.levels - 1)) - 1

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        # in the dtype of x, because bf16 is too coarse for the tails
        log_weights, means, log_scales, coefficients = self.split_params(params.to(x.dtype))
        u = list(self.scale_to_minus1_1(x).unbind(1))
        for c in range(self.channels):
            mean = self.next_channel_means(means, coefficients, u[:c])
            log_weights = log_weights + self.discretized_logistic_log_prob(
                u[c], mean, log_scales[:, c]
            )
        return sum_per_item(log_weights.logsumexp(1))

    def level_probs(self, params: Tensor) -> Tensor:
        log_weights, means, log_scales, _ = self.split_params(params[..., None])  # (B, K, 1)
        u = torch.linspace(-1, 1, self.levels, dtype=params.dtype, device=params.device)
        log_probs = self.discretized_logistic_log_prob(
            u.expand(len(params), -1), means[:, 0], log_scales[:, 0]
        )  # (B, K, levels)
        return (log_weights + log_probs).logsumexp(1).exp()

    def sample(self, params: Tensor) -> Tensor:
        x = params.new_zeros(len(params), self.channels, *params.shape[2:])
        return self.sample_unknown_values(params, x, torch.zeros_like(x, dtype=torch.bool))

    def sample_unknown_values(self, params: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """Return x (B, C, *shape) with unknown channels drawn in order, given earlier ones."""
        log_weights, means, log_scales, coefficients = self.split_params(params)
        given = self.scale_to_minus1_1(x)
        u: list[Tensor] = []
        for c in range(self.channels):
            mean, log_scale = self.next_channel_means(means, coefficients, u), log_scales[:, c]
            # log_weights are those of p(component | earlier channels)
            k = sample_categorical(log_weights).unsqueeze(1)
            noise = torch.rand_like(given[:, c]).clamp(1e-7, 1 - 1e-7).logit()  # standard logistic
            draw = mean.gather(1, k).squeeze(1) + log_scale.gather(1, k).squeeze(1).exp() * noise
            level = ((draw + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
            u.append(torch.where(known[:, c], given[:, c], level * (2 / (self.levels - 1)) - 1))
            log_weights = log_weights + self.discretized_logistic_log_prob(u[-1], mean, log_scale)
        levels = ((torch.stack(u, 1) + 1) * ((self.levels - 1) / 2)).round()
        return torch.where(known, x, self.levels_to_values(levels, x))


def sum_per_item(values: Tensor) -> Tensor:
    """Return the sum (B,) over all dimensions but the first; there may be no others."""
    return values.reshape(len(values), -1).sum(1)


def sample_categorical(logits: Tensor) -> Tensor:
    """Draw indices (B, *shape) into dimension 1 of logits (B, K, *shape)."""
    p = logits.softmax(1).movedim(1, -1)  # (B, *shape, K)
    return p.reshape(-1, p.shape[-1]).multinomial(1).view(p.shape[:-1])


def make_likelihood(
    name: LikelihoodName, spec: DataSpec, *, num_components: int = 10
) -> Likelihood:
    """Return the likelihood of a name for the data.

    Raises:
        UserError: the data is not images with discrete levels, or not binary where two levels are
            required.
    """
    if spec.kind != "image":
        raise UserError(
            f"autoregressive pixel models need images, not {spec.kind} data of shape {spec.shape}"
        )
    if not spec.is_discrete:
        raise UserError(
            "autoregressive pixel models need discrete levels; set preprocess.dequantize=false"
        )
    if name == "bernoulli" and spec.levels != 2:
        raise UserError(
            f"the Bernoulli likelihood needs binary data, but this data has {spec.levels} levels; "
            "set preprocess.binarize=dynamic, or model.likelihood=categorical"
        )
    if name == "mixture":
        return MixtureOfLogistics(spec, num_components)
    return Bernoulli(spec) if name == "bernoulli" else Categorical(spec)
