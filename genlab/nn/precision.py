"""Full precision for what must not be rounded in a model: densities and searches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Context in which matrix products and convolutions on the device of x are not rounded.

    Neither autocast (bf16 or fp16) nor TensorFloat-32 applies. An exact density or a search for the
    nearest vector needs it: bf16 keeps 8 bits of each value. The inputs must have the dtype of the
    weights.
    """
    if torch.compiler.is_compiling() or x.device.type != "cuda":
        with torch.autocast(x.device.type, enabled=False):
            yield
        return
    precision, allows_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = allows_tf32


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator that computes a function of tensors within `full_precision`."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        first = next(arg for arg in args if isinstance(arg, Tensor))
        with full_precision(first):
            return function(*args, **kwargs)

    return wrapper
