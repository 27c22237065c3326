"""Every recipe of configs/model/, composed and built as the command line does it, on data that needs no file."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from genlab.builders import factory, train
from genlab.builders.pretrained import insert_part_config, pretrained_part_name

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml"))
FLAGSHIPS = ["vae", "gan", "dcgan", "realnvp", "realnvp_points", "rbm", "ddpm_small", "ddpm_points"]
SMALL = ("trainer.batch_size=8", "device=cpu", "out=unused")


def composed(*overrides: str) -> dict:
    """Return what `genlab train <overrides>` would train from, as plain values."""
    return deepcopy(composed_once(*overrides))


@cache
def composed_once(*overrides: str) -> dict:
    config = typed(*overrides)
    if name := pretrained_part_name(config):  # as `resolve_pretrained_part` has it, but untrained
        data = [o for o in overrides if o.split("=")[0].split(".")[0] in ("dataset", "preprocess")]
        config = insert_part_config(config, composed(*config[name]["train"], *data, "out=unused"), name)
    return config


def typed(*overrides: str) -> dict:
    """Return the config of `genlab train <overrides>` before another run's model is put into it."""
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("genlab.stamp", lambda: "stamp", replace=True)
    OmegaConf.register_new_resolver("genlab.folder", lambda *names: "-".join(names), replace=True)
    with initialize_config_module("genlab.configs", version_base="1.3"):
        return train.to_plain(compose("train", overrides=list(overrides)))


def built(*overrides: str):
    """Return (config, dataset, trainer) of `genlab train <overrides>`."""
    config = composed(*overrides)
    device = factory.make_device(config["device"], seed=config["seed"])
    dataset = factory.make_dataset(config)
    return (
        config,
        dataset,
        factory.make_trainer(config, factory.make_model(config, dataset.spec), device),
    )


NARROW = {
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
def small(recipe: str) -> tuple[str, ...]:
    """Return the overrides that make a recipe fast: fewer pixels where they are drawn one by one, fewer maps a layer."""
    overrides = (f"model={recipe}", *SMALL)
    config = composed(*overrides)
    pixels = ("preprocess.size=4",) * (config["trainer"]["name"] == "autoregressive")
    names: tuple[str, ...] = ()
    if config["trainer"]["name"] in ("gan", "progressive", "translation"):
        names = ("channels", "channel_max", "discriminator_channels", "width", "discriminator_width")
    plain = ("model.content_features=null",) * (
        "content_features" in config["model"]
    )  # no classifier to be trained for it first
    plain += ("trainer.num_pairs=16",) * ("num_pairs" in config["trainer"])
    if name := pretrained_part_name(config):
        (its,) = (o.partition("=")[2] for o in config[name]["train"] if o.startswith("model="))
        plain += (f"{name}.train={list(small(its))}",)
    model = config["model"]
    networks = {"model": model, "model.backbone": model.get("backbone"),
                "model.diffusion.backbone.map_backbone": ((model.get("diffusion") or {}).get("backbone") or {}).get("map_backbone")}  # fmt: skip
    narrow = [
        f"{path}.{k}={min(v, NARROW[k])}"
        for path, network in networks.items()
        for k, v in (network or {}).items()
        if k in NARROW and k not in names and isinstance(v, int)
    ]
    maps = (f"model.{k}={fewer(v)}" for k, v in model.items() if k in names)
    return (*overrides, *pixels, *plain, *narrow, *maps)


def fewer(maps: int | list[int]) -> int | list[int]:
    """Return numbers of maps of at most 16."""
    return min(maps, 16) if isinstance(maps, int) else [fewer(m) for m in maps]


def same(a: object, b: object) -> bool:
    """Whether two states are equal bit for bit, whatever they nest."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
