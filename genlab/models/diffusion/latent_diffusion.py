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

    A code here is the codec's without noise: of a VAE the posterior's mean, of which its decoder makes the reconstruction. (The
    authors' code draws from a posterior whose variance is next to nothing, with a KL term of weight 1e-6.)

    Args:
        codec: the autoencoder: a model with `encode` and `decode`. A run brings its own (`codec.run`).
        diffusion: the model of the codes.

    Raises:
        UserError: there is no codec, or it does not encode and decode.
    """

    differentiable = False  # as the diffusion model's

    def __init__(
        self, spec: Spec, *, diffusion: Callable[..., Any], codec: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        if codec is None:
            raise UserError(
                "ldm needs a trained codec: give codec.run=<run folder> of a model that encodes and decodes"
            )
        self.spec, self.codec = spec, codec(spec).requires_grad_(False).eval()
        if not all(callable(getattr(self.codec, verb, None)) for verb in ("encode", "decode")):
            raise UserError(
                f"{type(self.codec).__name__} is no codec: it does not encode and decode; choose another codec.run"
            )
        with torch.no_grad():
            shape = tuple(self.codec.encode(torch.zeros(1, *spec.shape)).shape[1:])
        kind = "image" if len(shape) == 3 else "points"
        codes = Spec(shape, kind=kind, levels=0, classes=spec.classes, range=(-math.inf, math.inf))
        self.inner: Diffusion = diffusion(codes)
        if not isinstance(self.inner, Diffusion):
            raise UserError(
                f"model.diffusion is a {type(self.inner).__name__}, and no diffusion model"
            )
        self.conditional, self.samplers = self.inner.conditional, self.inner.samplers
        self.between_codes = self.inner.between_codes
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
        return self.inner.loss(Batch(self.coded(batch.x), batch.y))

    def code_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the diffusion model's loss on codes x (B, …) that the codec gave."""
        return self.inner.loss(Batch((batch.x - self.mean) / self.std, batch.y))

    # --- to the codec's codes, scaled, and back -------------------------------------------------------------------------

    @torch.no_grad()
    def coded(self, x: Tensor) -> Tensor:
        """Return the scaled codes (B, …) of items x (B, *shape)."""
        return (self.codec.encode(x) - self.mean) / self.std

    @torch.no_grad()
    def decoded(self, codes: Tensor) -> Tensor:
        """Return the items (B, *shape) of scaled codes (B, …)."""
        return self.codec.decode(codes * self.std + self.mean)

    # --- abilities: the diffusion model's, of the codes -------------------------------------------------------------------

    @wraps(Diffusion.sample)  # its options, which the command line reads off the signature
    def sample(self, n: int, y: Tensor | None = None, **how: Any) -> Tensor:
        return self.decoded(self.inner.sample(n, y, **how))

    def encode(self, x: Tensor, *, steps: int = 100) -> Tensor:
        """Return the noise (B, …), of unit variance, from which the ODE leads to the codec's code (B, …) of x (B, *shape)."""
        return self.inner.encode(self.coded(x), steps=steps)

    def decode(self, z: Tensor, *, steps: int = 100) -> Tensor:
        """Return the item (B, *shape) of the code to which the ODE leads from the noise z (B, …) of unit variance."""
        return self.decoded(self.inner.decode(z, steps=steps))

    def prior(self, n: int) -> Tensor:
        """Draw n of the noises (n, …) that `decode` takes."""
        return self.inner.prior(n)

    @wraps(Diffusion.edit)
    def edit(self, x: Tensor, strength: float, y: Tensor | None = None, **how: Any) -> Tensor:
        return self.decoded(self.inner.edit(self.coded(x), strength, y, **how))

    def noise_error(
        self, x: Tensor, y: Tensor | None = None, *, terms: int | None = None
    ) -> Tensor:
        """Return a draw (B,) of the squared error of ε on the codes of x (B, *shape), by which classes are told apart.

        As Li et al. 2023 (https://arxiv.org/abs/2303.16203) do with a latent model. See `Judging.noise_error`.
        """
        return self.inner.noise_error(self.coded(x), y, terms=terms)
