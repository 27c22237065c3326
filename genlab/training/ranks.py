"""The processes that train one model together: one under plain Python, several under torchrun."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """This process's place among `size` processes; every method is the identity when there is only one."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        if self.size > 1 and not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place, with one message a floating type."""
        if self.size == 1 or not tensors:
            return
        for dtype in {t.dtype for t in tensors}:
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            flat /= self.size
            for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.copy_(part.view(t.shape))

    def average_statistics(self, model: nn.Module) -> None:
        """Average the running statistics, which each process gathers from its own shards: buffers named running_…"""
        if self.size == 1:
            return
        self.average([b for name, b in model.named_buffers() if name.rpartition(".")[2].startswith("running_")])

    def gather(self, part: Tensor) -> Tensor:
        """Return the processes' parts (B, …) joined in the order of their ranks, (size·B, …)."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        total = torch.tensor(int(flag))
        dist.all_reduce(total)
        return bool(total)

    def share(self, value: object) -> object:
        """Return the first process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the group. Tensors must be gone first: a process that still holds some can abort at exit."""
        if self.size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()
