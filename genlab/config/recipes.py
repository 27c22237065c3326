"""The recipes that ship with genlab, and what each can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from genlab.abilities import ABILITIES, abilities
from genlab.config.config_dir import config_folder
from genlab.config.instantiate import locate

TAGS = {
    "log_prob": "exact",
    "elbo": "bound",
    "iwae": "bound",
    "log_partition": "estimate",
}  # others: just yes


@dataclass
class Recipe:
    """One file of configs/model/."""

    name: str
    header: str  # its first comment: paper, what it is
    target: str  # the model's class

    @property
    def model(self) -> type:
        """The model's class."""
        return locate({"_target_": self.target}, f"model={self.name}")

    def abilities(self) -> set[str]:
        """Return the verbs of the model's class."""
        return abilities(self.model)


def header(path: Path) -> str:
    """Return the first comment of a YAML file as one line."""
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def group(name: str) -> list[Path]:
    """Return the files of a config group."""
    return sorted((config_folder() / name).rglob("*.yaml"))


def recipes() -> list[Recipe]:
    """Return every recipe, by name."""
    return [
        Recipe(p.stem, header(p), yaml.safe_load(p.read_text())["model"]["_target_"])
        for p in group("model")
    ]


def able(verb: str) -> list[str]:
    """Return the recipes whose model has the verb, with how exact it is: "vae (bound)"."""
    tag = f" ({TAGS[verb]})" if verb in TAGS else ""
    return [f"{recipe.name}{tag}" for recipe in recipes() if verb in recipe.abilities()]


def matrix() -> list[list[str]]:
    """Return the ability matrix: a row a recipe, then exact, bound, estimate, yes or an empty cell for each ability."""
    rows = []
    for recipe in recipes():
        has = recipe.abilities()
        rows.append(
            [recipe.name, *(TAGS.get(verb, "yes") if verb in has else "" for verb in ABILITIES)]
        )
    return rows
