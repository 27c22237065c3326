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
        self.codes: Any = (
            None  # made when a stream is first asked for, by whoever checks it before the training
        )

    def stream(self, data: Any, **how: Any) -> Iterator[Batch]:
        if self.codes is None:
            self.codes = data.mapped("train", self.model.codec.encode, device=self.device)
        if self.at == 0:
            for model in (self.model, *([self.ema.model] if self.ema else [])):
                model.standardise(self.codes.arrays("train")[0])
        return super().stream(self.codes, **how)

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.codes = None  # those were another codec's

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        return self.descend("model", self.model.code_loss, self.pull(batches))
