"""Refuse options without an effect, instead of ignoring them.

Only what is typed is refused: a composed config has a default for every option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genlab.builders.pretrained import PART_NAMES
from genlab.config.dotted_keys import flatten_config, get_option
from genlab.config.override_keys import RUNTIME_KEYS, override_key, root_key
from genlab.errors import UserError

Plain = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Options, or sections of them, that take effect only with certain values of others.

    Attributes:
        options: dotted keys.
        has_meaning: whether they have one, given the command's composed config.
        reason: what to do instead, after "<override> has no effect: ".
    """

    options: tuple[str, ...]
    has_meaning: Callable[[Plain], bool]
    reason: str


def is_given(key: str) -> Callable[[Plain], bool]:
    """Return a function that says whether an option has a value."""
    return lambda config: get_option(config, key) not in (None, [])


def is_not_given(key: str) -> Callable[[Plain], bool]:
    """Return a function that says whether an option has no value."""
    return lambda config: get_option(config, key) in (None, [])


def is_one_of(key: str, *values: Any) -> Callable[[Plain], bool]:
    """Return a function that says whether an option has one of some values."""
    return lambda config: get_option(config, key) in values


def is_positive(key: str) -> Callable[[Plain], bool]:
    """Return a test for numbers other than 0; another type is refused elsewhere."""
    return lambda config: get_option(config, key) != 0


LISTED_ITEMS = Rule(("n",), is_not_given("items"), "items= lists the items; leave one of them out")
FOLDER = Rule(
    ("n", "items", "split"),
    is_not_given("input_dir"),
    "every image of input_dir= is taken; they select items of the run's own data",
)
FILM = Rule(
    ("n", "items", "split"),
    is_not_given("input_file"),
    "every frame of input_file= is taken; they select items of the run's own data",
)
OWN_TEXT = Rule(
    ("split", "n", "iwae_samples", "elbo_timesteps", "batch_size", "seed"),
    lambda config: config.get("text") is None and config.get("input_file") is None,
    "the text is scored exactly; it is for items of the run's own data",
)
IMPORTANCE_SAMPLES = Rule(
    ("iwae_samples",), is_one_of("score", None, "bound"), "it is for score=bound"
)
TIMESTEPS = Rule(
    ("elbo_timesteps",), is_one_of("score", None, "bound", "noise"), "it is for score=bound"
)
WITHOUT_OPTIMIZER = Rule(
    (
        *("optimizer", "trainer.grad_clip", "trainer.lr_warmup_steps"),
        *("trainer.lr_schedule", "trainer.lr_milestones"),
    ),
    lambda config: get_option(config, "trainer.name") != "classical",
    "this model is fitted in closed form or by EM, without an optimizer; leave it out",
)
EVALUATIONS = Rule(
    ("evaluate",),
    is_positive("trainer.evaluate_every"),
    "the training has no evaluations; set trainer.evaluate_every=",
)
TRAINING = (WITHOUT_OPTIMIZER, EVALUATIONS)

# Sections and options of the config of a training that its objects, or genlab itself, read.
TRAINING_SECTIONS = RUNTIME_KEYS | {
    *("model", "dataset", "trainer", "optimizer", "preprocess", "evaluate", "seed"),
    *PART_NAMES,
    *("train", "sample", "common", "title", "text"),  # of a comparison, which is refused by name
}

