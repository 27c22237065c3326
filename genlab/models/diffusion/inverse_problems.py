"""Inverse problems without extra training: inpaint, restore, denoise and edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.models.diffusion.conditional_particles import draw_unknown_values
from genlab.models.diffusion.denoising_model import DenoisingModel
from genlab.models.diffusion.samplers import (
    Denoiser,
    NoiseFn,
    ddim,
    posterior_mean,
    transition_coefficients,
)
from genlab.models.diffusion.schedule import NoiseLevel
from genlab.nn.broadcast import expand_like

# Of the pseudo-inverse: the share of the squared error that may remain.
PSEUDO_INVERSE_TOLERANCE = 1e-10
Operator = Callable[[Tensor], Tensor]


@torch.no_grad()
def repaint(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    observed: Tensor,
    known: Tensor,
    *,
    resample: int = 5,
    jump: int = 10,
    noise: NoiseFn = torch.randn_like,
) -> Tensor:
    """Return items (B, …) with the known values of `observed` (B, …) and others drawn.

    RePaint: Lugmayr et al. 2022, 2201.09865.

    Args:
        x: noise (B, …) at the first level.
        known: which values are known, bool (B, …).
        resample: how often each stretch of steps is repeated. Between two repetitions the noise of
            the stretch is added back, so that the drawn values come to agree with the known ones.
        jump: steps of a stretch; algorithm 1 of the paper takes 1, its experiments 10.
    """
    for i in track(range(0, len(levels) - 1, jump), "sampling", unit="stretches"):
        stretch = levels[i : i + jump + 1]
        alpha, beta, _ = transition_coefficients(stretch[0], stretch[-1])
        for repetition in range(resample):
            if repetition:
                x = alpha * x + beta**0.5 * noise(x)
            for now, then in pairwise(stretch):
                drawn = posterior_mean(denoise(x, now.t), x, now, then)
                noisy_observed = then.alpha * observed
                if then.sigma:
                    drawn = drawn + transition_coefficients(now, then)[2] ** 0.5 * noise(x)
                    noisy_observed = noisy_observed + then.sigma * noise(x)
                x = torch.where(known, noisy_observed, drawn)
    return x


@torch.no_grad()
def ddnm(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    y: Tensor,
    operator: Operator,
    *,
    eta: float = 0.85,
    noise: NoiseFn = torch.randn_like,
) -> Tensor:
    """Return items x_0 (B, …) with operator(x_0) = y by DDNM.

    Wang et al. 2023, 2212.00490, algorithm 1.

    Each prediction of x_0 is corrected to agree with y in the operator's range and is left
    unchanged in its null space.

    Args:
        x: noise (B, …) at the first level.
        y: the observation (B, …).
        operator: (B, …) -> (B, …), linear up to a constant.
        eta: noise of the DDIM steps; 0.85 in the paper.

    Raises:
        UserError: the operator is not linear.
    """
    constant = operator(torch.zeros_like(x))

    def linear(v: Tensor) -> Tensor:
        return operator(v) - constant

    a, b = torch.randn_like(x), torch.randn_like(x)
    if not torch.allclose(linear(a + b), linear(a) + linear(b), atol=1e-4, rtol=1e-4):
        raise UserError(
            "restoration needs an observation that is a linear function of the item, but this "
            "operator is not linear"
        )

    def denoise_consistently(x: Tensor, t: float) -> Tensor:
        x0 = denoise(x, t)
        return x0 + apply_pseudo_inverse(linear, y - operator(x0), like=x)

    return ddim(denoise_consistently, x, levels, eta=eta, noise=noise)


def apply_pseudo_inverse(linear: Operator, r: Tensor, *, like: Tensor, steps: int = 20) -> Tensor:
    """Return A⁺ r (B, …), the x of least norm with A x = r, for each item separately.

    Conjugate gradients solve A Aᵀ u = r; then x = Aᵀ u.

    Args:
        linear: A, as a function of x shaped like `like` (B, …).
        r: the right side (B, …).
    """

    def transpose(u: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros_like(like).requires_grad_()
            return torch.autograd.grad(linear(x), x, u)[0]

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return expand_like((a * b).flatten(1).sum(1), r)

    # r is normalized: with a small r the operator's own constant would leave only rounding errors
    size = dot(r, r).sqrt()
    r = r / size.clamp_min(torch.finfo(r.dtype).tiny)
    u, residual, direction = torch.zeros_like(r), r, r
    squared_error = dot(residual, residual)
    for _ in range(steps):
        # a converged item stays as it is, because rounding errors give no search direction
        active = squared_error > PSEUDO_INVERSE_TOLERANCE
        if not active.any():
            break
        step = linear(transpose(direction))
        rate = torch.where(active, squared_error / dot(direction, step), 0.0)
        u, residual = u + rate * direction, residual - rate * step
        new_error = dot(residual, residual)
        momentum = torch.where(active, new_error / squared_error, 0.0)
        direction, squared_error = residual + momentum * direction, new_error
    return size * transpose(u)


class InverseProblemMixin(DenoisingModel):
    """Inverse problems that a diffusion model solves without training for them."""

    gaussian_noise_only = True

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | None = None,
        *,
        steps: int | None = None,
        resample: int = 5,
        jump: int = 10,
    ) -> Tensor:
        """Return x (B, *shape) with new values, given the others, where `known` is False.

        Args:
            known: bool, broadcasts against x.
            y: classes (B,); None draws from the unconditional model.
            steps: number of noise levels; None: 100.
            resample, jump: see `repaint`.
        """
        levels = self.noise_levels(self.cap_sampling_steps(steps or 100), "ancestral")
        start = self.prior_std * torch.randn_like(x)
        x0 = repaint(
            self.make_class_denoiser(x, y), start, levels, x, known, resample=resample, jump=jump
        )
        return self.clip_samples_to_range(x0)

    @torch.no_grad()
    def impute(
        self, x: Tensor, known: Tensor, *, draws: int = 1, steps: int | None = None
    ) -> Tensor:
        """Draw the unknown values of points x (B, D) by sequential Monte Carlo (draws, B, D).

        Args:
            known: bool (B, D).
            steps: number of noise levels; None: 50.
        """
        return draw_unknown_values(
            self.make_unconditional_denoiser(),
            x,
            known,
            self.noise_levels(self.cap_sampling_steps(steps or 50), "ancestral"),
            draws=draws,
            prior_std=self.prior_std,
            data_std=self.data_std,
        )

    @torch.no_grad()
    def restore(self, y: Tensor, operator: Operator, *, steps: int | None = None) -> Tensor:
        """Draw x (B, *shape) such that operator(x) equals the observation y (B, …); see `ddnm`.

        Args:
            steps: of DDIM; None: 100.
        """
        shape = (len(y), *self.spec.shape)
        start = self.prior_std * torch.randn(shape, dtype=y.dtype, device=y.device)
        levels = self.noise_levels(self.cap_sampling_steps(steps or 100), "ddim")
        return self.clip_samples_to_range(
            ddnm(self.make_unconditional_denoiser(), start, levels, y, operator)
        )

    @torch.no_grad()
    def denoise(self, x: Tensor, *, sigma: float | None = None) -> Tensor:
        """Return E[x_0 | x] (B, *shape) of items x (B, *shape) with Gaussian noise of deviation σ.

        This is what the denoiser was trained for, x + σ² ∇ log p_σ(x) (Robbins 1956; Tweedie's
        formula in Efron 2011, https://doi.org/10.1198/jasa.2011.tm11181), in one evaluation at the
        path's level nearest to σ. It is not a draw of x_0.

        Args:
            sigma: standard deviation of the noise; None: 0.3.
        """
        level = self.nearest_noise_level(0.3 if sigma is None else sigma)
        return self.clip_samples_to_range(
            self.make_unconditional_denoiser()(level.alpha * x, level.t)
        )

    @torch.no_grad()
    def edit(
        self,
        x: Tensor,
        strength: float,
        y: Tensor | None = None,
        *,
        steps: int = 100,
        guidance: float | None = None,
    ) -> Tensor:
        """Return items (B, *shape) similar to x (B, *shape), drawn from x with noise.

        SDEdit: Meng et al. 2022, 2108.01073.

        Args:
            strength: share of the steps from data to noise: 0 returns x, 1 ignores it.
        """
        denoise = self.make_class_denoiser(x, y, guidance)
        levels = self.noise_levels(self.cap_sampling_steps(steps), "ddim")
        levels = levels[round((1 - strength) * (len(levels) - 1)) :]
        start = levels[0].alpha * x + levels[0].sigma * torch.randn_like(x)
        return self.clip_samples_to_range(ddim(denoise, start, levels, eta=1.0))

    def make_class_denoiser(
        self, x: Tensor, y: Tensor | None, guidance: float | None = None
    ) -> Denoiser:
        """Return the denoiser conditioned on y (B,), or the unconditional one if y is None."""
        if y is None:
            return self.make_unconditional_denoiser()
        return self.make_denoiser(self.given_or_random_condition(len(x), y, guidance), guidance)
