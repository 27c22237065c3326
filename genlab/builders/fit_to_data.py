"""Fit a recipe to its data: keep gray levels that carry the information."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from genlab.config.dotted_keys import flatten_config, get_option, set_option
from genlab.config.instantiate import format_cli_value, import_target
from genlab.config.override_keys import override_key
from genlab.data.image_dataset import Images
from genlab.data.preprocessing import MAX_BINARIZATION_NOISE
from genlab.errors import UserError
from genlab.model import GenerativeModel

Plain = dict[str, Any]


@dataclass
class Fit:
    """A config that suits its data.

    Attributes:
        options: the changed options by dotted key, with their new values.
        note: what was changed and why; "" if nothing was.
    """

    config: Plain
    options: Plain = field(default_factory=dict)
    note: str = ""


def fit_to_data(config: Plain, dataset: Any, overrides: list[str]) -> Fit:
    """Return a new run's config with the likelihood and binarization that suit the images.

    A recipe that binarizes digits would make noise of photographs. Where the model has a likelihood
    for gray levels, that one is chosen. Options of the command line always win.

    Args:
        config: resolved.
        overrides: of the command line.

    Raises:
        UserError: the model is defined for binary data only; the message says what to use.
    """
    images = base_images(dataset)
    typed = {override_key(override) for override in overrides}
    is_typed = any(key.rpartition(".")[2] == "binarize" for key in typed)
    if images is None or images.binarize == "none" or is_typed:
        return Fit(config)
    noise = images.binarization_noise_fraction()
    if noise <= MAX_BINARIZATION_NOISE:
        return Fit(config)
    reason = (
        f"binarization would turn {noise:.0%} of the variance of the pixels of {dataset.name} into "
        "noise"
    )
    keep = f"preprocess.binarize={images.binarize}"
    model = import_target(config["model"], "model")
    spec = replace(images.spec, levels=images.preprocess.levels)
    wanted: Plain = {}
    if isinstance(model, type) and issubclass(model, GenerativeModel):
        wanted = model.gray_level_options(spec, config["model"])
        recipe = model.gray_level_recipe
    if not wanted:
        other = f"use model={recipe}" if recipe else "set preprocess.binarize=none"
        raise UserError(
            f"{reason} (MNIST: 17%), but this recipe of {model.__name__} requires binary data; "
            f"{other}, or {keep} to train on binary images all the same"
        )
    deciding = ("preprocess.", "model.likelihood")
    if any(
        key in typed and key.startswith(deciding) and get_option(config, key) != value
        for key, value in wanted.items()
    ):
        return Fit(config)
    wanted = {key: value for key, value in wanted.items() if key not in typed}
    options = changed_options(config, wanted)
    config = deepcopy(config)
    for key, value in options.items():
        set_option(config, key, value)
    words = " ".join(
        f"{k}={format_cli_value(v)}" for k, v in options.items() if not k.startswith("dataset.")
    )
    return Fit(config, options, f"{words}, because {reason}; {keep} trains on binary images")


def base_images(dataset: Any) -> Images | None:
    """Return the image dataset that a dataset preprocesses, or None if it is of another kind."""
    while not isinstance(dataset, Images):
        if (dataset := getattr(dataset, "base", None)) is None:
            return None
    return dataset


def changed_options(config: Plain, wanted: Plain) -> Plain:
    """Return the options that change, with those of the dataset that follow `preprocess`."""
    options = {key: value for key, value in wanted.items() if get_option(config, key) != value}
    for key, value in wanted.items():
        section, _, name = key.partition(".")
        if section == "preprocess":
            options |= {
                path: value
                for path in flatten_config({"dataset": config["dataset"]})
                if path.rpartition(".")[2] == name
            }
    return options
