"""Find the codes of given items by gradient descent through a decoder.

Yeh et al. 2017, Semantic image inpainting with deep generative models,
https://arxiv.org/abs/1607.07539. In place of the discriminator, the distance of the codes from the
prior's mean is the regularizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.batching import BATCH_SIZE
from genlab.console import track
from genlab.errors import UserError
from genlab.nn.broadcast import expand_like

# Learning rate of Adam in standard deviations of the codes; it decays linearly to 0.
LEARNING_RATE = 0.1

Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LatentSearch:
    """The objective and the length of a search for codes.

    Args:
        reference: codes (N, …) of the prior or of data, whose mean and spread regularize the
            search.
        prior_weight: the weight of the regularizer: the variance of the noise on a value, in
            squared ranges of the data.
        steps: gradient steps.
        data_range: the length of the data's range, by which errors are divided.
    """

    reference: Tensor
    prior_weight: float
    steps: int
    data_range: float = 1.0


# z = m + s ∘ u with the mean m and standard deviation s of the reference codes:
#   min_u  Σ_known ((G(z) − x) / range)² + prior_weight · Σ u²
# For a linear G with noise of variance `prior_weight` and z ~ N(m, s²) this is twice the negative
# log-posterior.
@torch.enable_grad()
def optimize_codes(
    decode: Decoder, x: Tensor, known: Tensor, search: LatentSearch, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes (B, …) for the known values of x (B, *shape), and the objective (B,).

    Args:
        known: bool (B, *shape), the values that the decoded item should agree with.
        start: codes (B, …) to start from; None draws them from the reference codes.

    Raises:
        UserError: the decoder is not a differentiable function of the code.
    """
    require_differentiable_decoder(decode, search.reference[:1])
    mean, std = search.reference.mean(0), search.reference.std(0).clamp_min(1e-6)
    start = resample_codes(search.reference, len(x)) if start is None else start
    u = ((start - mean) / std).requires_grad_()

    def objective() -> Tensor:  # (B,)
        error = ((decode(mean + std * u) - x) / search.data_range * known).square()
        return error.flatten(1).sum(1) + search.prior_weight * u.square().flatten(1).sum(1)

    optimizer = torch.optim.Adam([u], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=search.steps)
    for _ in track(range(search.steps), "searching codes", unit="steps"):
        # The decoder does not mix the items of a batch, so the gradient of the sum is that of each
        # item.
        (u.grad,) = torch.autograd.grad(objective().sum(), [u])
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return mean + std * u, objective()


def require_differentiable_decoder(decode: Decoder, code: Tensor) -> None:
    """Refuse a decoder that is not differentiable with respect to the code (1, …)."""
    code = code.clone().requires_grad_()
    out = decode(code).sum()
    if not out.requires_grad or torch.autograd.grad(out, [code], allow_unused=True)[0] is None:
        raise UserError(
            "no gradient: this model's decoder is not differentiable, so its codes cannot be "
            "searched"
        )


def resample_codes(codes: Tensor, n: int) -> Tensor:
    """Return n of the codes (N, …), drawn with replacement with the global random state."""
    return codes[torch.randint(len(codes), (n,), device=codes.device)]


def optimize_codes_with_restarts(
    decode: Decoder,
    x: Tensor,
    known: Tensor,
    search: LatentSearch,
    *,
    tries: int,
    start: Tensor | None = None,
) -> Tensor:
    """Search `tries` codes (n, tries, …) for each item of x (n, *shape), best first.

    Args:
        start: codes (n · tries, …) to start from, those of an item in succession; None draws them
            from the reference codes.
    """
    x = x.repeat_interleave(tries, 0)  # (n · tries, *shape)
    known = known.repeat_interleave(tries, 0)
    start = resample_codes(search.reference, len(x)) if start is None else start
    batches = zip(*(tensor.split(BATCH_SIZE) for tensor in (x, known, start)), strict=True)
    found = [
        optimize_codes(decode, x_part, known_part, search, start_part)
        for x_part, known_part, start_part in track(batches, "batches", -(-len(x) // BATCH_SIZE))
    ]
    z, objective = (
        torch.cat(parts).unflatten(0, (-1, tries)) for parts in zip(*found, strict=True)
    )
    best = objective.argsort(dim=1, stable=True)  # (n, tries)
    return z.gather(1, expand_like(best, z).expand_as(z))
