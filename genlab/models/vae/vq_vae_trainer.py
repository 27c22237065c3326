"""Trainer of a VQ-VAE: gradient descent, then a moving-average update of the codebook."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.models.vae.vq_vae import VQVAE, codebook_perplexity
from genlab.seeding import derive_seed
from genlab.spec import Batch
from genlab.training.trainer import Trainer


class VQVAETrainer(Trainer):
    """Gradient descent on `model.loss`, with one codebook update per step.

    The codebook update uses the statistics of all shards of all ranks.
    """

    has_validation_loss = True
    model: VQVAE

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Make one update of the weights and one of the codebook."""
        model = self.model
        statistics: list[tuple[Tensor, Tensor]] = []  # per shard: counts (K,), sums (K, D)
        candidates: list[Tensor] = []  # per shard: up to K random vectors, for dead codes

        def loss(batch: Batch) -> dict[str, Tensor]:
            losses, vectors, indices = model.losses_and_assignments(batch.x)
            statistics.append(model.code_counts_and_sums(vectors, indices))
            order = torch.randperm(len(vectors), device=vectors.device)
            candidates.append(vectors[order[: len(model.codebook)]])
            return losses

        shards = self.next_batch(batches)
        logs = self.optimizer_step("model", loss, shards)
        counts = torch.stack([shard_counts for shard_counts, _ in statistics]).sum(0)
        sums = torch.stack([shard_sums for _, shard_sums in statistics]).sum(0)
        self.group.all_reduce_mean([counts, sums])
        counts, sums = counts * self.group.size, sums * self.group.size
        all_candidates = self.group.all_gather_cat(torch.cat(candidates))
        # all ranks restart the dead codes at the same vectors
        self.device.seed(derive_seed(self.seed, self.global_step))
        logs["dead_codes"] = model.update_codebook(counts, sums, all_candidates).float()
        logs["perplexity"] = codebook_perplexity(counts)
        return logs
