"""Draws of the unknown values of points from a flow's density, by Markov chains.

The target is p(x_u | x_o) ∝ p(x_o, x_u), which the density gives up to a constant. Each chain
alternates two updates that leave it invariant: Hamiltonian Monte Carlo on x_u (Duane et al. 1987;
Neal 2011, https://arxiv.org/abs/1206.1901), which moves inside a mode, and an independent proposal
by the flow's own sampler, which can change the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genlab.console import track

CHAIN_STEPS = 60  # updates of a chain by default; the first half adapts its step size
LEAPFROG_STEPS = 4
TARGET_ACCEPTANCE = 0.8
ADAPTATION_RATE = 0.5  # of the logarithm of a chain's step size
FIRST_STEP_SIZE = 0.3  # in standard deviations of the values
FIRST_PROPOSALS = 16  # samples of the flow among which a chain chooses its start
# Standard deviation of the auxiliary values about the known ones, in those of the values.
KERNEL_WIDTH = 0.5
NUM_SCALE_SAMPLES = 1000  # samples of the flow that give the standard deviations
LogProb = Callable[[Tensor], Tensor]


def draw_unknown_values(
    log_prob: LogProb,
    sample: Callable[[int], Tensor],
    x: Tensor,
    known: Tensor,
    *,
    draws: int,
    steps: int | None = None,
) -> Tensor:
    """Draw the unknown values of x (B, D) given the known ones (draws, B, D).

    Each draw is the end of a separate chain.

    Args:
        log_prob: the log-density (N,) of points (N, D), up to a constant.
        sample: draws n points (n, D) from it.
        known: bool (B, D).
        steps: updates of a chain; None: 60.
    """
    scale = sample(NUM_SCALE_SAMPLES).std(0).clamp(min=1e-6)
    chains = ConditionalChains(log_prob, sample, x.repeat(draws, 1), known.repeat(draws, 1), scale)
    steps = CHAIN_STEPS if steps is None else steps
    for step in track(range(steps), "sampling", unit="steps"):
        chains.propose_from_model()
        chains.move_by_hmc(adapt=step < steps // 2)
    return chains.x.unflatten(0, (draws, len(x)))


class ConditionalChains:
    """The states of many chains: points x (N, D), of which the known values stay.

    The independent proposal is a Metropolis update on x_u and auxiliary values a, one for each
    known value, with the joint target p(x_u | x_o) N(a; x_o, s²). Its proposal (x_u, a) is a sample
    of the flow, so that the ratio of target and proposal is p(x_o, x_u) N(a; x_o, s²) / p(a, x_u).

    Args:
        scale: standard deviation (D,) of the values.
    """

    def __init__(
        self,
        log_prob: LogProb,
        sample: Callable[[int], Tensor],
        x: Tensor,
        known: Tensor,
        scale: Tensor,
    ) -> None:
        self.density, self.sample = log_prob, sample
        self.observed, self.known, self.scale = x, known, scale
        self.step_size = x.new_full((len(x), 1), FIRST_STEP_SIZE)
        # the most promising of several samples, drawn by their weights
        self.x, best = x, x.new_full((len(x),), -math.inf)
        for _ in range(FIRST_PROPOSALS):
            proposal, weight = self.draw_weighted_proposal()
            score = weight + draw_gumbel_noise(weight)  # the maximum is a draw by the weights
            better = score > best
            self.x = torch.where(better[:, None], proposal, self.x)
            best = torch.where(better, score, best)
        if (unset := best == -math.inf).any():
            self.x = torch.where(unset[:, None], proposal, self.x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density (N,) of points (N, D), −∞ where it is not finite."""
        value = self.density(x)
        return torch.where(value.isfinite(), value, -math.inf)

    def log_weight(self, x: Tensor, auxiliary: Tensor) -> Tensor:
        """Return log p(x_o, x_u) N(a; x_o, s²) / p(a, x_u) (N,), up to a constant.

        Args:
            x: x_u (N, D) with the known values.
            auxiliary: x_u with a in place of the known values.
        """
        z = torch.where(self.known, (auxiliary - self.observed) / (KERNEL_WIDTH * self.scale), 0.0)
        log_weight = self.log_prob(x) - 0.5 * z.square().sum(1) - self.log_prob(auxiliary)
        return torch.where(log_weight.isnan(), -math.inf, log_weight)

    def draw_weighted_proposal(self) -> tuple[Tensor, Tensor]:
        """Draw points (N, D) with the known values, and return their log-weights (N,)."""
        auxiliary = self.sample(len(self.observed)).to(self.observed)
        proposal = torch.where(self.known, self.observed, auxiliary)
        return proposal, self.log_weight(proposal, auxiliary)

    def propose_from_model(self) -> None:
        """Draw a from N(x_o, s²), then propose a sample of the flow for x_u and a."""
        noise = KERNEL_WIDTH * self.scale * torch.randn_like(self.x)
        auxiliary = torch.where(self.known, self.observed + noise, self.x)
        proposal, log_weight = self.draw_weighted_proposal()
        log_ratio = log_weight - self.log_weight(self.x, auxiliary)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        self.x = torch.where(accepted[:, None], proposal, self.x)

    # Neal 2011, section 3.2, with a mass of 1/scale² for each value
    def move_by_hmc(self, *, adapt: bool) -> None:
        """Make one update of Hamiltonian Monte Carlo on the unknown values.

        Args:
            adapt: change each chain's step size toward the target acceptance.
        """
        # a random length avoids orbits that return to their start
        step = self.step_size * (0.8 + 0.4 * torch.rand_like(self.step_size))
        x, momentum = self.x, torch.where(self.known, 0.0, torch.randn_like(self.x))
        log_p, gradient = self.log_prob_and_gradient(x)
        start = log_p - 0.5 * momentum.square().sum(1)
        for _ in range(LEAPFROG_STEPS):
            momentum = momentum + 0.5 * step * gradient
            x = torch.where(self.known, self.observed, x + step * self.scale * momentum)
            log_p, gradient = self.log_prob_and_gradient(x)
            momentum = momentum + 0.5 * step * gradient
        log_ratio = log_p - 0.5 * momentum.square().sum(1) - start
        log_ratio = torch.where(log_ratio.isnan(), -math.inf, log_ratio)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        self.x = torch.where(accepted[:, None], x, self.x)
        if adapt:
            acceptance = log_ratio.clamp(max=0).exp()[:, None]
            change = ADAPTATION_RATE * (acceptance - TARGET_ACCEPTANCE)
            self.step_size = self.step_size * change.exp()

    def log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p (N,) and its gradient (N, D) by x/scale, 0 for the known values."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = self.density(x)
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        gradient = torch.where(self.known, 0.0, gradient.nan_to_num(0.0, 0.0, 0.0) * self.scale)
        return torch.where(log_p.isfinite(), log_p.detach(), -math.inf), gradient


def draw_gumbel_noise(like: Tensor) -> Tensor:
    """Draw standard Gumbel noise of the shape of a tensor (Maddison et al. 2014)."""
    uniform = torch.rand_like(like).clamp(min=torch.finfo(like.dtype).tiny)
    return -(-uniform.log()).log()
