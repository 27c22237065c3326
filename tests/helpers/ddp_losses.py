"""Run by test_ranks in one process or several: train models a few steps in float64 and print the joint losses.

One process with N shards after one another, and N processes with a shard each, must print the same. argv: the number of
shards, of steps, and names of what to train; name+early sends gradients while the backward runs, name+fsdp cuts the model.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import torch
from helpers.recipes import built

from genlab.abilities import abilities
from genlab.distributed.gradient_buckets import Buckets
from genlab.distributed.process_group import Ranks
from genlab.training import trainer as training
from genlab.training.logger import Log

MODELS = {
    # the five families
    "vae": ("model=vae",),
    "dcgan": ("model=dcgan", "model.width=8", "dataset.size=16"),
    "realnvp": ("model=realnvp_points",),
    "rbm": ("model=rbm", "model.hidden=30"),
    "ddpm": ("model=ddpm_small", "dataset.size=8", "model.timesteps=100", "trainer.ema=0.9"),
    # what keeps something of a shard, of the joint batch, or between steps
    "maf": ("model=maf_points", "model.layers=3"),
    "dbn": ("model=dbn", "model.hidden=[20,10]", "trainer.starts=[0,2]"),
    "m2": ("model=m2", "model.hidden=[20]", "model.latent=4", "trainer.labelled=40"),
    "vq_vae": ("model=vq_vae", "model.channels=8", "model.codes=16"),
    "debias_vae": ("model=debias_vae", "model.latent=4", "model.hidden=[6]", "trainer.wait=2", "trainer.refresh=5"),
    "spectral": ("model=dcgan", "+regulariser=spectral", "model.width=8", "dataset.size=16"),
    "stylegan2": ("model=stylegan2", "model.maps=8", "model.latent=12", "model.layers=2", "model.augment=ada",
                  "trainer.penalty_every=2"),
    "cyclegan": ("model=cyclegan", "model.width=4", "model.blocks=1", "model.history=9"),
    # a transformer
    "gpt": ("model=gpt_text", "dataset=text", f"dataset.path={__file__}", "model.width=16", "model.layers=2", "model.heads=2",
            "trainer.ema=0.9"),
}  # fmt: skip
# Steps after which rounding is no longer small: weights 1e-16 apart give losses 1e-11 apart after 5 steps and 7e-9 after 8
SHORT = {"cyclegan": 5}
COMMON = (
    "device=cpu",
    "device.precision=fp64",
    "device.threads=1",
    "trainer.batch_size=24",
    "trainer.log_every=1",
    "out=unused",
)


class Eager(Buckets):
    """Many small messages, sent while the backward runs."""

    def __init__(self, parameters, ranks, *, early):
        super().__init__(parameters, ranks, early=True, size=5000)


def train(name: str, shards: int, steps: int, ranks: Ranks) -> list[dict[str, float]]:
    """Return the joint losses of each step, and last the sizes of all that a checkpoint holds and gives back."""
    model, _, how = name.partition("+")
    steps = min(steps, SHORT.get(model, steps))
    training.Buckets = Eager if how == "early" else Buckets
    fsdp = f"device.fsdp={str(how == 'fsdp').lower()}"
    _, dataset, trainer = built(
        *MODELS[model], *COMMON, fsdp, f"trainer.accumulate={shards // ranks.size}"
    )
    if trainer.fsdp:
        mine = sum(p.to_local().numel() for p in trainer.model.parameters())
        assert mine < 0.6 * sum(
            p.numel() for p in trainer.model.parameters()
        ) and "sample" in abilities(trainer.model)
    log = Log(None, start=0, steps=steps, pending=[], ranks=ranks)
    batches = trainer.stream(dataset)
    for _ in range(steps):
        log.add(trainer.advance(batches))
    losses = log.settle(steps, "")
    trainer.load(ranks.share(trainer.state()))
    state = trainer.state()
    held = {
        f"model/{k}": v for k, v in state["model"].items() if not k.startswith("history.")
    }  # a shard's own, held apart
    held |= {f"apart/{k}": v for k, v in state["apart"].items()} | {
        f"ema/{k}": v for k, v in (state["ema"] or {}).items()
    }
    for name, optimizer in state["optimizers"].items():
        held |= {
            f"{name}/{i}/{k}": v for i, one in optimizer["state"].items() for k, v in one.items()
        }
    return (
        [*losses, {k: v.double().abs().sum().item() for k, v in held.items()}]
        if ranks.first
        else []
    )


def uneven(shards: int, ranks: Ranks) -> list[list[float]]:
    """Return the mean gradients of weights that all shards use, one, none, and one of another type."""
    found, local = [], shards // ranks.size
    for early in (False, True):
        weights = [torch.ones(n, dtype=dtype, requires_grad=True) for n, dtype in ((3, torch.float64), (2, torch.float64),
                   (4, torch.float64), (2, torch.float32), (5, torch.float64))]  # fmt: skip
        buckets = Buckets(weights, ranks, early=early, size=40)
        for _ in range(2):
            for w in weights:
                w.grad = None
            for i in range(local):
                x = torch.full((), 1.0 + ranks.rank * local + i)
                loss = (
                    (weights[0] * x).sum()
                    + (weights[3] * x.float()).sum()
                    + (weights[4].square() * x).sum()
                )
                loss = loss + (weights[1] * x).sum() if x == shards else loss
                with buckets.averaging() if i == local - 1 else nullcontext():
                    (loss / local).backward(inputs=weights)
            found.append([v for w in weights for v in ([] if w.grad is None else w.grad.tolist())])
    return found


def found(shards: int, steps: int, names: list[str], ranks: Ranks) -> dict[str, list]:
    return {
        name: uneven(shards, ranks) if name == "uneven" else train(name, shards, steps, ranks)
        for name in names
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    together = Ranks()
    numbers = found(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:], together)
    if together.first:
        print(json.dumps(numbers))
    together.close()
