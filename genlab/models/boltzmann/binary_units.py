"""Binary units: sampling them, enumerating their states, and checks of data and arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.spec import DataSpec

MAX_ENUMERATED_UNITS = 20  # units up to which a sum over all of their states is computed


def sample_bernoulli(p: Tensor) -> Tensor:
    """Draw binary values that are 1 with probability p, in at least single precision."""
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    return (torch.rand(p.shape, dtype=dtype, device=p.device) < p).to(dtype)


def enumerate_states(n: int, like: Tensor) -> Tensor:
    """Return all states (2^n, n) of n binary units, with the dtype and device of `like`."""
    numbers = torch.arange(2**n, device=like.device)
    return (numbers[:, None] >> torch.arange(n, device=like.device) & 1).to(like)


def require_binary_data(spec: DataSpec, name: str) -> None:
    """Raise UserError unless the values of the data are 0 and 1.

    Args:
        name: of the model, for the error message.
    """
    if spec.levels != 2 or tuple(spec.range) != (0, 1):
        raise UserError(
            f"{name} requires the binary values 0 and 1, but this dataset has "
            f"{spec.levels or 'real'} levels in {list(spec.range)}; "
            "set preprocess.binarize=dynamic preprocess.range=[0,1]"
        )


def check_sampling_arguments(
    model: GenerativeModel, y: Tensor | None, sampler: str = "gibbs"
) -> None:
    """Raise UserError if labels or an unknown sampler are given."""
    reject_labels(model, y)
    if sampler not in model.samplers:
        raise UserError(
            f"{type(model).__name__} does not support sampler={sampler}; "
            f"samplers: {', '.join(model.samplers)}"
        )


def reject_labels(model: GenerativeModel, y: Tensor | None) -> None:
    """Raise UserError if labels are given: these models do not define p(x|y)."""
    if y is not None:
        raise UserError(
            f"{type(model).__name__} is not class-conditional, so it does not take labels; "
            "leave y out"
        )
