"""A model cut over the processes: each holds a part of every weight, gradient and running mean, and of the optimizer's state.

By PyTorch's FSDP2 (Zhao et al. 2023, https://arxiv.org/abs/2304.11277), in place, so that the model keeps its abilities. What
leaves here is whole: a checkpoint is the same file as without.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from genlab.distributed.device import Device, bricks
from genlab.distributed.process_group import Ranks
from genlab.errors import UserError


class FSDP:
    """A model that is cut over all processes, and in the first one a whole copy of it to be asked, which waits on the CPU.

    A part is gathered when it is used, and let go after that: the items of lists of modules, and what the model calls itself.

    Args:
        model: on the CPU.
        mean: whether there is to be a cut copy in `mean`, for the running mean of the weights.
    """

    def __init__(self, model: nn.Module, device: Device, ranks: Ranks, *, mean: bool) -> None:
        self.device, self.first = device, ranks.first
        self.whole = copy.deepcopy(model).requires_grad_(False) if ranks.first else None
        self.mean = copy.deepcopy(model) if mean else None
        self.mesh = init_device_mesh(device.name, (ranks.size,))
        for each in (model, self.mean):
            if each is not None:
                self.cut(each)

    def cut(self, model: nn.Module) -> None:
        """Cut a model in place."""
        items = [
            item for part in model.modules() if isinstance(part, nn.ModuleList) for item in part
        ]
        for part in [*reversed(items), *bricks(model)]:  # from the inside out
            called = not isinstance(part, nn.ModuleList | nn.ModuleDict | FSDPModule)
            if called and next(part.parameters(), None) is not None:
                fully_shard(part, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh, reshard_after_forward=True)
        register_fsdp_forward_method(model, "loss")

    @contextmanager
    def calling(self, model: nn.Module) -> Iterator[None]:
        """While entered, a model that takes a part's weights without calling the part is told so.

        Raises:
            UserError: it does: nobody has gathered them.
        """
        try:
            yield
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            name = type(model).__name__.removeprefix("FSDP")
            raise UserError(
                f"device.fsdp: {name} uses weights of parts that it does not call; set device.fsdp=false"
            ) from error

    def asked(self, model: nn.Module) -> nn.Module:
        """Return the whole of a model that is cut, on the device; in all processes but the first, which has none, the model."""
        state = self.gathered(model.state_dict())
        if self.whole is None:
            return model
        self.whole.load_state_dict(state)
        return self.whole.to(self.device.torch)

    def rest(self) -> None:
        """Free the device of the whole copy."""
        if self.whole is not None:
            self.whole.to("cpu")

    def gathered(self, value: Any) -> Any:
        """Return nested containers with each cut tensor whole, on the CPU; in all processes but the first None in its place."""
        if isinstance(value, dict):
            return {key: self.gathered(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self.gathered, value))
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.first else None

    def spread(
        self, state: dict[str, Any], model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]
    ) -> dict[str, Any]:
        """Return a trainer's whole state with its tensors cut as those of the model and its optimizers are."""
        weights = model.state_dict()
        of_model = lambda state: (
            state and {name: apart(value, weights[name]) for name, value in state.items()}
        )  # noqa: E731
        of_optimizers = {}
        for name, optimizer in optimizers.items():
            parameters, own = (
                [p for group in optimizer.param_groups for p in group["params"]],
                state["optimizers"][name],
            )
            moments = {
                i: {k: apart(v, parameters[i]) for k, v in one.items()}
                for i, one in own["state"].items()
            }
            of_optimizers[name] = {**own, "state": moments}
        return {
            **state,
            "model": of_model(state["model"]),
            "ema": of_model(state["ema"]),
            "optimizers": of_optimizers,
        }


def apart(whole: Any, like: Tensor) -> Any:
    """Return a whole tensor cut as `like` is, if that is cut; what is of no such shape, as it is."""
    if not isinstance(like, DTensor) or not isinstance(whole, Tensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(
        whole.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None
    )
