"""Fully sharded training: every rank holds a part of each weight and optimizer state.

Uses PyTorch's FSDP2 (Zhao et al. 2023, https://arxiv.org/abs/2304.11277), in place, so that the
model keeps its abilities. Everything outside sees full tensors: a checkpoint is the same file as
without sharding.
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

from genlab.distributed.device import Device, called_child_modules
from genlab.distributed.process_group import ProcessGroup
from genlab.errors import UserError
from genlab.model import GenerativeModel

State = dict[str, Any]


class FSDP:
    """A model sharded over all ranks, with a full copy for evaluation on the CPU of rank 0.

    The units that are gathered for use and freed afterwards are the items of module lists and the
    modules that the model calls itself.

    Args:
        model: on the CPU; it is sharded in place.
        ema: whether to make a second sharded copy, `ema_model`.
    """

    def __init__(
        self, model: GenerativeModel, device: Device, group: ProcessGroup, *, ema: bool
    ) -> None:
        self.device, self.is_main = device, group.is_main
        self.full_model = copy.deepcopy(model).requires_grad_(False) if group.is_main else None
        self.ema_model = copy.deepcopy(model) if ema else None
        self.mesh = init_device_mesh(device.name, (group.size,))
        self.shard_model(model)
        if self.ema_model is not None:
            self.shard_model(self.ema_model)

    def shard_model(self, model: GenerativeModel) -> None:
        """Shard a model in place."""
        items = [
            item for part in model.modules() if isinstance(part, nn.ModuleList) for item in part
        ]
        for part in [*reversed(items), *called_child_modules(model)]:  # from the inside out
            is_unit = not isinstance(part, nn.ModuleList | nn.ModuleDict | FSDPModule)
            if is_unit and next(part.parameters(), None) is not None:
                fully_shard(part, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh, reshard_after_forward=True)
        register_fsdp_forward_method(model, "loss")

    @contextmanager
    def explain_unsharded_use(self, model: GenerativeModel) -> Iterator[None]:
        """Context that explains the error of a model that uses weights of an uncalled module.

        Raises:
            UserError: the model reads the weights of a module without calling it, so they were not
                gathered.
        """
        try:
            yield
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            name = type(model).__name__.removeprefix("FSDP")
            raise UserError(
                f"device.fsdp: {name} uses weights of parts that it does not call; "
                "set device.fsdp=false"
            ) from error

    def gather_full_model(self, model: GenerativeModel) -> GenerativeModel:
        """Return the full copy of a sharded model, on the device of rank 0.

        All ranks must call it; the others get the sharded model back.
        """
        state = self.gather_full_state(model.state_dict())
        if self.full_model is None:
            return model
        self.full_model.load_state_dict(state)
        return self.full_model.to(self.device.torch)

    def offload_full_model(self) -> None:
        """Move the full copy back to the CPU."""
        if self.full_model is not None:
            self.full_model.to("cpu")

    def gather_full_state(self, value: Any) -> Any:
        """Return nested containers with sharded tensors gathered on the CPU of rank 0.

        The other ranks get None in place of each sharded tensor.
        """
        if isinstance(value, dict):
            return {key: self.gather_full_state(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self.gather_full_state, value))
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if self.is_main else None

    def shard_state(
        self, state: State, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]
    ) -> State:
        """Return a trainer's full state, sharded like the model and its optimizers."""
        weights = model.state_dict()

        def shard_weights(full: State | None) -> State | None:
            return full and {name: shard_tensor_like(v, weights[name]) for name, v in full.items()}

        sharded_optimizers = {}
        for name, optimizer in optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            full = state["optimizers"][name]
            moments = {
                i: {key: shard_tensor_like(value, parameters[i]) for key, value in moment.items()}
                for i, moment in full["state"].items()
            }
            sharded_optimizers[name] = {**full, "state": moments}
        return {
            **state,
            "model": shard_weights(state["model"]),
            "ema": shard_weights(state["ema"]),
            "optimizers": sharded_optimizers,
        }


def shard_tensor_like(full: Any, like: Tensor) -> Any:
    """Return a full tensor sharded like `like`, or another value unchanged."""
    if not isinstance(like, DTensor) or not isinstance(full, Tensor) or full.shape != like.shape:
        return full
    return distribute_tensor(
        full.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None
    )
