"""Latent diffusion: a diffusion model of a trained autoencoder's codes.

Rombach et al. 2022, 2112.10752.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.abilities import Report, TrajectoryState, abilities
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.diffusion.base import Diffusion
from genlab.spec import Batch, DataSpec


class LatentDiffusion(GenerativeModel):
    """A frozen autoencoder and a diffusion model of its scaled codes (section 3.3).

    Codes are scaled to unit variance. A code is the codec's code without noise. For a VAE this is
    the mean of the posterior, which its decoder turns into the reconstruction. (The authors' code
    draws from a posterior whose variance is close to 0, with a KL term of weight 1e-6.)

    Args:
        codec: builds the autoencoder, a model with `encode` and `decode`; `codec.run` names its
            run.
        diffusion: builds the model of the codes.

    Raises:
        UserError: the codec is missing, or it does not encode and decode.
    """

    samples_are_means = True

    step_by_step = True
    differentiable = False  # as in the diffusion model
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        diffusion: Callable[..., Any],
        codec: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if codec is None:
            raise UserError(
                "ldm needs a trained codec: "
                "set codec.run=<run folder> of a model that encodes and decodes"
            )
        self.spec, self.codec = spec, codec(spec).requires_grad_(False).eval()
        if not {"encode", "decode"} <= abilities(self.codec):
            raise UserError(
                f"{type(self.codec).__name__} cannot be a codec, because it does not encode and "
                "decode; choose another codec.run"
            )
        with torch.no_grad():
            shape = tuple(self.codec.encode(torch.zeros(1, *spec.shape)).shape[1:])
        code_spec = DataSpec(
            shape,
            kind="image" if len(shape) == 3 else "points",
            levels=0,
            num_classes=spec.num_classes,
            range=(-math.inf, math.inf),
        )
        self.diffusion: Diffusion = diffusion(code_spec)
        if not isinstance(self.diffusion, Diffusion):
            raise UserError(
                f"model.diffusion must be a diffusion model, not {type(self.diffusion).__name__}"
            )
        self.conditional, self.samplers = self.diffusion.conditional, self.diffusion.samplers
        self.latent_interpolation: Literal["linear", "spherical"] = (
            self.diffusion.latent_interpolation
        )
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the diffusion model's mode; the codec always stays in eval mode."""
        super().train(mode)
        self.codec.eval()
        return self

    def fit_code_statistics(self, codes: Tensor) -> None:
        """Set the mean and standard deviation that scale all codes to those of codes (N, …)."""
        self.mean.copy_(codes.mean())
        self.std.copy_(codes.std())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the diffusion model's loss on the codes of a batch's items."""
        return self.diffusion.loss(Batch(self.encode_to_scaled_codes(batch.x), batch.y))

    def loss_on_codes(self, batch: Batch) -> dict[str, Tensor]:
        """Return the diffusion model's loss on unscaled codes x (B, …)."""
        return self.diffusion.loss(Batch((batch.x - self.mean) / self.std, batch.y))

    # --- the scaled codes of the codec ------------------------------------------------------------

    @torch.no_grad()
    def encode_to_scaled_codes(self, x: Tensor) -> Tensor:
        """Return the scaled codes (B, …) of items x (B, *shape)."""
        codes: Tensor = (self.codec.encode(x) - self.mean) / self.std
        return codes

    @torch.no_grad()
    def decode_scaled_codes(self, codes: Tensor) -> Tensor:
        """Return the items (B, *shape) of scaled codes (B, …)."""
        x: Tensor = self.codec.decode(codes * self.std + self.mean)
        return x

    # --- abilities: those of the diffusion model, on codes ----------------------------------------

    @wraps(Diffusion.sample)  # the command line reads the options off the signature
    def sample(self, n: int, y: Tensor | None = None, **sampler: Any) -> Tensor:
        return self.decode_scaled_codes(self.diffusion.sample(n, y, **sampler))

    def trajectory(
        self,
        report: Report,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        **sampler: Any,
    ) -> Tensor:
        """Draw n items (n, *shape) as `sample` does, and report the noisy codes, decoded."""
        codes = self.diffusion.trajectory(
            self.make_decoded_report(report), n, y, start=start, **sampler
        )
        return self.decode_scaled_codes(codes)

    def forward_trajectory(self, report: Report, x: Tensor, *, steps: int | None = None) -> None:
        """Report the noisy codes of items x (n, *shape), decoded."""
        codes = self.encode_to_scaled_codes(x)
        self.diffusion.forward_trajectory(self.make_decoded_report(report), codes, steps=steps)

    def make_decoded_report(self, report: Report) -> Report:
        """Return the function that reports states of codes as the items that they decode to."""

        def report_decoded(state: TrajectoryState) -> None:
            guess = None if state.guess is None else self.decode_scaled_codes(state.guess)
            report(replace(state, x=self.decode_scaled_codes(state.x), guess=guess))

        return report_decoded

    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the unit-variance noise (B, …) that the ODE maps to the code of x."""
        return self.diffusion.encode(self.encode_to_scaled_codes(x), steps=steps)

    def decode(self, z: Tensor, *, steps: int = 100) -> Tensor:
        """Return the item (B, *shape) of the code to which the ODE maps the noise z (B, …)."""
        return self.decode_scaled_codes(self.diffusion.decode(z, steps=steps))

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n of the noises (n, …) that `decode` takes; they do not depend on the classes y."""
        return self.diffusion.prior(n, y)

    @wraps(Diffusion.edit)
    def edit(self, x: Tensor, strength: float, y: Tensor | None = None, **sampler: Any) -> Tensor:
        return self.decode_scaled_codes(
            self.diffusion.edit(self.encode_to_scaled_codes(x), strength, y, **sampler)
        )

    def eps_mse(
        self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None
    ) -> Tensor:
        """Return an estimate (B,) of the squared error of ε on the codes of x (B, *shape).

        Li et al. 2023 (https://arxiv.org/abs/2303.16203) classify with it in the same way. See
        `genlab.models.diffusion.likelihood.LikelihoodMixin.eps_mse`.
        """
        return self.diffusion.eps_mse(self.encode_to_scaled_codes(x), y, num_terms=num_terms)
