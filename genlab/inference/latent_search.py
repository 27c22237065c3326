"""Inpainting with any decoder: the code whose item agrees with what is known and that the prior does not find odd.

Yeh et al. 2017, Semantic image inpainting with deep generative models, https://arxiv.org/abs/1607.07539, with the codes' own
distance from the prior's mean in place of a discriminator's opinion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.inference.queries import AT_ONCE

RATE = 0.1  # of Adam, in standard deviations of the codes; it falls evenly to 0


# z = m + s ∘ u with the mean m and spread s of usual codes:  min_u  Σ_known ((G(z) − x) / span)² + weight · Σ u²
# For a linear G with noise of variance `weight` and z ~ N(m, s²) that is twice the negative log-posterior.
@torch.enable_grad()
def search(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    known: Tensor,
    *,
    usual: Tensor,
    weight: float,
    steps: int,
    span: float = 1.0,
    first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return codes z (B, …) and what they leave of the objective (B,), of items x (B, *shape) with `known` of their values.

    Args:
        usual: codes (N, …) of the prior or of data: their mean and their spread.
        first: codes (B, …) to start from; None: drawn from the usual.
        span: the length of the data's range, by which errors are divided.

    Raises:
        UserError: the decoder is no differentiable function of the code.
    """
    probe = usual[:1].clone().requires_grad_()
    out = decode(probe).sum()
    if not out.requires_grad or torch.autograd.grad(out, [probe], allow_unused=True)[0] is None:
        raise UserError(
            "this model's decoder has no gradient by which a code could be searched for"
        )
    middle, spread = usual.mean(0), usual.std(0).clamp_min(1e-6)
    first = drawn(usual, len(x)) if first is None else first
    u = ((first - middle) / spread).requires_grad_()

    def objective() -> Tensor:  # (B,)
        error = ((decode(middle + spread * u) - x) / span * known).square().flatten(1).sum(1)
        return error + weight * u.square().flatten(1).sum(1)

    adam = torch.optim.Adam([u], lr=RATE)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        (u.grad,) = torch.autograd.grad(
            objective().sum(), [u]
        )  # an item's gradient is its own: nothing mixes the batch
        adam.step()
        falling.step()
    with torch.no_grad():
        return middle + spread * u, objective()


def drawn(usual: Tensor, n: int) -> Tensor:
    """Return n of the codes (N, …), drawn with the global random state."""
    return usual[torch.randint(len(usual), (n,), device=usual.device)]


def searches(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    known: Tensor,
    *,
    tries: int,
    usual: Tensor,
    first: Tensor | None = None,
    **how: Any,
) -> Tensor:
    """Return codes (n, tries, …) from as many searches for each item of x (n, *shape), the best first.

    Args:
        first: codes (n · tries, …) to start from, an item's together; None: drawn from the usual.
        how: the other arguments of `search`.
    """
    x, known = (
        x.repeat_interleave(tries, 0),
        known.repeat_interleave(tries, 0),
    )  # (n · tries, *shape)
    first = drawn(usual, len(x)) if first is None else first
    parts = zip(*(t.split(AT_ONCE) for t in (x, known, first)), strict=True)
    found = [search(decode, part, k, usual=usual, first=start, **how) for part, k, start in parts]
    z, left = (torch.cat(each).unflatten(0, (-1, tries)) for each in zip(*found, strict=True))
    best = left.argsort(dim=1, stable=True)  # (n, tries)
    return z.gather(1, best.view(*best.shape, *[1] * (z.dim() - 2)).expand_as(z))
