"""Losses that are not a mean over items, on a batch whose shards are computed one by one.

Examples are the covariance of DIP-VAE, the total correlation of β-TCVAE, the mean activation of a
sparse autoencoder, and free bits. `GenerativeModel.needs_joint_batch` names these models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.nn.batch_norm import batch_norm_layers
from genlab.spec import Batch

if TYPE_CHECKING:
    from genlab.training.trainer import Trainer

Values = tuple[Tensor, ...]


class RecordedError(Exception):
    """Ends a forward pass whose values were recorded."""


class JointBatch:
    """The values that `loss` passes to `model.join_shards`, of all shards of all processes.

    They are computed without gradients first. The loss of a shard then receives the values of all
    shards, of which only its own have a gradient. For a loss F(v₁ … v_N) that gradient is scaled by
    N, so that the mean over the shards is Σᵢ ∂F/∂vᵢ · dvᵢ, the gradient of the joint batch.

    Args:
        shards: of this process.
    """

    def __init__(self, trainer: Trainer, loss: Callable[[Batch], object], shards: list[Batch]):
        self.model = trainer.model
        self.num_shards = trainer.group.size * len(shards)
        self.first = trainer.group.rank * len(shards)
        # an exception would leave the weights gathered
        self.can_stop = trainer.fsdp is None
        self.recorded: list[Values] = []
        draws = trainer.rng_draws
        for _, batch in trainer.seeded_shards(shards):
            stop = suppress(RecordedError)
            with stop, torch.no_grad(), trainer.loss_context(), self.use_joiner(self.record):
                loss(batch)
        trainer.rng_draws = draws  # the pass with gradients draws the same noise
        columns = zip(*self.recorded, strict=True)
        self.values = tuple(trainer.group.all_gather_cat(torch.cat(column)) for column in columns)

    @contextmanager
    def use_joiner(self, joiner: Callable[[Values], Values]) -> Iterator[None]:
        """Context in which the model passes the values of a shard to `joiner`."""
        self.model.shard_joiner = joiner
        try:
            yield
        finally:
            self.model.shard_joiner = None

    def record(self, values: Values) -> Values:
        """Keep the values of a shard."""
        self.recorded.append(values)
        if self.can_stop:
            raise RecordedError
        return values

    @contextmanager
    def use_shard(self, i: int) -> Iterator[None]:
        """Context in which the model computes the loss of this process's shard i."""

        def join(values: Values) -> Values:
            joined = []
            for own, everything in zip(values, self.values, strict=True):
                start = (self.first + i) * len(own)
                scaled = own.detach() + self.num_shards * (own - own.detach())
                joined.append(
                    torch.cat([everything[:start], scaled, everything[start + len(own) :]])
                )
            return tuple(joined)

        with self.use_joiner(join):
            yield


def batch_dependencies(model: GenerativeModel) -> list[str]:
    """Return what makes the result of an item depend on its shard, which no pass can join."""
    found = ["batch normalization"] if batch_norm_layers(model) else []
    for module in model.modules():
        reason = getattr(module, "depends_on_batch", None)
        if isinstance(reason, str):
            found.append(reason)
    return list(dict.fromkeys(found))


def refuse_shards_of_batch_statistics(
    model: GenerativeModel, *, processes: int, grad_accum_steps: int
) -> None:
    """Refuse to compute a batch in shards if the result would be that of smaller batches.

    Raises:
        UserError: says what to set.
    """
    found = batch_dependencies(model)
    if not found or processes * grad_accum_steps == 1:
        return
    parts = [f"{processes} processes"] if processes > 1 else []
    if grad_accum_steps > 1:
        parts.append(f"trainer.grad_accum_steps={grad_accum_steps}")
    raise UserError(
        f"{' and '.join(parts)} cut a batch into shards, and {type(model).__name__} has "
        f"{' and '.join(found)}, which would see each shard by itself instead of the whole batch; "
        "set trainer.shard_statistics=true to accept that, as with PyTorch's DDP"
    )
