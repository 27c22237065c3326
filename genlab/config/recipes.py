"""The recipes that ship with genlab, and what each can do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from genlab.abilities import abilities
from genlab.config.config_dir import config_folder
from genlab.config.instantiate import import_target

if TYPE_CHECKING:
    from genlab.model import GenerativeModel

# How exactly an ability computes a likelihood; other abilities are untagged.
LIKELIHOOD_TAGS = {
    "log_prob": "exact",
    "forecast_log_prob": "exact",
    "elbo": "bound",
    "iwae": "bound",
    "log_partition": "estimate",
}


# Names of datasets by the kind of their items; those of all others are images.
DATASETS_OF_KIND = {
    "points": (
        *("ring", "grid25", "points", "table"),
        *("gaussian_1d", "mixture_1d", "skewed_1d", "swiss_roll"),
    ),
    "tokens": ("text", "shakespeare"),
    "table": ("mixed_table",),
    "video": ("moving_digits", "moving_mnist", "frames_folder"),
    "series": ("series", "ar2"),
}
MAX_NAMED = 5  # recipes in a message
# Recipes that a message names before others, one or two of each family.
WELL_KNOWN = (
    "vae", "pca", "gmm", "ae", "ddpm_small", "realnvp", "gpt_pixels", "rbm", "dcgan", "cvae",
    "pix2pix", "cyclegan", "srresnet", "ddpm", "realnvp_points", "ddpm_points", "flow_points",
)  # fmt: skip  # a paragraph of names

# Durations in words, in the headers of experiments.
DURATION = re.compile(
    r"(\d+|an?|two|three|half an|a quarter of an) (minute|hour)s?\b", re.IGNORECASE
)
AMOUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "half an": 0.5, "a quarter of an": 0.25}
UNIT_MINUTES = {"minute": 1, "hour": 60}


@dataclass
class Recipe:
    """One file of configs/model/."""

    name: str
    header: str  # the file's first comment: the paper, and what the recipe is
    target: str  # dotted path of the model's class
    trainer: str  # trainer.name
    kind: str = "image"  # of its default data: image | points | tokens | video | series | table
    dataset: str = ""  # the dataset that it sets; "" if it leaves the default one

    @property
    def model(self) -> type[GenerativeModel]:
        """The model's class."""
        model: type[GenerativeModel] = import_target(
            {"_target_": self.target}, f"model={self.name}"
        )
        return model

    def abilities(self) -> set[str]:
        """Return the abilities of the model's class."""
        return abilities(self.model)


def read_header_comment(path: Path) -> str:
    """Return the first comment of a YAML file as one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def shipped_group_files(name: str) -> list[Path]:
    """Return the files of a shipped config group."""
    return sorted((config_folder() / name).rglob("*.yaml"))


def list_recipes() -> list[Recipe]:
    """Return every recipe, by name."""
    found = []
    for path in shipped_group_files("model"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        trainer = config.get("trainer", {}).get("name", "")
        defaults = [entry for entry in config.get("defaults", ()) if isinstance(entry, dict)]
        data = next((e["override /dataset"] for e in defaults if "override /dataset" in e), "")
        kind = next((kind for kind, names in DATASETS_OF_KIND.items() if data in names), "image")
        header, target = read_header_comment(path), config["model"]["_target_"]
        found.append(Recipe(path.stem, header, target, trainer, kind, data))
    return found


def nearest_recipe_names(
    fits: Callable[[Recipe], bool], kind: str, near: object = None
) -> list[str]:
    """Return the names of a few recipes that fit, for the message of a refusal.

    They are for the same kind of data, if any of these fits; those of the same family are first,
    and "…" stands for more.

    Args:
        kind: of the data at hand.
        near: the model at hand.
    """
    recipes = [recipe for recipe in list_recipes() if fits(recipe)]
    of_kind = [recipe for recipe in recipes if recipe.kind == kind]
    family = type(near).__module__.rpartition(".")[0]

    def distance(recipe: Recipe) -> tuple[bool, int]:
        known = recipe.name in WELL_KNOWN
        place = WELL_KNOWN.index(recipe.name) if known else len(WELL_KNOWN)
        return not recipe.target.startswith(family + "."), place

    names = [recipe.name for recipe in sorted(of_kind or recipes, key=distance)]
    return names[:MAX_NAMED] + ["…"] * (len(names) > MAX_NAMED)


def nearest_recipes_with(ability: str, kind: str, near: object = None) -> list[str]:
    """Return the nearest recipes whose model has the ability; see `nearest_recipe_names`."""
    return nearest_recipe_names(lambda recipe: ability in recipe.abilities(), kind, near)


# --- experiments ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """A file of configs/experiment/ that trains one model on a usual computer.

    Attributes:
        model: the recipe that it adapts.
        minutes: how long it takes on a CPU, as its header says, or at most by its time limit.
        duration: the same in words.
    """

    name: str
    model: str
    minutes: float
    duration: str


def fastest_experiment(model: str, *, other_than: str | None = None) -> Experiment | None:
    """Return the experiment that takes the least time on a CPU, of those of a recipe.

    A recipe without one gets the fastest of the recipes of the same class; None if there is none.
    """
    folder = config_folder() / "experiment"
    found = [read_experiment(path) for path in sorted(folder.glob("*.yaml"))]
    others = [experiment for experiment in found if experiment and experiment.name != other_than]
    targets = {recipe.name: recipe.target for recipe in list_recipes()}
    of_recipe = [experiment for experiment in others if experiment.model == model]
    of_class = [e for e in others if targets.get(e.model) == targets.get(model, "")]
    return min(of_recipe or of_class, key=lambda experiment: experiment.minutes, default=None)


def read_experiment(path: Path) -> Experiment | None:
    """Return an experiment; None if it does not say how long it takes on a CPU."""
    header = read_header_comment(path)
    minutes = (read_option(path, "trainer") or {}).get("max_minutes")
    duration = f"up to {minutes} minutes"
    if stated := DURATION.search(header):
        amount = stated[1].lower()
        number = AMOUNTS[amount] if amount in AMOUNTS else int(amount)
        minutes = number * UNIT_MINUTES[stated[2].lower()]
        duration = f"about {stated[0].lower()}"
    model = experiment_model(path)
    if minutes is None or model is None or "device=cuda" in header:
        return None
    return Experiment(path.stem, model, float(minutes), duration)


def read_option(path: Path, key: str) -> Any:
    """Return a top-level option of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8")).get(key)


def experiment_model(path: Path) -> str | None:
    """Return the recipe that an experiment chooses, itself or by the experiment it extends."""
    for entry in reversed(read_option(path, "defaults") or []):
        if isinstance(entry, dict) and "override /model" in entry:
            return str(entry["override /model"])
        parent = path.with_name(f"{str(entry).rpartition('/')[2]}.yaml")
        if isinstance(entry, str) and parent.exists() and parent != path:
            return experiment_model(parent)
    return None
