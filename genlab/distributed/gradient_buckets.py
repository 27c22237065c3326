"""Gradients averaged over the processes while the backward that makes them still runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.distributed.process_group import Ranks

SIZE = 25 * 2**20  # bytes of gradients in a message


class Buckets:
    """Averages the gradients of some parameters over all processes, several in one message.

    The buckets follow the parameters from the last to the first, about as a backward reaches them. With `early` a bucket's
    message leaves as soon as it is full and those before it have left: every process sends the same ones in the same order,
    whatever order its gradients come in. A gradient that only some processes have counts as 0 in the others.

    Args:
        parameters: those that a backward makes gradients of.
        size: bytes in a bucket.
    """

    def __init__(
        self, parameters: Sequence[Tensor], ranks: Ranks, *, early: bool, size: int = SIZE
    ) -> None:
        self.ranks, self.early, self.sending, self.left = ranks, early, False, 0
        self.buckets: list[Bucket] = []
        self.of: dict[Tensor, Bucket] = {}
        if ranks.size == 1:
            return
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            part: list[Tensor] = []
            for p in reversed(parameters):
                if p.dtype == dtype:
                    part.append(p)
                    if sum(q.nbytes for q in part) >= size:
                        self.buckets.append(Bucket(part))
                        part = []
            if part:
                self.buckets.append(Bucket(part))
        self.of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        if early:
            for p in parameters:
                p.register_post_accumulate_grad_hook(self.arrived)

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Average the gradients that the backward inside leaves, which is an update's last."""
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)
        self.left, self.sending = 0, self.early
        yield
        self.sending = False
        for bucket in self.buckets[self.left :]:
            bucket.send()
        for bucket in self.buckets:
            bucket.receive(self.ranks.size)

    def arrived(self, parameter: Tensor) -> None:
        """Send what is full now that this parameter has its gradient."""
        if not self.sending:  # a backward before the last one
            return
        self.of[parameter].missing -= 1
        while self.left < len(self.buckets) and not self.buckets[self.left].missing:
            self.buckets[self.left].send()
            self.left += 1


class Bucket:
    """Parameters whose gradients travel together."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.missing = parameters, 0
        n = sum(p.numel() for p in parameters)
        self.flat = parameters[0].new_empty(
            n + len(parameters)
        )  # the gradients, and of each whether it is there
        parts = self.flat[:n].split([p.numel() for p in parameters])
        self.parts = [part.view(p.shape) for p, part in zip(parameters, parts, strict=True)]
        self.there = self.flat[n:]

    @torch.no_grad()
    def send(self) -> None:
        there = [p.grad is not None for p in self.parameters]
        if all(there):
            torch._foreach_copy_(self.parts, [p.grad for p in self.parameters])
            self.there.fill_(1)
        else:
            for p, part in zip(self.parameters, self.parts, strict=True):
                part.zero_() if p.grad is None else part.copy_(p.grad)
            self.there.copy_(torch.tensor(there))
        self.work = dist.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def receive(self, size: int) -> None:
        self.work.wait()
        if any(p.grad is None for p in self.parameters):  # only then: to ask waits for the device
            for p, elsewhere in zip(self.parameters, self.there.tolist(), strict=True):
                if p.grad is None and elsewhere:
                    p.grad = torch.empty_like(p)
        self.flat /= size
        for p, part in zip(self.parameters, self.parts, strict=True):
            if p.grad is not None:
                p.grad.copy_(part)
