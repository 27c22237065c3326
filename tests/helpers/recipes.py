"""Compose and build the recipes of configs/model/ as the command line does."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Sequence
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
# Tests that repeat a property over many recipes try these first.
QUICK_FIRST = [*FLAGSHIPS, *(recipe for recipe in RECIPES if recipe not in FLAGSHIPS)]
# A small batch on the CPU; `out` is never written.
FAST_OVERRIDES = ("trainer.batch_size=8", "device=cpu", "out=unused")


@cache
def model_class(recipe: str) -> str:
    """Return the target of a recipe's model, read from its file without composing it."""
    return find_in_recipe(recipe, r"^  _target_: (genlab\.models\.\S+)")


def model_family(overrides: Sequence[str]) -> str:
    """Return the family, as vae or gan, of the model of `genlab train model=… …`."""
    return model_class(overrides[0].removeprefix("model=")).split(".")[2]


@cache
def trainer_name(recipe: str) -> str:
    """Return the name of a recipe's trainer, read from its file without composing it."""
    return find_in_recipe(recipe, r"^trainer:[^\n]*\n(?:[ #].*\n)*?  name: (\w+)")


@cache
def conditional_kind(recipe: str) -> tuple[str, str]:
    """Return a recipe's trainer and its `conditional`, or its name if it has no such option."""
    return trainer_name(recipe), find_in_recipe(recipe, r"^ +conditional: (\w+)")


def find_in_recipe(recipe: str, pattern: str) -> str:
    """Return the first group of a pattern in a recipe's file; the name of the recipe without it."""
    found = re.search(pattern, (CONFIGS / "model" / f"{recipe}.yaml").read_text(), re.M)
    return found[1] if found else recipe


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


# The limits when the states of format 1 in tests/fixtures were written.
MAX_SIZES_FORMAT_1 = {
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
MAX_SIZES = {
    **MAX_SIZES_FORMAT_1,
    "steps_per_scale": 2,
    "solver_steps": 4,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "hidden": 64,
}


@cache
def small_overrides(recipe: str, *, format_1: bool = False) -> tuple[str, ...]:
    """Return the overrides that make a recipe fast: narrow networks and few layers.

    Autoregressive models, which sample one pixel at a time, get smaller images too.

    Args:
        format_1: limit only what the fixtures of format 1 were limited in.
    """
    limits = MAX_SIZES_FORMAT_1 if format_1 else MAX_SIZES
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
    if (config["preprocess"].get("size") or 0) > 32 and not format_1:
        extra += ("preprocess.size=32",)
    if "num_pairs" in config["trainer"]:
        extra += ("trainer.num_pairs=16",)
    if name := pretrained_part_name(config):
        (part_recipe,) = (
            o.partition("=")[2] for o in config[name]["train"] if o.startswith("model=")
        )
        extra += (f"{name}.train={list(small_overrides(part_recipe, format_1=format_1))}",)
    model = config["model"]
    diffusion_backbone = (model.get("diffusion") or {}).get("backbone") or {}
    networks = {
        "model": model,
        "model.backbone": model.get("backbone"),
        "model.diffusion.backbone.map_backbone": diffusion_backbone.get("map_backbone"),
    }
    narrow = [
        f"{path}.{k}={min(v, limits[k])}"
        for path, network in networks.items()
        for k, v in (network or {}).items()
        if k in limits and k not in channel_options and isinstance(v, int)
    ]
    lists = {k: 16 for k in channel_options if k in model}
    if "hidden" in limits and isinstance(model.get("hidden"), list):
        lists["hidden"] = limits["hidden"]
    channels = (f"model.{k}={limit_sizes(model[k], largest)}" for k, largest in lists.items())
    return (*overrides, *extra, *narrow, *channels)


def limit_sizes(sizes: Any, largest: int) -> Any:
    """Return a size, or a nested list of sizes, of which none is greater than `largest`."""
    if isinstance(sizes, int):
        return min(sizes, largest)
    return [limit_sizes(size, largest) for size in sizes]


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
