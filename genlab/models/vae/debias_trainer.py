"""The update rule of the debiasing VAE: descent on items drawn more often where the model's codes are rare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.debias_vae import resampling
from genlab.seeding import mix
from genlab.spec import Batch, Count, Positive, PositiveFloat
from genlab.training.trainer import Trainer

AT_ONCE = 1000  # items encoded at a time


class DebiasTrainer(Trainer):
    """Descent on `model.loss`; every `refresh` steps the whole training set is encoded and the items' weights set anew.

    Logged beside the losses: `share/rarest`, the share of a batch that is of the training set's rarest class;
    `classes/effective`, e to the entropy of the classes' shares under the weights: as many as there are classes, were
    they balanced; and `items/effective`, likewise of the items: low where a handful takes all the weight. They only
    watch: no weight comes from a label.
    """

    @dataclass(kw_only=True)
    class Options(Trainer.Options):
        refresh: Positive = 500  # steps between two encodings of the training set
        wait: Count = 0  # steps before the first, in which the items are drawn uniformly
        bins: Positive = 10  # of the histogram of each dimension's codes
        alpha: PositiveFloat = 0.1  # added to the density: the larger, the closer to uniform

    def configure(self) -> None:
        super().configure()
        self.weights: Tensor | None = None  # (N,) on the CPU; None: uniform

    def stream(self, data: Any, **how: Any) -> Iterator[Batch]:
        """Return batches of items drawn with the weights of the moment.

        Raises:
            UserError: the data streams from files, or has no labels.
        """
        self.data = data
        _, self.labels = data.arrays("train")
        if self.labels is None:
            raise UserError(f"{data.name} has no labels, and debias_vae learns them")
        counts = self.labels.bincount()
        self.rarest = int(torch.where(counts > 0, counts, len(self.labels) + 1).argmin())
        if self.weights is None:
            self.weights = torch.full(
                (len(self.labels),), 1 / len(self.labels), dtype=torch.float64
            )
        return super().stream(data, pick=self.pick, **how)

    def pick(self, k: int) -> Tensor:
        """Return the items of joint batch k, drawn with replacement."""
        return draw(self.weights, self.options.batch_size, seed=mix(self.seed, k))

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        late = self.at - self.options.wait
        if late >= 0 and late % self.options.refresh == 0:
            self.reweigh()
        shards = self.pull(batches)
        logs = self.descend("model", self.model.loss, shards)
        shares = torch.zeros(int(self.labels.max()) + 1, dtype=torch.float64).index_add_(
            0, self.labels, self.weights
        )
        like = logs["loss"]  # a loss's device and type
        logs["share/rarest"] = torch.stack(
            [(b.y == self.rarest).to(like).mean() for b in shards]
        ).mean()
        logs["classes/effective"] = torch.special.entr(shares).sum().exp().to(like)
        logs["items/effective"] = torch.special.entr(self.weights).sum().exp().to(like)
        return logs

    @torch.no_grad()
    def reweigh(self) -> None:
        """Set the weights from the codes that the training items have now."""
        whole = self.data.batches(
            "train", AT_ONCE, seed=self.seed, device=self.device.torch, shuffle=False
        )
        self.model.eval()
        z = torch.cat(
            [self.model.encode(batch.x) for batch in map(self.device.ready, whole)]
        )  # (N, latent)
        self.model.train()
        self.weights = resampling(z, bins=self.options.bins, alpha=self.options.alpha).cpu()
        self.ranks.average([self.weights])  # every process draws from the same

    def state(self) -> dict[str, Any]:
        return super().state() | {"weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.weights = state["weights"]


def draw(weights: Tensor, n: int, *, seed: int) -> Tensor:
    """Return n indices drawn with replacement with the weights (N,), from the seed."""
    return torch.multinomial(
        weights, n, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
