"""Trainer of the debiasing VAE: oversamples the items whose codes are rare."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.vae.debias_vae import DebiasVAE, resampling_weights
from genlab.seeding import derive_seed
from genlab.spec import Batch, Count, Positive, PositiveFloat
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer
from genlab.untrusted.states import check_probabilities

ENCODE_BATCH_SIZE = 1000
FEW_EFFECTIVE_ITEMS = 10  # if fewer items fill the batches, the network learns these by heart


class DebiasTrainer(Trainer):
    """Gradient descent on `model.loss` with batches drawn by resampling weights.

    Every `resample_every` steps the whole training set is encoded and the weights are updated.

    Three numbers are logged beside the losses. They are computed from labels, but the weights are
    not:
        share/rarest: fraction of the batch from the rarest class of the training set.
        classes/effective: exp of the entropy of the class shares under the weights; it equals the
            number of classes if they are balanced.
        items/effective: the same for items; it is low if a few items take all the weight.
    """

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        resample_every: Positive = 500  # steps between two updates of the weights
        resample_after: Count = 0  # first step that updates them; until then they are uniform
        num_bins: Positive = 10  # bins of the histogram of each code dimension
        alpha: PositiveFloat = 0.1  # added to the density; a larger value is closer to uniform

    model: DebiasVAE
    options: Options
    item_weights: Tensor | None  # (N,) on the CPU; None before the first stream: uniform
    labels: Tensor  # (N,)

    def configure(self) -> None:
        """Create the optimizer; the weights are uniform."""
        super().configure()
        self.item_weights = None
        self.has_noted_few_items = False

    def train_batches(self, data: Any, **kwargs: Any) -> Iterator[Batch]:
        """Return batches of items drawn with the weights at that time.

        Raises:
            UserError: the data is streamed from files, or does not have labels.
        """
        self.data = data
        _, labels = data.raw_items_and_labels("train")
        if labels is None:
            raise UserError(f"debias_vae requires labels, but {data.name} has none; use model=vae")
        self.labels = labels
        if self.item_weights is not None and len(self.item_weights) != len(labels):
            raise UserError(
                f"the run has resampling weights of {len(self.item_weights):,} items, and "
                f"{data.name} has {len(labels):,} training items"
            )
        counts = labels.bincount()
        self.rarest_class = int(torch.where(counts > 0, counts, len(labels) + 1).argmin())
        if self.item_weights is None:
            n = len(labels)
            self.item_weights = torch.full((n,), 1 / n, dtype=torch.float64)
        return super().train_batches(data, index_fn=self.draw_batch_indices, **kwargs)

    def draw_batch_indices(self, k: int) -> Tensor:
        """Return the item indices of joint batch k, drawn with replacement.

        It updates the weights first if it is time. A step takes one batch, so k is the number of
        its step. The update belongs to the draw: the loop draws the first batch of a start or a
        resume before its step.
        """
        since_start = k - self.options.resample_after
        if since_start >= 0 and since_start % self.options.resample_every == 0:
            self.update_item_weights()
        assert self.item_weights is not None
        return draw_weighted_indices(
            self.item_weights, self.batch_size, seed=derive_seed(self.seed, k)
        )

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Make one update with a batch of the present weights."""
        shards = self.next_batch(batches)
        assert self.item_weights is not None
        logs = self.optimizer_step("model", self.model.loss, shards)
        class_shares = torch.zeros(int(self.labels.max()) + 1, dtype=torch.float64)
        class_shares.index_add_(0, self.labels, self.item_weights)
        like = logs["loss"]  # has the device and dtype of the logs
        shares = []
        for batch in shards:
            assert batch.y is not None
            shares.append((batch.y == self.rarest_class).to(like).mean())
        logs["share/rarest"] = torch.stack(shares).mean()
        logs["classes/effective"] = torch.special.entr(class_shares).sum().exp().to(like)
        logs["items/effective"] = torch.special.entr(self.item_weights).sum().exp().to(like)
        return logs

    @torch.no_grad()
    def update_item_weights(self) -> None:
        """Encode the training set with the current model and set the resampling weights."""
        batches = self.data.batches(
            "train", ENCODE_BATCH_SIZE, seed=self.seed, device=self.device.torch, shuffle=False
        )
        was_training = self.model.training
        self.model.eval()
        codes = [self.model.encode(batch.x) for batch in map(self.device.to_device, batches)]
        self.model.train(was_training)
        z = torch.cat(codes)  # (N, latent)
        weights = resampling_weights(z, num_bins=self.options.num_bins, alpha=self.options.alpha)
        self.item_weights = weights.cpu()
        self.group.all_reduce_mean([self.item_weights])  # all ranks draw with the same weights

    def diagnose(self, means: dict[str, float]) -> list[str]:
        """Return a note at the first logged mean with a handful of effective items."""
        effective = means.get("items/effective", math.inf)
        if effective >= FEW_EFFECTIVE_ITEMS or self.has_noted_few_items:
            return []
        self.has_noted_few_items = True
        return [
            f"few items fill the batches: {effective:.1f} effective items of {len(self.labels):,}; "
            f"try trainer.alpha={10 * self.options.alpha:g} or "
            f"model.latent={max(1, self.model.latent // 2)}"
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the resampling weights."""
        own = {"weights": self.item_weights, "has_noted_few_items": self.has_noted_few_items}
        return super().state_dict() | own

    def check_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a loaded state that fits, with the resampling weights."""
        weights = state.get("weights")
        if weights is not None:
            check_probabilities(weights, "weights")
        return super().check_state({**state, "weights": weights})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state`, with the resampling weights."""
        super().load_state_dict(state)
        self.item_weights = state["weights"]
        self.has_noted_few_items = bool(state.get("has_noted_few_items"))


def draw_weighted_indices(weights: Tensor, n: int, *, seed: int) -> Tensor:
    """Return n indices drawn with replacement in proportion to the weights (N,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(weights, n, replacement=True, generator=generator)
