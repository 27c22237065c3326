"""The options of every trainer, with their types and ranges; `configs/train.yaml` shows the same list with comments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genlab.spec import Count, Decay, NonNegative, Positive, PositiveFloat


@dataclass(kw_only=True)
class Options:
    """What every trainer can be told. Steps count updates of the model; a batch is the joint one of all processes."""

    steps: Positive = 10_000
    batch_size: Positive | Literal["auto"] = (
        128  # auto: a number by the time that `build` makes a trainer
    )
    accumulate: Positive = (
        1  # shards of the batch whose gradients are summed one after another, to save memory
    )
    clip: NonNegative = 0.0  # the largest gradient norm; 0: no clipping
    ema: Decay = 0.0  # decay of the running mean of the weights, which then samples; 0: none
    warmup: Count = 0  # steps over which the learning rate rises from 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # how it falls to 0 after that
    drops: tuple[
        Positive, ...
    ] = ()  # steps from each of which on it is a tenth of what it would be
    max_time: PositiveFloat | None = (
        None  # minutes of training after which the run saves and ends, resumes counted in
    )
    log_every: Positive = 50
    preview_every: Count = 1_000  # steps between sample grids; 0: none
    evaluate_every: Count = 0  # steps between evaluations on the validation split; 0: none
    save_every: Positive = 1_000
    keep: Positive = 3  # the last checkpoints kept
    monitor: str | None = (
        None  # the metric that chooses checkpoints/best.pt, as `genlab evaluate` names it
    )
    patience: Count = 0  # evaluations without a better `monitor` after which the run ends; 0: never
