"""Safe loading of a model from an untrusted config and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genlab.errors import UserError
from genlab.spec import DataSpec
from genlab.untrusted.files import half_memory_bytes
from genlab.untrusted.states import InvalidStateError

# bytes that a model may allocate beside its weights: masks, tables, random initial values
EXTRA_BYTES = 2**30
LARGE_SIDE = 32  # pixels from which on smaller images are suggested
FACTORY_FUNCTIONS = {
    torch.arange,
    torch.empty,
    torch.empty_strided,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.zeros,
}


class AllocationLimit(TorchFunctionMode):
    """Context that refuses to create tensors of more than `max_bytes` in all.

    Args:
        reason: what the limit is, for the message.
    """

    def __init__(
        self, max_bytes: int, reason: str = "which is more than its checkpoint can fill"
    ) -> None:
        super().__init__()
        self.max_bytes, self.reason, self.allocated_bytes = max_bytes, reason, 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in FACTORY_FUNCTIONS:
            options = {key: value for key, value in kwargs.items() if key != "generator"}
            like = function(*args, **options | {"device": "meta"})  # without memory
            self.allocated_bytes += like.numel() * like.element_size()
            if self.allocated_bytes > self.max_bytes:
                raise UserError(
                    f"the model needs more than {self.max_bytes / 2**30:,.1f} GB, {self.reason}"
                )
        return function(*args, **kwargs)


def limit_allocation(weights: dict[str, Any]) -> AllocationLimit:
    """Return the context that limits the memory of a model to what its weights justify."""
    # the storage, since the numel() of an expanded tensor is not its size in memory
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    return AllocationLimit(4 * sum(t.untyped_storage().nbytes() for t in tensors) + EXTRA_BYTES)


def limit_to_machine(spec: DataSpec) -> AllocationLimit:
    """Return the context that limits the memory of a new model for data of `spec`.

    A system often grants more memory than it has, and kills the process that uses it.
    """
    smaller = "set smaller options of model="
    if spec.kind == "image" and (side := min(spec.shape[-2:])) >= LARGE_SIDE:
        smaller = f"{smaller} or smaller images, as preprocess.size={side // 2}"
    return AllocationLimit(
        half_memory_bytes(),
        f"half of this machine's memory, and would run out of memory; {smaller}",
    )


@contextmanager
def explain_checkpoint_mismatch(where: str) -> Iterator[None]:
    """Context that turns the errors of a config and checkpoint that do not fit into one line.

    Args:
        where: the config, for the message.

    Raises:
        UserError: they do not fit each other.
    """
    try:
        yield
    except InvalidStateError as error:
        raise UserError(f"{where} and its checkpoint do not belong together: {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} and its checkpoint do not belong together: {reason}") from error
