"""The update rule of a VQ-VAE: one descent, then the codebook's running means over the joint batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.models.vae.vq_vae import perplexity
from genlab.seeding import mix
from genlab.spec import Batch
from genlab.training.trainer import Trainer


class CodebookTrainer(Trainer):
    """Descent on `model.loss`, with the codebook moved once an update by the statistics of all shards of all processes."""

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        model, found, heads = self.model, [], []

        def loss(batch: Batch) -> dict[str, Tensor]:
            losses, vectors, index = model.objective(batch.x)
            found.append(model.statistics(vectors, index))
            heads.append(
                vectors[torch.randperm(len(vectors), device=vectors.device)[: len(model.codebook)]]
            )
            return losses

        shards = self.pull(batches)
        logs = self.descend("model", loss, shards)
        n, total = (torch.stack(part).sum(0) for part in zip(*found, strict=True))  # (K,), (K, D)
        self.ranks.average([n, total])
        n, total = n * self.ranks.size, total * self.ranks.size
        candidates = self.ranks.gather(torch.cat(heads))
        self.device.seed(mix(self.seed, self.at))  # every process revives the same codes
        logs["dead"] = model.update(n, total, candidates).float()
        logs["perplexity"] = perplexity(n)
        return logs
