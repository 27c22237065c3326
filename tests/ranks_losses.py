"""Run by test_ranks under torchrun: train each family a few steps in float64 and print the joint losses.

One process with N shards after one another, and N processes with a shard each, must print the same.
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
    "maf": ("model=maf_points", "model.layers=3"),
    "rbm": ("model=rbm", "model.hidden=30"),
    "vq_vae": ("model=vq_vae", "model.channels=8", "model.codes=16"),
    "m2": ("model=m2", "model.hidden=[20]", "model.latent=4"),
    "debias_vae": ("model=debias_vae", "model.latent=4", "model.hidden=[6]", "trainer.wait=2", "trainer.refresh=5"),
    "ddpm": ("model=ddpm_small", "dataset.size=8"),
}
STEPS = 20


def main(shards: int) -> None:
    torch.set_num_threads(1)
    ranks, found = Ranks(), {}
    for name, overrides in FAMILIES.items():
        common = ("device=cpu", "device.precision=fp64", "device.threads=1", "trainer.batch_size=24", "out=unused")
        _, dataset, trainer = built(*overrides, *common, f"trainer.accumulate={shards // ranks.size}")
        log = Log(None, start=0, steps=STEPS, pending=[], ranks=ranks)
        batches = trainer.stream(dataset)
        for _ in range(STEPS):
            log.add(trainer.advance(batches))
        found[name] = [{k: v for k, v in step.items() if "grad" not in k} for step in log.settle(STEPS, "")]
    if ranks.first:
        print(json.dumps(found))
    del dataset, trainer, batches
    ranks.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
