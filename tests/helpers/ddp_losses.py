"""Run by test_ddp in one or several processes: train models and print the joint losses.

One process with N shards per batch, and N processes with one shard each, must print the same.

Arguments: the number of shards, the number of steps, and names of MODELS; name+overlap sends
gradients during the backward pass, name+fsdp shards the model, and recipe+recipe trains a small
version of any recipe.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import torch
from helpers.recipes import build_training_objects, small_overrides

from genlab.abilities import abilities
from genlab.distributed.gradient_buckets import GradientBuckets
from genlab.distributed.process_group import ProcessGroup
from genlab.training import trainer as training
from genlab.training.logger import Logger

MODELS = {
    # the five families
    "vae": ("model=vae",),
    "dcgan": ("model=dcgan", "model.width=8", "dataset.size=16"),
    "realnvp": ("model=realnvp_points",),
    "rbm": ("model=rbm", "model.hidden=30"),
    "ddpm": ("model=ddpm_small", "dataset.size=8", "model.timesteps=100", "trainer.ema_decay=0.9"),
    # models with state per shard, per joint batch, or between steps
    "maf": ("model=maf_points", "model.num_layers=3"),
    "dbn": ("model=dbn", "model.hidden=[20,10]", "trainer.stage_starts=[0,2]"),
    "m2": ("model=m2", "model.hidden=[20]", "model.latent=4", "trainer.labeled_batch_size=40"),
    "vq_vae": ("model=vq_vae", "model.channels=8", "model.num_codes=16"),
    "debias_vae": (
        "model=debias_vae",
        "model.latent=4",
        "model.hidden=[6]",
        "trainer.resample_after=2",
        "trainer.resample_every=5",
    ),
    "spectral": ("model=dcgan", "+regularizer=spectral_norm", "model.width=8", "dataset.size=16"),
    "stylegan2": (
        "model=stylegan2",
        "model.channel_max=8",
        "model.latent=12",
        "model.num_mapping_layers=2",
        "model.augment=ada",
        "trainer.lazy_reg_interval=2",
    ),
    "cyclegan": ("model=cyclegan", "model.width=4", "model.num_blocks=1", "model.history_size=9"),
    # a transformer
    "gpt": (
        "model=gpt_text",
        "dataset=text",
        f"dataset.path={__file__}",
        "model.width=16",
        "model.num_layers=2",
        "model.num_heads=2",
        "trainer.ema_decay=0.9",
    ),
}
# Number of steps after which rounding errors are no longer small: weights that differ by 1e-16 give
# losses that differ by 1e-11 after 5 steps, and by 7e-9 after 8.
# The recipe's maps of 2×2 pixels, whose variance can be tiny, multiply them by 1,000 in each step.
MAX_STEPS = {"cyclegan": 5, "cyclegan+recipe": 3}
COMMON = (
    "device=cpu",
    "device.precision=fp64",
    "device.threads=1",
    "trainer.batch_size=24",
    "trainer.log_every=1",
    "trainer.shard_statistics=true",
    "out=unused",
)


class SmallOverlappingBuckets(GradientBuckets):
    """Many small messages, sent during the backward pass."""

    def __init__(self, parameters, group, *, overlap):
        super().__init__(parameters, group, overlap=True, bucket_bytes=5000)


def recipe_words(recipe: str) -> list[str]:
    """Return the overrides of a small version of a recipe, without those of COMMON."""
    common = {word.partition("=")[0] for word in COMMON}
    words = [w for w in small_overrides(recipe) if w.partition("=")[0] not in common]
    return [*words, "trainer.labeled_batch_size=48"] if recipe == "m2" else words


def train(name: str, shards: int, steps: int, group: ProcessGroup) -> list[dict[str, float]]:
    """Return the joint losses of each step, and last a summary of the checkpoint."""
    model, _, mode = name.partition("+")
    steps = min(steps, MAX_STEPS.get(name, MAX_STEPS.get(model, steps)))
    training.GradientBuckets = SmallOverlappingBuckets if mode == "overlap" else GradientBuckets
    fsdp = f"device.fsdp={str(mode == 'fsdp').lower()}"
    grad_accum_steps = f"trainer.grad_accum_steps={shards // group.size}"
    words = recipe_words(model) if mode == "recipe" else MODELS[model]
    _, dataset, trainer = build_training_objects(*words, *COMMON, fsdp, grad_accum_steps)
    if trainer.fsdp:
        parameters = list(trainer.model.parameters())
        local_size = sum(p.to_local().numel() for p in parameters)
        assert local_size < 0.6 * sum(p.numel() for p in parameters)
        assert "sample" in abilities(trainer.model)
    logger = Logger(None, start=0, steps=steps, unlogged=[], group=group)
    batches = trainer.train_batches(dataset)
    for _ in range(steps):
        logger.add_losses(trainer.train_step(batches))
    losses = logger.resolve_losses(steps, "")
    trainer.load_state_dict(group.broadcast(trainer.state_dict()))
    state = trainer.state_dict()  # on every rank
    return [*losses, summarize_state(state)] if group.is_main else []


def summarize_state(state: dict) -> dict[str, float]:
    """Return the sum of absolute values of every tensor in a checkpoint."""
    # the history of a shard is stored in per_shard_buffers
    tensors = {f"model/{k}": v for k, v in state["model"].items() if not k.startswith("history.")}
    tensors |= {f"per_shard/{k}": v for k, v in state["per_shard_buffers"].items()}
    tensors |= {f"ema/{k}": v for k, v in (state["ema"] or {}).items()}
    for name, optimizer in state["optimizers"].items():
        for i, moments in optimizer["state"].items():
            tensors |= {f"{name}/{i}/{k}": v for k, v in moments.items()}
    return {name: tensor.double().abs().sum().item() for name, tensor in tensors.items()}


def average_uneven_gradients(shards: int, group: ProcessGroup) -> list[list[float]]:
    """Return the mean gradients of weights that all shards use, one uses, or none."""
    results, num_local = [], shards // group.size
    specs = ((3, "float64"), (2, "float64"), (4, "float64"), (2, "float32"), (5, "float64"))
    for overlap in (False, True):
        weights = [
            torch.ones(n, dtype=getattr(torch, dtype), requires_grad=True) for n, dtype in specs
        ]
        buckets = GradientBuckets(weights, group, overlap=overlap, bucket_bytes=40)
        for _ in range(2):
            for w in weights:
                w.grad = None
            for i in range(num_local):
                x = torch.full((), 1.0 + group.rank * num_local + i)
                loss = (
                    (weights[0] * x).sum()
                    + (weights[3] * x.float()).sum()
                    + (weights[4].square() * x).sum()
                )
                loss = loss + (weights[1] * x).sum() if x == shards else loss
                with buckets.average_gradients() if i == num_local - 1 else nullcontext():
                    (loss / num_local).backward(inputs=weights)
            grads = [w.grad for w in weights if w.grad is not None]
            results.append([value for grad in grads for value in grad.tolist()])
    return results


def train_models(shards: int, steps: int, names: list[str], group: ProcessGroup) -> dict[str, list]:
    """Return the numbers to compare, by name."""
    return {
        name: average_uneven_gradients(shards, group)
        if name == "uneven"
        else train(name, shards, steps, group)
        for name in names
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    group = ProcessGroup()
    numbers = train_models(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:], group)
    if group.is_main:
        print(json.dumps(numbers))
    group.close()
