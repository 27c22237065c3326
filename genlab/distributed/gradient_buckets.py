"""Gradients averaged over the processes while the backward pass is still running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.distributed.process_group import ProcessGroup

BUCKET_BYTES = 25 * 2**20  # gradients per message, as in PyTorch's DDP


class GradientBuckets:
    """Averages the gradients of some parameters over all ranks, several in one message.

    The buckets follow the parameters from the last to the first, about as a backward pass reaches
    them. With `overlap` a bucket is sent as soon as it and those before it are complete: every rank
    sends the same buckets in the same order, whatever order its gradients come in. A gradient that
    only some ranks have counts as 0 on the others.

    Args:
        parameters: those that a backward pass computes gradients of.
        overlap: send buckets during the backward pass instead of after it.
        bucket_bytes: bytes in a bucket.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        group: ProcessGroup,
        *,
        overlap: bool,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.group, self.overlap = group, overlap
        self.is_sending, self.num_sent = False, 0
        self.buckets: list[Bucket] = []
        self.bucket_of: dict[Tensor, Bucket] = {}
        if group.size == 1:
            return
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            part: list[Tensor] = []
            for p in reversed(parameters):
                if p.dtype == dtype:
                    part.append(p)
                    if sum(q.nbytes for q in part) >= bucket_bytes:
                        self.buckets.append(Bucket(part))
                        part = []
            if part:
                self.buckets.append(Bucket(part))
        self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        if overlap:
            for p in parameters:
                p.register_post_accumulate_grad_hook(self.mark_gradient_ready)

    @contextmanager
    def average_gradients(self) -> Iterator[None]:
        """Average the gradients of the backward pass inside, the last one of an update."""
        for bucket in self.buckets:
            bucket.num_missing = len(bucket.parameters)
        self.num_sent, self.is_sending = 0, self.overlap
        yield
        self.is_sending = False
        for bucket in self.buckets[self.num_sent :]:
            bucket.start_all_reduce()
        for bucket in self.buckets:
            bucket.finish_all_reduce(self.group.size)

    def mark_gradient_ready(self, parameter: Tensor) -> None:
        """Send the buckets that are complete now that this parameter has its gradient."""
        if not self.is_sending:  # a backward pass before the last one
            return
        self.bucket_of[parameter].num_missing -= 1
        while self.num_sent < len(self.buckets) and not self.buckets[self.num_sent].num_missing:
            self.buckets[self.num_sent].start_all_reduce()
            self.num_sent += 1


class Bucket:
    """Parameters whose gradients travel in one message."""

    work: dist.Work

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.num_missing = parameters, 0
        n = sum(p.numel() for p in parameters)
        # the gradients, and one flag per parameter: whether it has one
        self.flat = parameters[0].new_empty(n + len(parameters))
        parts = self.flat[:n].split([p.numel() for p in parameters])
        self.parts = [part.view(p.shape) for p, part in zip(parameters, parts, strict=True)]
        self.has_grad = self.flat[n:]

    @torch.no_grad()
    def start_all_reduce(self) -> None:
        """Start the sum over ranks, without waiting for it."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if len(grads) == len(self.parameters):
            torch._foreach_copy_(self.parts, grads)
            self.has_grad.fill_(1)
        else:
            for p, part in zip(self.parameters, self.parts, strict=True):
                part.zero_() if p.grad is None else part.copy_(p.grad)
            self.has_grad.copy_(torch.tensor([p.grad is not None for p in self.parameters]))
        self.work = dist.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def finish_all_reduce(self, size: int) -> None:
        """Wait for the sum, and replace the gradients by the mean over `size` ranks."""
        self.work.wait()
        if any(p.grad is None for p in self.parameters):  # only then: reading flags is a sync
            for p, elsewhere in zip(self.parameters, self.has_grad.tolist(), strict=True):
                if p.grad is None and elsewhere:
                    p.grad = torch.empty_like(p)
        self.flat /= size
        for p, part in zip(self.parameters, self.parts, strict=True):
            if p.grad is not None:
                p.grad.copy_(part)
