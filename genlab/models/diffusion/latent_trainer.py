"""The update rule of latent diffusion: descent on codes that were made once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from genlab.spec import Batch
from genlab.training.trainer import Trainer


class LatentTrainer(Trainer):
    """Descent on `model.code_loss(batch)`: the codec encodes the training items once, mirrored ones too, and stays as it is."""

    def configure(self) -> None:
        self.optimizers["model"] = self.optimizer(self.model.inner.parameters())

    def stream(self, data: Any, **how: Any) -> Iterator[Batch]:
        codes = data.mapped("train", self.model.codec.encode, device=self.device)
        if self.at == 0:
            for model in (self.model, *([self.ema.model] if self.ema else [])):
                model.standardise(codes.arrays("train")[0])
        return super().stream(codes, **how)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        return self.descend("model", self.model.code_loss, self.pull(batches))
