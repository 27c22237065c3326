"""The update rule of reflow: descent on pairs of noise and data that the teacher made once (Liu et al. 2023, 2209.03003)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genlab.seeding import mix
from genlab.spec import Batch, Positive
from genlab.training.trainer import Trainer

CHUNK = 256  # pairs that are made together, from a seed of their own


class ReflowTrainer(Trainer):
    """Descent on `model.loss` of pairs, which are made before the first step; their classes are the training items'."""

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        pairs: Positive = 50_000  # of noise and data

    def configure(self) -> None:
        self.optimizers["model"] = self.optimizer(self.model.network.parameters())

    def stream(self, data: Any, **how: Any) -> Iterator[Batch]:
        super().stream(data, **how)  # refuses what cannot be cut before any pair is made
        return self.paired(data, how)

    def paired(self, data: Any, how: dict[str, Any]) -> Iterator[Batch]:
        if self.at == 0:
            for model in (self.model, *([self.ema.model] if self.ema else [])):
                model.start()
        labels = data.arrays("train")[1] if self.model.conditional else None
        yield from super().stream(data.coupled("train", *self.pairs(labels)), **how)

    @torch.no_grad()
    def pairs(self, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return pairs (N, 2, *shape) of what the teacher's ODE makes and the noise that it makes it of, and classes (N,)."""
        n = self.options.pairs
        y = None if labels is None else labels[torch.arange(n) % len(labels)]
        found = torch.empty(n, 2, *self.model.spec.shape)
        for at in tqdm(
            range(0, n, CHUNK), desc=f"{n:,} pairs of the teacher", leave=False, disable=None
        ):
            some = slice(at, min(at + CHUNK, n))
            noise = torch.randn(
                found[some, 1].shape, generator=torch.Generator().manual_seed(mix(self.seed, at))
            )
            told = None if y is None else y[some].to(self.device.torch)
            with self.device.autocast():
                found[some, 0] = self.model.led(noise.to(self.device.torch), told).float().cpu()
            found[some, 1] = noise
        return found, y
