"""The update rule of latent diffusion: gradient descent on codes that are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genlab.models.diffusion.latent_diffusion import LatentDiffusion
from genlab.spec import Batch
from genlab.training.trainer import Trainer


class LatentTrainer(Trainer):
    """Gradient descent on `model.loss_on_codes(batch)` with a frozen codec.

    The codec encodes the training items once, including their mirror images if the data is flipped.
    """

    has_validation_loss = True
    model: LatentDiffusion

    def configure(self) -> None:
        self.optimizers["model"] = self.make_optimizer(self.model.diffusion.parameters())
        # encoded at the first request for batches, which may be a check before the training
        self.codes: Any = None

    def train_batches(self, data: Any, **options: Any) -> Iterator[Batch]:
        if self.codes is None:
            self.codes = data.map_split("train", self.model.codec.encode, device=self.device)
        if self.global_step == 0:
            codes = self.codes.raw_items_and_labels("train")[0]
            for model in (self.model, self.ema and self.ema.model):
                if isinstance(model, LatentDiffusion):
                    model.fit_code_statistics(codes)
        return super().train_batches(self.codes, **options)

    def validation_items(self, data: Any, n: int) -> Batch:
        """Return the codes of n held-out items."""
        batch = self.device.to_device(super().validation_items(data, n))
        parts = [self.model.codec.encode(x) for x in batch.x.split(self.batch_size)]
        return Batch(torch.cat(parts), batch.y)

    def validation_loss(self, batch: Batch) -> Tensor:
        return self.model.loss_on_codes(batch)["loss"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.codes = None  # they were computed with another codec

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        return self.optimizer_step("model", self.model.loss_on_codes, self.next_batch(batches))
