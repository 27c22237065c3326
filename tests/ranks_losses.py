"""Run by test_ranks in one process or several: train each model a few steps in float64 and print the joint losses.

One process with N shards after one another, and N processes with a shard each, must print the same. argv: the number of
shards, of steps, and the names of what to train.
"""

from __future__ import annotations

import json
import sys

import torch
from recipes import built

from genlab.training.log import Log
from genlab.training.ranks import Ranks

FAMILIES = {
    "vae": ("model=vae",),
    "dcgan": ("model=dcgan", "model.width=8", "dataset.size=16"),
    "realnvp": ("model=realnvp_points",),
    "rbm": ("model=rbm", "model.hidden=30"),
    "ddpm": ("model=ddpm_small", "dataset.size=8"),
}
# What keeps something of each shard, of the joint batch, or between steps.
KEEPERS = {
    "maf": ("model=maf_points", "model.layers=3"),
    "vq_vae": ("model=vq_vae", "model.channels=8", "model.codes=16"),
    "m2": ("model=m2", "model.hidden=[20]", "model.latent=4", "trainer.labelled=40"),
    "debias_vae": ("model=debias_vae", "model.latent=4", "model.hidden=[6]", "trainer.wait=2", "trainer.refresh=5"),
    "spectral": ("model=dcgan", "+regulariser=spectral", "model.width=8", "dataset.size=16"),
    "stylegan2": ("model=stylegan2", "model.maps=8", "model.latent=12", "model.layers=2", "model.augment=ada",
                  "trainer.penalty_every=2"),
    "cyclegan": ("model=cyclegan", "model.width=4", "model.blocks=1", "model.history=9"),
    "dbn": ("model=dbn", "model.hidden=[20,10]", "trainer.starts=[0,4]"),
}  # fmt: skip


def main(shards: int, steps: int, *names: str) -> None:
    torch.set_num_threads(1)
    ranks, found = Ranks(), {}
    for name in names:
        common = ("device=cpu", "device.precision=fp64", "device.threads=1", "trainer.batch_size=24", "out=unused")
        _, dataset, trainer = built(*(FAMILIES | KEEPERS)[name], *common, f"trainer.accumulate={shards // ranks.size}")
        log = Log(None, start=0, steps=steps, pending=[], ranks=ranks)
        batches = trainer.stream(dataset)
        for _ in range(steps):
            log.add(trainer.advance(batches))
        losses = [{k: v for k, v in step.items() if "grad" not in k} for step in log.settle(steps, "")]
        state = trainer.state()
        kept = {k: v.double().abs().mean().item() for k, v in (state["model"] | state["apart"]).items()}
        found[name] = [*losses, {k: v for k, v in kept.items() if not k.endswith(("images", "count")) or k in state["apart"]}]
    if ranks.first:
        print(json.dumps(found))
    del dataset, trainer, batches, state
    ranks.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
