"""The recipes that ship with genlab, and what each can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from genlab.abilities import abilities
from genlab.config.config_dir import config_folder
from genlab.config.instantiate import import_target

if TYPE_CHECKING:
    from genlab.model import GenerativeModel

# How exactly an ability computes a likelihood; other abilities are untagged.
LIKELIHOOD_TAGS = {
    "log_prob": "exact",
    "elbo": "bound",
    "iwae": "bound",
    "log_partition": "estimate",
}


@dataclass
class Recipe:
    """One file of configs/model/."""

    name: str
    header: str  # the file's first comment: the paper, and what the recipe is
    target: str  # dotted path of the model's class
    trainer: str  # trainer.name

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


def read_header(path: Path) -> str:
    """Return the first comment of a YAML file as one line."""
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def group_files(name: str) -> list[Path]:
    """Return the files of a shipped config group."""
    return sorted((config_folder() / name).rglob("*.yaml"))


def list_recipes() -> list[Recipe]:
    """Return every recipe, by name."""
    found = []
    for path in group_files("model"):
        config = yaml.safe_load(path.read_text())
        trainer = config.get("trainer", {}).get("name", "")
        found.append(Recipe(path.stem, read_header(path), config["model"]["_target_"], trainer))
    return found


def models_with(ability: str) -> list[str]:
    """Return the recipes whose model has the ability, with its tag: "vae (bound)"."""
    tag = f" ({LIKELIHOOD_TAGS[ability]})" if ability in LIKELIHOOD_TAGS else ""
    return [f"{recipe.name}{tag}" for recipe in list_recipes() if ability in recipe.abilities()]
