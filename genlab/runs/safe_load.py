"""A model that is made by a config and filled from a checkpoint, neither of which may be believed before they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genlab.errors import UserError

SLACK = (
    2**30
)  # bytes that a model may take beside its weights: masks, tables, numbers drawn to start from
MAKERS = {
    torch.arange, torch.empty, torch.empty_strided, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand,
    torch.randint, torch.randn, torch.randperm, torch.zeros,
}  # fmt: skip


class AtMost(TorchFunctionMode):
    """While entered, refuses to make tensors that take more than `most` bytes together, before any of it is taken."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.made = most, 0

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in MAKERS:
            like = function(
                *args, **{k: v for k, v in kwargs.items() if k != "generator"} | {"device": "meta"}
            )
            self.made += like.numel() * like.element_size()
            if self.made > self.most:
                raise UserError(
                    f"it asks for more than {self.most / 2**30:,.1f} GB, which is more than its checkpoint can fill"
                )
        return function(*args, **kwargs)


def bounded(weights: dict[str, Any]) -> AtMost:
    """Return the bound of memory for the model that has these weights."""
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    return AtMost(
        4 * sum(value.untyped_storage().nbytes() for value in tensors) + SLACK
    )  # numel() would believe an expanded one


@contextmanager
def agreeing(where: str) -> Iterator[None]:
    """Say in one line that a config, called `where`, and a checkpoint do not belong together, when the block finds out.

    Raises:
        UserError: they do not.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} and its checkpoint do not belong together: {said}") from error
