"""Exponential moving average (EMA) of a model's weights (Polyak & Juditsky 1992).

It usually samples better than the last weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from genlab.model import GenerativeModel
from genlab.nn.batch_norm import batch_norm_layers


class EMA:
    """A copy of the model with averaged weights: w̄ ← decay·w̄ + (1 − decay)·w.

    Its buffers are the model's own, except for the statistics of batch normalization, which belong
    to weights: `reestimated_statistics` replaces them. In the first steps the decay is (1 + t)/(10
    + t), so that the initial weights are forgotten.

    Args:
        ema_model: a copy of the model, where it cannot be copied here.
    """

    def __init__(
        self, model: GenerativeModel, decay: float, ema_model: GenerativeModel | None = None
    ) -> None:
        self.decay = decay
        ema_model = copy.deepcopy(model) if ema_model is None else ema_model
        self.model: GenerativeModel = ema_model.eval().requires_grad_(False)
        # traversing a model takes a while
        self.ema_weights, self.weights = list(self.model.parameters()), list(model.parameters())
        self.batch_norms = [m for m in batch_norm_layers(self.model) if m.track_running_stats]

    @torch.no_grad()
    def update(self, model: GenerativeModel, step: int) -> None:
        """Move the average toward the weights after update number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local_shard(p) for p in self.ema_weights]
        torch._foreach_lerp_(averages, [local_shard(p) for p in self.weights], 1 - decay)
        if buffers := list(model.buffers()):
            torch._foreach_copy_(list(self.model.buffers()), buffers)

    @contextmanager
    def reestimated_statistics(self) -> Iterator[None]:
        """Context whose forward passes set the statistics of batch normalization (Wu & Johnson
        2021, https://arxiv.org/abs/2105.07576).

        They become the mean over the batches of these passes. All other buffers are kept, and so
        are the statistics of a layer that no batch passes.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        momenta = [layer.momentum for layer in self.batch_norms]
        for layer in self.batch_norms:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()
            new = {
                id(buffer)
                for layer in self.batch_norms
                if layer.num_batches_tracked
                for buffer in (layer.running_mean, layer.running_var)
            }
            for layer, momentum in zip(self.batch_norms, momenta, strict=True):
                layer.momentum = momentum
            for name, buffer in self.model.named_buffers():
                if id(buffer) not in new:
                    buffer.copy_(buffers[name])


def local_shard(parameter: Tensor) -> Tensor:
    """Return this process's part of a parameter: all of it, unless FSDP shards it."""
    to_local = getattr(parameter, "to_local", None)  # of a DTensor, whose import takes a while
    return parameter if to_local is None else to_local()
