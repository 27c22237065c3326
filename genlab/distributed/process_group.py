"""The processes that train one model together: one under plain Python, several under torchrun, srun or submitit."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.distributed.environment import world
from genlab.distributed.supervisor import JOIN, Lost, Watch

PATIENCE = timedelta(
    days=30
)  # for a message: the first process may draw or measure for hours, and who dies is heard of at once


class Ranks:
    """This process's place among `size` processes; every method is the identity when there is only one.

    Raises:
        Lost: the processes do not meet.
    """

    place: dist.Store | None = None  # where these processes meet, as often as they train something
    met = 0

    def __init__(self) -> None:
        self.world = world()
        self.size, self.rank = self.world.size, self.world.rank
        if self.size > 1 and not dist.is_initialized():
            self.meet()

    def meet(self) -> None:
        """Join the other processes."""
        at = f"{self.world.address}:{self.world.port}"
        try:
            if Ranks.place is None:
                join = timedelta(seconds=JOIN)
                Ranks.place, _, _ = next(
                    dist.rendezvous(f"tcp://{at}", self.rank, self.size, timeout=join)
                )
        except dist.DistError as error:
            why = str(error).splitlines()[0]
            raise Lost(f"rank {self.rank} of {self.size} processes found no meeting at {at} ({why}); "
                       "MASTER_ADDR and MASTER_PORT name another") from error  # fmt: skip
        store = dist.PrefixStore(f"genlab{Ranks.met}", Ranks.place)
        Ranks.met += 1

        def post(text: str) -> str:
            if self.first:
                store.set("watch", text)
            return store.get("watch").decode()

        Watch(self.world, post)
        if self.world.gpu(torch.cuda.device_count()) < torch.cuda.device_count():
            torch.cuda.set_device(self.world.gpu(torch.cuda.device_count()))
        kind = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            kind, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place, with one message a floating type."""
        if self.size == 1 or not tensors:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):  # in the same order everywhere
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            flat /= self.size
            for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.copy_(part.view(t.shape))

    def gather(self, part: Tensor) -> Tensor:
        """Return the processes' parts (B, …) joined in the order of their ranks, (size·B, …)."""
        if self.size == 1:
            return part
        parts = [
            torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
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

    def all(self, value: object) -> list[object]:
        """Return every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Leave the others, unless an error does that its own way."""
        if (
            error is None or getattr(error, "exit_code", 1) > 128
        ):  # a signal asked all of them to end
            self.close()

    def close(self) -> None:
        """Leave the others. Tensors must be gone first: a process that still holds some can abort at exit."""
        if self.size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()
            Watch.now.leave()