RULES: dict[str, tuple[Rule, ...]] = {
    "train": TRAINING,
    "plan": TRAINING,
    "evaluate": (
        Rule(("crop",), is_given("truth"), "it is for truth=, a folder with the true images"),
        Rule(
            ("preprocess",),
            is_given("samples"),
            "it is for samples= and dataset=; a run's data keeps the run's own preprocessing",
        ),
        Rule(
            (
                *("metrics", "split", "n", "seed", "batch_size", "features"),
                *("resize", "dataset", "preprocess"),
            ),
            is_not_given("truth"),
            "truth= compares each image with its own true image; leave it out",
        ),
        Rule(
            ("iwae_samples", "elbo_timesteps", "sampler"),
            is_not_given("samples"),
            "samples= were drawn by another program, and no model is measured; leave it out",
        ),
    ),
    "anomaly": (
        Rule(
            ("preprocess",),
            lambda config: False,
            "other data gets the preprocessing of the run's own data; leave it out",
        ),
        Rule(
            ("classes",),
            lambda config: "_target_" not in (config.get("dataset") or {}),
            "the items of dataset= are the anomalies; leave one of them out",
        ),
        IMPORTANCE_SAMPLES,
        TIMESTEPS,
    ),
    "classify": (
        IMPORTANCE_SAMPLES,
        TIMESTEPS,
        Rule(("prior",), is_given("prompts"), "it weighs the captions of prompts=[…]; give them"),
    ),
    "likelihood": (OWN_TEXT,),
    "inpaint": (
        Rule(("box",), is_one_of("mask", "box"), "it is for mask=box"),
        Rule(("half",), is_one_of("mask", "half"), "it is for mask=half"),
        Rule(("mask_ratio",), is_one_of("mask", "random"), "it is for mask=random"),
        Rule(("prior_weight",), is_one_of("method", None, "search"), "it is for method=search"),
        Rule(
            ("steps", "prior_weight"),
            is_not_given("input_dir"),
            "a translator fills in the images of input_dir= in one pass; leave it out",
        ),
        FOLDER,
        LISTED_ITEMS,
    ),
    "interpolate": (
        Rule(("n",), is_not_given("pairs"), "pairs= lists the pairs; leave one of them out"),
        Rule(
            ("split",),
            lambda c: (
                c.get("endpoints") != "prior" and c.get("label") is None and c["space"] != "w"
            ),
            "it is for endpoints=data; draws from the prior are of no split",
        ),
    ),
    "traverse": (
        Rule(("n",), is_not_given("dims"), "dims= lists the dimensions; leave one of them out"),
    ),
    "project": (
        Rule(("crop",), is_given("images"), "it is for images=, which are made square"),
        Rule(("n", "items"), is_not_given("images"), "images= are taken; leave one of them out"),
        Rule(("strengths",), is_given("edit"), "it is for edit="),
        LISTED_ITEMS,
    ),
    "arithmetic": (
        Rule(
            ("b", "c", "group_by"),
            is_not_given("attribute"),
            "attribute= is used instead of a, b and c; leave one of them out",
        ),
        Rule(("strengths", "rows"), is_given("attribute"), "it is for attribute="),
        Rule(
            ("split",),
            lambda config: config.get("group_by") != "draw" or config.get("attribute") is not None,
            "it is for items of the data; draws from the prior are of no split",
        ),
    ),
    "forecast": (
        Rule(("videos",), is_not_given("items"), "items= lists the videos; leave one of them out"),
    ),
    "trajectory": (
        Rule(("split",), is_one_of("direction", "forward"), "it is for direction=forward"),
        Rule(("columns",), is_not_given("times"), "times= lists them; leave one of them out"),
        LISTED_ITEMS,
    ),
    "complete": (
        Rule(
            ("top_k", "top_p"),
            is_positive("temperature"),
            "temperature=0 always takes the most probable token; leave one of them out",
        ),
    ),
    "denoise": (FOLDER, LISTED_ITEMS),
    "translate": (FOLDER, FILM, LISTED_ITEMS),
    "superres": (FOLDER, FILM, LISTED_ITEMS),
    "colorize": (FOLDER, FILM, LISTED_ITEMS),
    "encode": (LISTED_ITEMS,),
    "reconstruct": (LISTED_ITEMS,),
}


def refuse_meaningless_options(command: str, config: DictConfig, overrides: Iterable[str]) -> None:
    """Refuse overrides that would have no effect.

    Args:
        config: composed, with its interpolations.
        overrides: as they are typed.

    Raises:
        UserError: names the first override, and what to do instead.
    """
    plain: Plain = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    typed = {override_key(o): o for o in overrides if o.partition("=")[2] not in ("", "null")}
    for rule in RULES.get(command, ()):
        for key, override in typed.items():
            is_meant = any(f"{key}.".startswith(f"{option}.") for option in rule.options)
            if is_meant and not rule.has_meaning(plain):
                raise UserError(f"{override} has no effect: {rule.reason}")
    if command in ("train", "plan"):
        refuse_unread_options(plain, typed)


def refuse_unread_options(config: Plain, typed: dict[str, str]) -> None:
    """Refuse an option of a training, or of the preprocessing, that nothing reads.

    Args:
        config: with its interpolations: a dataset refers to what it uses of `preprocess`.
        typed: the overrides by key.

    Raises:
        UserError: names the override.
    """
    references = [v for v in flatten_config(config).values() if isinstance(v, str) and "${" in v]
    for key, override in typed.items():
        section = root_key(key)
        is_read = any(f"${{{key}" in text for text in references)
        if section not in TRAINING_SECTIONS and not is_read and section in config:
            raise UserError(f"unknown option '{section}'; genlab train --help lists them")
        if section == "preprocess" and "." in key and not is_read:
            raise UserError(f"{override} has no effect: the chosen dataset does not use it")
