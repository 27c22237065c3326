"""Every recipe of configs/model/, composed and built as the command line does it, on data that needs no file."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from genlab import build, objects
from genlab.tasks.parts import built_around, part_of

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml"))
FLAGSHIPS = ["vae", "gan", "dcgan", "realnvp", "realnvp_points", "rbm", "ddpm_small", "ddpm_points"]
SMALL = ("trainer.batch_size=8", "device=cpu", "out=unused")


def composed(*overrides: str) -> dict:
    """Return what `genlab train <overrides>` would train from, as plain values."""
    return deepcopy(composed_once(*overrides))


@cache
def composed_once(*overrides: str) -> dict:
    config = typed(*overrides)
    if name := part_of(config):  # as `with_part` has it, but untrained
        data = [o for o in overrides if o.split("=")[0].split(".")[0] in ("dataset", "prepare")]
        config = built_around(config, composed(*config[name]["train"], *data, "out=unused"), name)
    return config


def typed(*overrides: str) -> dict:
    """Return the config of `genlab train <overrides>` before another run's model is put into it."""
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("genlab.stamp", lambda: "stamp", replace=True)
    OmegaConf.register_new_resolver("genlab.folder", lambda *names: "-".join(names), replace=True)
    with initialize_config_module("genlab.configs", version_base="1.3"):
        return build.plain(compose("train", overrides=list(overrides)))


def built(*overrides: str):
    """Return (config, dataset, trainer) of `genlab train <overrides>`."""
    config = composed(*overrides)
    device = objects.make_device(config["device"], seed=config["seed"])
    dataset = objects.make_dataset(config)
    return config, dataset, objects.make_trainer(config, objects.make_model(config, dataset.spec), device)


def same(a: object, b: object) -> bool:
    """Whether two states are equal bit for bit, whatever they nest."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
