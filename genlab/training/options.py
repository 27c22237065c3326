"""Options of every trainer, with types and ranges; `configs/train.yaml` lists them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genlab.spec import Count, Decay, NonNegative, Positive, PositiveFloat


@dataclass(kw_only=True)
class TrainerOptions:
    """Options that all trainers share; a family extends them in its own `Options`.

    A step is one update of the model. A batch is the joint batch of all processes.
    """

    steps: Positive = 10_000
    # "auto" is replaced by a number before a trainer is built
    batch_size: Positive | Literal["auto"] = 128
    # shards per process whose gradients are accumulated one after another, to save memory
    grad_accum_steps: Positive = 1
    # let batch normalization and other statistics of a batch see each shard by itself
    shard_statistics: bool = False
    grad_clip: NonNegative = 0.0  # maximum gradient norm; 0 disables clipping
    ema_decay: Decay = 0.0  # decay of the averaged weights that sample; 0 disables the EMA
    lr_warmup_steps: Count = 0  # steps over which the learning rate rises from 0
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, to 0
    lr_milestones: tuple[Positive, ...] = ()  # steps at which the learning rate is divided by 10
    # minutes of training, resumes included, after which the run saves and ends
    max_minutes: PositiveFloat | None = None
    log_every: Positive = 50
    preview_every: Count = 1_000  # steps between sample grids; 0 disables them
    # steps between losses on the validation split; None chooses a rate that costs less than 2 %
    validate_every: Count | None = None
    evaluate_every: Count = 0  # steps between evaluations on the validation split; 0 disables them
    save_every: Positive = 1_000
    keep_checkpoints: Positive = 3  # number of most recent checkpoints to keep
    monitor: str | None = None  # metric, as `genlab evaluate` names it, that selects best.pt
    # evaluations without improvement of `monitor` after which the run ends; 0 disables it
    patience: Count = 0
