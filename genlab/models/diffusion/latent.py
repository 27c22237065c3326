"""Diffusion in the codes of a trained autoencoder: Rombach et al. 2022, 2112.10752."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.diffusion.base import Diffusion
from genlab.spec import Batch, Spec


class LatentDiffusion(nn.Module):
    """An autoencoder that stays as it is, and a diffusion model of its codes, scaled to unit variance (section 3.3).

    Args:
        codec: the autoencoder: a model with `encode` and `decode`. A run brings its own (`codec.run`).
        diffusion: the model of the codes.

    Raises:
        UserError: there is no codec, or it does not encode and decode.
    """

    def __init__(self, spec: Spec, *, diffusion: Callable[..., Any], codec: Callable[..., Any] | None = None) -> None:
        super().__init__()
        if codec is None:
            raise UserError("ldm needs a trained codec: give codec.run=<run folder> of a model that encodes and decodes")
        self.spec, self.codec = spec, codec(spec).requires_grad_(False).eval()
        if not all(callable(getattr(self.codec, verb, None)) for verb in ("encode", "decode")):
            raise UserError(f"{type(self.codec).__name__} is no codec: it does not encode and decode; choose another codec.run")
        with torch.no_grad():
            shape = tuple(self.codec.encode(torch.zeros(1, *spec.shape)).shape[1:])
        kind = "image" if len(shape) == 3 else "points"
        codes = Spec(shape, kind=kind, levels=0, classes=spec.classes, range=(-math.inf, math.inf))
        self.inner: Diffusion = diffusion(codes)
        if not isinstance(self.inner, Diffusion):
            raise UserError(f"model.diffusion is a {type(self.inner).__name__}, and no diffusion model")
        self.conditional, self.samplers = self.inner.conditional, self.inner.samplers
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the diffusion model's mode; the codec is never trained."""
        super().train(mode)
        self.codec.eval()
        return self

    def standardise(self, codes: Tensor) -> None:
        """Take the mean and standard deviation of codes (N, …) as those by which all codes are scaled."""
        self.mean.copy_(codes.mean())
        self.std.copy_(codes.std())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the diffusion model's loss on the codes of a batch's items."""
        with torch.no_grad():
            codes = self.codec.encode(batch.x)
        return self.code_loss(Batch(codes, batch.y))

    def code_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the diffusion model's loss on codes x (B, …) that the codec gave."""
        return self.inner.loss(Batch((batch.x - self.mean) / self.std, batch.y))

    @wraps(Diffusion.sample)  # its options, which the command line reads off the signature
    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, **how: Any) -> Tensor:
        codes = self.inner.sample(n, y, **how)
        return self.codec.decode(codes * self.std + self.mean)
