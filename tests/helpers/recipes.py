"""Compose and build the recipes of configs/model/ as the command line does."""

from __future__ import annotations

import hashlib
import os
import pickle
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from genlab.builders import factory, train
from genlab.builders.pretrained import insert_pretrained_config, pretrained_part_name
from genlab.fileio import atomic_write

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml"))
FLAGSHIPS = ["vae", "gan", "dcgan", "realnvp", "realnvp_points", "rbm", "ddpm_small", "ddpm_points"]
# A small batch on the CPU; `out` is never written.
FAST_OVERRIDES = ("trainer.batch_size=8", "device=cpu", "out=unused")


def compose_config(*overrides: str) -> dict:
    """Return the full config of `genlab train <overrides>` as plain values."""
    return deepcopy(compose_config_cached(*overrides))


@cache
def compose_config_cached(*overrides: str) -> dict:
    """Return a composed config; the processes of a test session share them as files."""
    if "GENLAB_CACHE" not in os.environ:
        return compose_with_part(*overrides)
    name = hashlib.sha256("\0".join(overrides).encode()).hexdigest()
    file = Path(os.environ["GENLAB_CACHE"]) / "composed" / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, pickle.dumps(compose_with_part(*overrides)))
    return pickle.loads(file.read_bytes())


def compose_with_part(*overrides: str) -> dict:
    config = compose_command(*overrides)
    # Like `resolve_pretrained_part`, but the part is not trained.
    if name := pretrained_part_name(config):
        data = [o for o in overrides if o.split("=")[0].split(".")[0] in ("dataset", "preprocess")]
        config = insert_pretrained_config(
            config, compose_config(*config[name]["train"], *data, "out=unused"), name
        )
    return config


def compose_command(*overrides: str) -> dict:
    """Return the config of `genlab train <overrides>` without its pretrained part."""
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("genlab.stamp", lambda: "stamp", replace=True)
    OmegaConf.register_new_resolver("genlab.folder", lambda *names: "-".join(names), replace=True)
    with initialize_config_module("genlab.configs", version_base="1.3"):
        return train.to_plain_dict(compose("train", overrides=list(overrides)))


def build_training_objects(*overrides: str) -> tuple[dict, Any, Any]:
    """Return (config, dataset, trainer) of `genlab train <overrides>`."""
    config = compose_config(*overrides)
    device = factory.make_device(config["device"], seed=config["seed"])
    dataset = make_dataset_cached(pickle.dumps(config["dataset"]))
    model = factory.make_model(config, dataset.spec)
    return config, dataset, factory.make_trainer(config, model, device)


@lru_cache(maxsize=4)
def make_dataset_cached(section: bytes) -> Any:
    """Return the dataset of a config's pickled section; the same section shares one object."""
    return factory.make_dataset({"dataset": pickle.loads(section)})


MAX_SIZES = {
    "channels": 16,
    "blocks": 1,
    "num_blocks": 1,
    "width": 32,
    "layers": 2,
    "num_layers": 2,
    "num_mapping_layers": 2,
    "heads": 2,
    "num_heads": 2,
}


@cache
def small_overrides(recipe: str) -> tuple[str, ...]:
    """Return the overrides that make a recipe fast: narrow networks and few layers.

    Autoregressive models, which sample one pixel at a time, get smaller images too.
    """
    overrides = (f"model={recipe}", *FAST_OVERRIDES)
    config = compose_config(*overrides)
    channel_options: tuple[str, ...] = ()
    if config["trainer"]["name"] in ("gan", "progressive", "translation"):
        channel_options = (
            "channels",
            "channel_max",
            "discriminator_channels",
            "width",
            "discriminator_width",
        )
    extra: tuple[str, ...] = ()
    if config["trainer"]["name"] == "autoregressive":
        extra += ("preprocess.size=4",)
    # Without content features no classifier has to be trained first.
    if "content_features" in config["model"]:
        extra += ("model.content_features=null",)
    if "num_pairs" in config["trainer"]:
        extra += ("trainer.num_pairs=16",)
    if name := pretrained_part_name(config):
        (part_recipe,) = (
            o.partition("=")[2] for o in config[name]["train"] if o.startswith("model=")
        )
        extra += (f"{name}.train={list(small_overrides(part_recipe))}",)
    model = config["model"]
    diffusion_backbone = (model.get("diffusion") or {}).get("backbone") or {}
    networks = {
        "model": model,
        "model.backbone": model.get("backbone"),
        "model.diffusion.backbone.map_backbone": diffusion_backbone.get("map_backbone"),
    }
    narrow = [
        f"{path}.{k}={min(v, MAX_SIZES[k])}"
        for path, network in networks.items()
        for k, v in (network or {}).items()
        if k in MAX_SIZES and k not in channel_options and isinstance(v, int)
    ]
    channels = (f"model.{k}={shrink_channels(v)}" for k, v in model.items() if k in channel_options)
    return (*overrides, *extra, *narrow, *channels)


def shrink_channels(channels: Any) -> Any:
    """Return a number of channels, or a nested list of them, limited to 16."""
    if isinstance(channels, int):
        return min(channels, 16)
    return [shrink_channels(c) for c in channels]


def states_equal(a: object, b: object) -> bool:
    """Whether two nested states (tensors, dicts, lists) are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and list(a) == list(b) and all(states_equal(a[k], b[k]) for k in a)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(states_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
