"""Binary units: drawing them, listing all of their states, and refusing data that is not binary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.spec import Spec

ENUMERABLE = 20  # units up to which a sum over all of their states is taken


def flip(p: Tensor) -> Tensor:
    """Draw binary values, 1 with probability p; the coin is at least of single precision."""
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    return (torch.rand(p.shape, dtype=dtype, device=p.device) < p).to(dtype)


def states(n: int, like: Tensor) -> Tensor:
    """Return all states (2^n, n) of n binary units, with the type and on the device of `like`."""
    return (
        torch.arange(2**n, device=like.device)[:, None] >> torch.arange(n, device=like.device) & 1
    ).to(like)


def check(spec: Spec, name: str) -> None:
    """Refuse data whose values are not 0 and 1.

    Raises:
        UserError: says what the data is, and what to set.
    """
    if spec.levels != 2 or tuple(spec.range) != (0, 1):
        raise UserError(f"{name} needs binary values 0 and 1, and this dataset gives "
                        f"{spec.levels or 'real'} levels in {list(spec.range)}; "
                        "set dataset.binarize=dynamic dataset.range=[0,1]")  # fmt: skip


def refuse(model: nn.Module, y: Tensor | None, sampler: str = "gibbs") -> None:
    """Refuse labels, since these models have no p(x|y), and samplers that they do not have."""
    refuse_classes(model, y)
    if sampler not in model.samplers:
        raise UserError(
            f"{type(model).__name__} has no sampler '{sampler}'; it has {', '.join(model.samplers)}"
        )


def refuse_classes(model: nn.Module, y: Tensor | None) -> None:
    """Refuse labels: these models have no p(x|y)."""
    if y is not None:
        raise UserError(
            f"{type(model).__name__} has no classes: it cannot draw a given one; leave the class out"
        )
