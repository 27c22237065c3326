"""Batch normalization: which layers use the batch, and how to keep its statistics fixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm


def batch_norm_layers(net: nn.Module) -> list[_BatchNorm]:
    """Return the layers of `net` that normalize by the statistics of a batch."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def frozen_running_statistics(net: nn.Module) -> Iterator[None]:
    """Run `net` without updating its statistics, so that an update of its opponent keeps it."""
    batch_norms = [m for m in batch_norm_layers(net) if m.track_running_stats]
    spectral_norms = [m for m in net.modules() if isinstance(m, _SpectralNorm) and m.training]
    for batch_norm in batch_norms:
        # in training it still normalizes by the batch, but keeps its buffers
        batch_norm.track_running_stats = False
    for spectral_norm in spectral_norms:
        spectral_norm.training = False  # no step of its power iteration
    try:
        yield
    finally:
        for batch_norm in batch_norms:
            batch_norm.track_running_stats = True
        for spectral_norm in spectral_norms:
            spectral_norm.training = True


@contextmanager
def constant_batch_statistics(net: nn.Module) -> Iterator[None]:
    """Run `net` with the statistics of each batch as constants, which gradients do not pass.

    Each output then has a gradient with respect to its own sample only: that of a network whose
    statistics are frozen. The outputs are those of training, and no statistics are updated.
    """
    batch_norms = batch_norm_layers(net)
    for batch_norm in batch_norms:
        batch_norm.forward = partial(normalize_by_constants, batch_norm)  # type: ignore[method-assign]
    try:
        with frozen_running_statistics(net):
            yield
    finally:
        for batch_norm in batch_norms:
            del batch_norm.forward


def normalize_by_constants(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Return x (B, C, …) normalized by its mean and variance over the batch, both constant."""
    if not layer.training:
        return F.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
        )
    dims = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x.detach(), dims, correction=0)
    mean, variance = mean.to(layer.running_mean), variance.to(layer.running_var)
    return F.batch_norm(x, mean, variance, layer.weight, layer.bias, eps=layer.eps)
