"""The update rule of reflow: gradient descent on pairs of noise and data from a teacher.

Liu et al. 2023, 2209.03003.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.console import track
from genlab.models.diffusion.rectified_flow import RectifiedFlow
from genlab.seeding import derive_seed
from genlab.spec import Batch, Positive
from genlab.training.options import TrainerOptions
from genlab.training.trainer import Trainer

PAIRS_PER_CHUNK = 256  # pairs that are produced together, with a seed of their own


class ReflowTrainer(Trainer):
    """Gradient descent on `model.loss` of pairs, which are produced before the first step.

    Their classes are those of the training items.
    """

    @dataclass(kw_only=True)
    class Options(TrainerOptions):
        num_pairs: Positive = 50_000  # pairs of noise and data

    options: Options
    model: RectifiedFlow

    def configure(self) -> None:
        self.optimizers["model"] = self.make_optimizer(self.model.network.parameters())

    def train_batches(self, data: Any, **options: Any) -> Iterator[Batch]:
        # raises an error for invalid options before any pair is produced
        super().train_batches(data, **options)
        return self.teacher_pair_batches(data, options)

    def teacher_pair_batches(self, data: Any, options: dict[str, Any]) -> Iterator[Batch]:
        """Yield training batches of the teacher's pairs."""
        if self.global_step == 0:
            for model in (self.model, self.ema and self.ema.model):
                if isinstance(model, RectifiedFlow):
                    model.init_from_teacher()
        labels = data.raw_items_and_labels("train")[1] if self.model.conditional else None
        pairs = data.make_paired_dataset("train", *self.generate_teacher_pairs(labels))
        yield from super().train_batches(pairs, **options)

    @torch.no_grad()
    def generate_teacher_pairs(self, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return pairs (N, 2, *shape) of items and their noise, and classes (N,).

        Args:
            labels: classes (M,) of the training items; None for an unconditional model.
        """
        n = self.options.num_pairs
        y = None if labels is None else labels[torch.arange(n) % len(labels)]
        pairs = torch.empty(n, 2, *self.model.spec.shape)
        starts = track(range(0, n, PAIRS_PER_CHUNK), "pairs of the teacher", unit="chunks")
        for start in starts:
            chunk = slice(start, min(start + PAIRS_PER_CHUNK, n))
            generator = torch.Generator().manual_seed(derive_seed(self.seed, start))
            noise = torch.randn(pairs[chunk, 1].shape, generator=generator)
            classes = None if y is None else y[chunk].to(self.device.torch)
            z = noise.to(self.device.torch, self.model.any_parameter.dtype)
            with self.device.autocast():
                items = self.model.teacher_samples(z, classes)
            pairs[chunk, 0] = items.float().cpu()
            pairs[chunk, 1] = noise
        return pairs, y
