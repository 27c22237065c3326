"""The processes that train one model together, often only one."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.distributed.environment import read_environment
from genlab.distributed.supervisor import JOIN_TIMEOUT_S, PeerLostError, PeerMonitor

T = TypeVar("T")

# Rank 0 may sample or evaluate for hours; a process that dies is detected by the supervisor at
# once.
MESSAGE_TIMEOUT = timedelta(days=30)


class ProcessGroup:
    """The rank of this process among `size`, and messages between the ranks.

    Every method is the identity if there is only one process. A method that sends a message must
    be called by all ranks, in the same order.

    Raises:
        PeerLostError: the processes cannot connect.
    """

    rendezvous: dist.Store | None = None  # shared by all groups of this process, one after another
    num_groups = 0

    def __init__(self) -> None:
        self.environment = read_environment()
        self.size, self.rank = self.environment.size, self.environment.rank
        if self.size > 1 and not dist.is_initialized():
            self._connect()

    def _connect(self) -> None:
        """Join the other processes."""
        address = f"{self.environment.address}:{self.environment.port}"
        try:
            if ProcessGroup.rendezvous is None:
                timeout = timedelta(seconds=JOIN_TIMEOUT_S)
                ProcessGroup.rendezvous, _, _ = next(
                    dist.rendezvous(f"tcp://{address}", self.rank, self.size, timeout=timeout)
                )
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise PeerLostError(
                f"rank {self.rank} of {self.size} processes found no meeting at {address} "
                f"({reason}); MASTER_ADDR and MASTER_PORT name another"
            ) from error
        store = dist.PrefixStore(f"genlab{ProcessGroup.num_groups}", ProcessGroup.rendezvous)
        ProcessGroup.num_groups += 1

        def broadcast_text(text: str) -> str:
            if self.is_main:
                store.set("monitor", text)
            return store.get("monitor").decode()

        PeerMonitor(self.environment, broadcast_text)
        num_gpus = torch.cuda.device_count()
        if self.environment.gpu_index(num_gpus) < num_gpus:
            torch.cuda.set_device(self.environment.gpu_index(num_gpus))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=MESSAGE_TIMEOUT
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that writes files."""
        return self.rank == 0

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in place, with one message per dtype."""
        if self.size == 1 or not tensors:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):  # in the same order on every rank
            same_dtype = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in same_dtype])
            dist.all_reduce(flat)
            flat /= self.size
            parts = flat.split([t.numel() for t in same_dtype])
            for t, part in zip(same_dtype, parts, strict=True):
                t.copy_(part.view(t.shape))

    def all_gather_cat(self, part: Tensor) -> Tensor:
        """Return the parts (B, …) of all ranks concatenated, (size·B, …)."""
        if self.size == 1:
            return part
        parts = [
            torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        total = torch.tensor(int(flag))
        dist.all_reduce(total)
        return bool(total)

    def broadcast(self, value: T) -> T:
        """Return rank 0's value, any object that can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, any object that can be pickled, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the group, unless an error ends it: then the supervisor ends the other ranks."""
        stopped_by_signal = getattr(error, "exit_code", 1) > 128  # which all ranks received
        if error is None or stopped_by_signal:
            self.close()

    def close(self) -> None:
        """Leave the group.

        Tensors must be freed first: a process that still holds some can abort at exit.
        """
        if self.size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()
            if PeerMonitor.current is not None:
                PeerMonitor.current.leave_normally()
