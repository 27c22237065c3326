"""The update rule of a two-player game: Algorithm 1 of Goodfellow et al. 2014."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from genlab.spec import Batch, Positive
from genlab.training.trainer import Trainer


class GANTrainer(Trainer):
    """k updates of D on fresh batches, then one of G, on a model with `discriminator_loss` and `generator_loss`."""

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        k: Positive = 1  # updates of D for each of G

    def configure(self) -> None:
        self.optimizers["discriminator"] = self.optimizer(self.model.discriminator.parameters())
        self.optimizers["generator"] = self.optimizer(self.model.generator.parameters())

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        # (1) update D, k times: maximise log D(x) + log(1 − D(G(z)))
        for _ in range(self.options.k):
            shards = self.pull(batches)
            d = self.descend("discriminator", self.model.discriminator_loss, shards)
        # (2) update G: make D believe its samples
        g = self.descend("generator", self.model.generator_loss, shards)
        return {"loss/discriminator": d.pop("loss"), "loss/generator": g.pop("loss"), **d, **g}
