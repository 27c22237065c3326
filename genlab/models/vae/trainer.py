"""Trainer of VAEs: gradient descent on a bound with an optional KL warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from genlab.models.vae.vae import VAE
from genlab.spec import Batch, Count
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer


class VAETrainer(Trainer):
    """Gradient descent on `model.loss(batch, kl_weight)`.

    `kl_weight` rises from 0 to 1 over the first `kl_warmup` steps. The trainer sets
    `model.num_train_items` to the size of the training split.
    """

    supports_fsdp = True
    has_validation_loss = True

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        # steps over which the weight of the KL term rises from 0 to 1; 0 disables the warm-up
        # (Sønderby et al. 2016)
        kl_warmup: Count = 0

    model: VAE
    options: Options

    def train_batches(self, data: Any, **kwargs: Any) -> Iterator[Batch]:
        """Return the training batches, after telling the model the number of training items."""
        self.model.num_train_items = data.size("train")
        return super().train_batches(data, **kwargs)

    def weighted_loss(self) -> Callable[[Batch], dict[str, Tensor]]:
        """Return the model's loss with the KL weight of this step."""
        if not self.options.kl_warmup:
            return self.model.loss
        kl_weight = min(1.0, (self.global_step + 1) / self.options.kl_warmup)
        return partial(self.model.loss, kl_weight=kl_weight)

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Make one update with the KL weight of this step."""
        return self.optimizer_step("model", self.weighted_loss(), self.next_batch(batches))

    def validation_loss(self, batch: Batch) -> Tensor:
        return self.weighted_loss()(batch)["loss"]
