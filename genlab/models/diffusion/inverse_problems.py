"""What an unconditional model can give back: hidden pixels, and items of which only some linear function was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.diffusion.samplers import Denoiser, Noise, ddim, posterior_mean, spreads
from genlab.models.diffusion.schedule import Level

PRECISION = 1e-10  # of the pseudo-inverse: the share of the squared error that may be left
Operator = Callable[[Tensor], Tensor]


@torch.no_grad()
def repaint(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    seen: Tensor,
    known: Tensor,
    *,
    resample: int = 5,
    jump: int = 10,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Return items (B, …) with the known values of `seen` (B, …), others drawn (Lugmayr et al. 2022, RePaint, 2201.09865).

    Args:
        x: noise (B, …) at the first level.
        known: which values are known, bool (B, …).
        resample: how often a stretch of steps is taken: between two of them its noise is put back, so that what is drawn comes
            to agree with what is known.
        jump: steps of a stretch; algorithm 1 there takes 1, its experiments 10.
    """
    for i in range(0, len(levels) - 1, jump):
        stretch = levels[i : i + jump + 1]
        alpha, beta, _ = spreads(stretch[0], stretch[-1])
        for again in range(resample):
            if again:
                x = alpha * x + beta**0.5 * noise(x)
            for now, then in pairwise(stretch):
                drawn, given = posterior_mean(denoise(x, now.t), x, now, then), then.alpha * seen
                if then.sigma:
                    drawn, given = (
                        drawn + spreads(now, then)[2] ** 0.5 * noise(x),
                        given + then.sigma * noise(x),
                    )
                x = torch.where(known, given, drawn)
    return x


@torch.no_grad()
def null_space(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], y: Tensor, operator: Operator, *, eta: float = 0.85,
    noise: Noise = torch.randn_like,
) -> Tensor:  # fmt: skip
    """Return items x_0 (B, …) with operator(x_0) = y (Wang et al. 2023, DDNM, 2212.00490, algorithm 1).

    Each guess of x_0 is made to agree with y in what the operator sees, and left as it is in the operator's null space.

    Args:
        x: noise (B, …) at the first level.
        y: what was seen (B, …).
        operator: (B, …) -> (B, …), linear but for a constant.
        eta: noise of the DDIM steps; 0.85 there.

    Raises:
        UserError: the operator is not linear.
    """
    constant = operator(torch.zeros_like(x))
    linear = lambda v: operator(v) - constant  # noqa: E731
    a, b = torch.randn_like(x), torch.randn_like(x)
    if not torch.allclose(linear(a + b), linear(a) + linear(b), atol=1e-4, rtol=1e-4):
        raise UserError(
            "restoration needs what was seen to be a linear function of the item, and this operator is not"
        )

    def agreeing(x: Tensor, t: float) -> Tensor:
        x0 = denoise(x, t)
        return x0 + pseudo_inverse(linear, y - operator(x0), like=x)

    return ddim(agreeing, x, levels, eta=eta, noise=noise)


def pseudo_inverse(linear: Operator, r: Tensor, *, like: Tensor, steps: int = 20) -> Tensor:
    """Return A⁺ r (B, …), the least x with A x = r, by conjugate gradients on A Aᵀ u = r, x = Aᵀ u; of each item by itself."""

    def transposed(u: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros_like(like).requires_grad_()
            return torch.autograd.grad(linear(x), x, u)[0]

    dot = lambda a, b: (a * b).flatten(1).sum(1).view(-1, *[1] * (r.dim() - 1))  # noqa: E731
    # of residuals of length 1: of small ones the operator's own constant would leave rounding errors alone
    size = dot(r, r).sqrt()
    r = r / size.clamp_min(torch.finfo(r.dtype).tiny)
    u, rest, way = torch.zeros_like(r), r, r
    length = dot(rest, rest)
    for _ in range(steps):
        going = (
            length > PRECISION
        )  # an item that is there stays: on rounding errors a search has no direction
        if not going.any():
            break
        step = linear(transposed(way))
        rate = torch.where(going, length / dot(way, step), 0.0)
        u, rest = u + rate * way, rest - rate * step
        new = dot(rest, rest)
        way, length = rest + torch.where(going, new / length, 0.0) * way, new
    return size * transposed(u)


class Restoring:
    """What a diffusion model restores though it was trained for nothing of it: verbs of its own levels, denoiser and samplers."""

    @torch.no_grad()
    def complete(
        self, x: Tensor, known: Tensor, *, steps: int = 100, resample: int = 5, jump: int = 10
    ) -> Tensor:
        """Return x (B, *shape) with the values where `known` is False drawn anew, given the others; see `restore.repaint`."""
        levels = self.levels(self.at_most(steps), "ancestral")
        x0 = repaint(
            self.free(),
            self.prior_std * torch.randn_like(x),
            levels,
            x,
            known,
            resample=resample,
            jump=jump,
        )
        return self.within(x0)

    @torch.no_grad()
    def restore(self, y: Tensor, operator: Operator, *, steps: int = 100) -> Tensor:
        """Return x (B, *shape) such that operator(x) is y (B, …), drawn from the model; see `restore.null_space`."""
        start = self.prior_std * torch.randn(
            len(y), *self.spec.shape, dtype=y.dtype, device=y.device
        )
        return self.within(
            null_space(self.free(), start, self.levels(self.at_most(steps), "ddim"), y, operator)
        )

    @torch.no_grad()
    def denoise(self, x: Tensor, *, sigma: float = 0.3) -> Tensor:
        """Return E[x_0 | x] (B, *shape) of items x (B, *shape) with Gaussian noise of standard deviation σ on them.

        It is what the denoiser was trained for, x + σ² ∇ log p_σ(x) (Robbins 1956; Tweedie's formula in Efron 2011,
        https://doi.org/10.1198/jasa.2011.tm11181), in one evaluation at the path's level nearest to σ; no draw of x_0.
        """
        level = self.level(sigma)
        return self.within(self.free()(level.alpha * x, level.t))

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
        """Return items (B, *shape) like x (B, *shape), drawn from x with noise (SDEdit: Meng et al. 2022, 2108.01073).

        Args:
            strength: share of the way from data to noise, in steps: 0 leaves x, 1 forgets it.
        """
        y = None if y is None else self.asked(len(x), y, guidance)
        levels = self.levels(self.at_most(steps), "ddim")
        levels = levels[round((1 - strength) * (len(levels) - 1)) :]
        start = levels[0].alpha * x + levels[0].sigma * torch.randn_like(x)
        denoise = self.free() if y is None else self.denoiser(y, guidance)
        return self.within(self.sampler("ddim", eta=1.0)(denoise, start, levels))
