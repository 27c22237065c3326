"""Every image recipe × usual sizes: it builds, or it names options with which it builds."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
import yaml
from helpers.kinds import first_of_each_kind
from helpers.recipes import CONFIGS, RECIPES, compose_config, model_class, small_overrides

from genlab.builders import factory
from genlab.config.dotted_keys import set_option
from genlab.errors import UserError
from genlab.spec import DataSpec

SHAPES = ((8, 1), (28, 1), (30, 3), (48, 3), (64, 3), (128, 3))  # sides and channels
# Weights that grow with the square of the number of pixels; a large image is refused for memory.
DENSE = {"affine", "bm", "gmm", "made", "maf", "nice", "bernoulli_mixture", "pca", "kmeans"}
# Their constructors compute, so they are not built on the meta device.
SLOW = {"acgan", "glow", "projection_gan", "realnvp", "sngan", "wgan_gp"}
OTHER_DATA = re.compile(r"override /dataset: (?!shapes|bars)")


@cache
def image_recipes() -> list[str]:
    """Return the recipes whose default data are images without sources."""
    texts = {name: (CONFIGS / "model" / f"{name}.yaml").read_text() for name in RECIPES}
    return [name for name, text in texts.items() if not OTHER_DATA.search(text)]


def data_spec(config: dict, channels: int, side: int) -> DataSpec:
    """Return the spec of images with classes, prepared as a recipe does."""
    p = config["preprocess"]
    is_binary = p["binarize"] not in (None, "none")
    return DataSpec(
        (channels, side, side),
        num_classes=10,
        levels=2 if is_binary else 256,
        range=tuple(p["range"] or (-1.0, 1.0)),
        dequantized=bool(p["dequantize"]),
    )


def build(config: dict, spec: DataSpec) -> None:
    """Build a model without memory for its weights, where it can be."""
    try:
        with torch.device("meta"):
            factory.make_model(config, spec)
    except (NotImplementedError, RuntimeError):  # a constructor computes with values
        factory.make_model(config, spec)


def find_remedies(message: str) -> list[list[str]]:
    """Return the alternatives that an error message names, each a list of overrides."""
    remedy = message.rpartition("; ")[2].replace(", or ", " or ")
    return [re.findall(r"[a-z_]+\.[a-z_.]+=[^\s,]\S*", part) for part in remedy.split(" or ")]


def shapes_to_try(recipe: str) -> tuple[tuple[int, int], ...]:
    if recipe in SLOW:
        return (28, 1), (64, 3)
    return SHAPES[:3] if recipe in DENSE else SHAPES


@pytest.mark.parametrize("recipe", first_of_each_kind(image_recipes(), model_class))
def test_builds_or_names_options_that_build(recipe):
    config = compose_config(*small_overrides(recipe))
    for side, channels in shapes_to_try(recipe):
        spec = data_spec(config, channels, side)
        try:
            build(config, spec)
        except UserError as error:
            check_remedies(config, spec, str(error))


def check_remedies(config: dict, spec: DataSpec, message: str) -> None:
    alternatives = find_remedies(message)
    assert alternatives and all(alternatives), f"{spec.shape}: no remedy in {message!r}"
    for overrides in alternatives:
        changed, shape = deepcopy(config), spec.shape
        for key, _, value in (override.partition("=") for override in overrides):
            if key.endswith(".size"):
                shape = (shape[0], int(value), int(value))
            else:
                set_option(changed, key, yaml.safe_load(value))
        build(changed, replace(spec, shape=shape))


@pytest.mark.parametrize("side", [28, 30, 64])
@pytest.mark.parametrize("recipe", ["pix2pix", "cyclegan", "next_frame", "text2image"])
def test_recipes_with_sources_build_or_say_what_builds(recipe, side):
    config = compose_config(*small_overrides(recipe))
    spec = factory.make_dataset(config).spec
    shape = (*spec.shape[:-2], side, side)
    source = spec.source
    assert source is not None
    if recipe != "text2image":
        source = replace(source, shape=(*source.shape[:-2], side, side))
    spec = replace(spec, shape=shape, source=source)
    try:
        build(config, spec)
    except UserError as error:
        assert re.search(r"(preprocess|dataset|model)\.\w+=", str(error)), str(error)


@pytest.mark.parametrize(
    ("words", "side"),
    [
        (("model=ddpm_small",), 32),
        (("model=ddpm", "backbone=unet_small"), 30),
        (("experiment=ddpm_mnist",), 64),
    ],
)
def test_small_unets_train_on_usual_sizes(words, side, genlab):
    options = ("dataset=fake", "dataset.n=20", f"preprocess.size={side}", "trainer.preview_every=0")
    small = ("trainer.steps=1", "trainer.batch_size=2", "model.backbone.channels=8", "device=cpu")
    result = genlab("train", *words, *options, *small, "model.conditional=false")
    assert result.code == 0, result.err
