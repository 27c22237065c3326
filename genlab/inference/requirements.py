"""The abilities that each command requires of a run's model.

One table serves the refusals of the commands and the list of `genlab info`.
"""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

from genlab.abilities import abilities, require_model_ability
from genlab.config.override_keys import quote_override_value
from genlab.config.recipes import (
    MAX_NAMED,
    Recipe,
    nearest_recipe_names,
    nearest_recipes_with,
)
from genlab.errors import UserError
from genlab.inference.likelihood_scores import LIKELIHOODS, MAPPED_SCORES, SCORES
from genlab.model import GenerativeModel
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import DataSpec

# Capabilities beside the abilities.
CLASSES = "classes"  # the model was trained with class labels
CAPTIONS = "captions"  # the model was trained with captions
GRADIENT = "gradient"  # `decode` is differentiable, so a code can be found by gradient descent

# Command -> alternatives, each a set of capabilities that together suffice. A command that is not
# listed requires nothing. "task=…" requires a model trained on data with that task
# (`DataSpec.task`).
REQUIREMENTS: dict[str, tuple[set[str], ...]] = {
    "sample": ({"sample"},),
    "trajectory": ({"trajectory"}, {"forward_trajectory"}, {"sample"}),
    "complete": ({"extend"},),
    "reconstruct": ({"encode", "decode"},),
    "encode": ({"encode"},),
    "interpolate": ({"encode", "decode"}, {"prior", "decode"}),
    "traverse": ({"prior", "decode"}, {"encode", "decode"}),
    "arithmetic": ({"encode", "decode"}, {"prior", "decode"}),
    "mix": ({"prior", "styles", "synthesize"},),
    "project": ({"prior", "decode", GRADIENT},),
    "inpaint": (
        {"inpaint"},
        {"prior", "decode", GRADIENT},
        {"encode", "decode", GRADIENT},
        {"translate", "task=inpaint"},
    ),
    "impute": ({"impute"},),
    "denoise": ({"denoise"}, {"translate", "task=denoise"}),
    "translate": ({"translate"}, {"edit"}),
    "colorize": ({"translate", "task=colorize"}, {"restore"}),
    "superres": ({"translate", "task=superres"}, {"restore"}),
    "forecast": ({"forecast"}, {"translate", "task=forecast"}),
    "density": (
        *(verbs for sources in MAPPED_SCORES.values() for verbs in sources),
        {"encode", "category"},
    ),
    "dynamics": ({"sample", "discriminate"},),
    "likelihood": tuple(verbs for sources in LIKELIHOODS.values() for verbs in sources),
    "anomaly": tuple(verbs for sources in SCORES.values() for verbs in sources),
    "quiz": ({"sample"},),
    "classify": (
        {"classify"},
        {"log_prob", CLASSES},
        {"eps_mse", CLASSES},
        {"iwae", CLASSES},
        {"elbo", CLASSES},
        {"log_prob", CAPTIONS},
        {"eps_mse", CAPTIONS},
        {"iwae", CAPTIONS},
        {"elbo", CAPTIONS},
    ),
}
# Kinds of data that a command works on; all kinds if it is not listed.
DATA_KINDS: dict[str, tuple[str, ...]] = {
    "complete": ("tokens",),
    "quiz": ("image", "tokens"),
    "mix": ("image",),
    "colorize": ("image",),
    "superres": ("image",),
    "translate": ("image", "video"),
    "project": ("image", "points"),
    "inpaint": ("image", "points"),
    "impute": ("points",),
    "denoise": ("image", "points"),
    "density": ("points",),
    "trajectory": ("image", "points", "tokens", "video", "series"),
    "dynamics": ("points",),
}


# Commands that show a model's abilities, the most telling first.
FIRST_COMMANDS = ("complete", "sample", "translate", "reconstruct", "likelihood", "encode")


def abilities_and_task(model: GenerativeModel | type[GenerativeModel], task: str) -> set[str]:
    """Return the abilities of a model or model class, its further capabilities, and its task."""
    found = abilities(model) | {f"task={task}"}
    return found | {GRADIENT} if model.differentiable else found


def satisfies_command_requirements(available: set[str], command: str) -> bool:
    """Whether a model with these capabilities has all that the command requires."""
    return any(required <= available for required in REQUIREMENTS[command])


def command_supports_data_kind(kind: str, command: str) -> bool:
    """Whether the command works on this kind of data."""
    return kind in DATA_KINDS.get(command, (kind,))


def commands_supported_by_run(run: LoadedRun) -> list[str]:
    """Return the commands that fit the run's model and data."""
    available = abilities_and_task(run.model, run.spec.task)
    if run.model.conditional:
        available.add(CLASSES)
    if run.model.text_conditional:
        available.add(CAPTIONS)
    return [
        command
        for command in REQUIREMENTS
        if satisfies_command_requirements(available, command)
        and command_supports_data_kind(run.spec.kind, command)
    ]


def suggest_next_command(model: GenerativeModel, spec: DataSpec, folder: Path) -> str:
    """Return the command to type after a training, to see what the model does; "" for none."""
    available = abilities_and_task(model, spec.task)
    for command in (spec.task, *FIRST_COMMANDS):
        if command not in REQUIREMENTS:  # data without a task
            continue
        if satisfies_command_requirements(available, command) and command_supports_data_kind(
            spec.kind, command
        ):
            return (
                f"genlab {command} {shlex.quote('run=' + format_path_option(folder))}"
                f"{option_to_trust(model)}"
            )
    return ""


def option_to_trust(model: GenerativeModel) -> str:
    """Return what a command needs beside a run whose model is a class of the user's package."""
    packages = (kind.__module__.partition(".")[0] for kind in type(model).__mro__)
    package = next(name for name in packages if name != "torch")  # FSDP derives from the class
    return "" if package == "genlab" else f" trusted_packages=[{package}]"


def format_path_option(path: Path) -> str:
    """Return a path as the value of an option, in quotes if Hydra's grammar requires them."""
    is_plain = re.fullmatch(r"[\w./ -]+", str(path))
    return str(path) if is_plain else quote_override_value(path)


def recipe_names_supporting_command(command: str, run: LoadedRun) -> list[str]:
    """Return a few recipes whose models can do a command, for the kind of data of a run."""

    def fits(recipe: Recipe, task: str) -> bool:
        suits = command_supports_data_kind(recipe.kind, command)
        return suits and satisfies_command_requirements(
            abilities_and_task(recipe.model, task), command
        )

    kind = run.spec.kind
    if not command_supports_data_kind(kind, command):
        kind = DATA_KINDS[command][0]

    def is_for_this_command(recipe: Recipe) -> bool:
        return recipe.dataset == command and fits(recipe, command)

    # Recipes for this very task, then models that do it whatever they were trained for.
    kinds_of_recipe = (is_for_this_command, partial(fits, task=""), partial(fits, task=command))
    names = [nearest_recipe_names(suits, kind, run.model) for suits in kinds_of_recipe]
    own, untrained, trained = ([name for name in some if name != "…"] for some in names)
    found = list(dict.fromkeys([*own[:2], *untrained[:2], *trained, *untrained]))
    return found[:MAX_NAMED] + ["…"] * (len(found) > MAX_NAMED or "…" in names[1])


def require_ability(run: LoadedRun, verb: str, instead: str = "") -> None:
    """Refuse a request that needs an ability which the run's model does not have.

    Args:
        instead: what to give so that the model can do it, such as "group_by=draw".

    Raises:
        UserError: names what is missing, what to give instead, and a few models that have it.
    """
    if verb in abilities(run.model) or not instead:
        require_model_ability(
            run.model, verb, lambda: nearest_recipes_with(verb, run.spec.kind, run.model)
        )
        return
    names = ", ".join(nearest_recipes_with(verb, run.spec.kind, run.model))
    raise UserError(
        f"{type(run.model).__name__} does not support `{verb}`; give {instead}, or train a model "
        f"that does: {names}"
    )


def require_command_support(run: LoadedRun, command: str) -> set[str]:
    """Return the capabilities of the run's model, if the command can be carried out with them.

    Raises:
        UserError: it cannot; says what is required and which models have it.
    """
    available = abilities_and_task(run.model, run.spec.task)
    if not satisfies_command_requirements(available, command):
        if "translate" in available and satisfies_command_requirements(
            available | {f"task={command}"}, command
        ):
            raise UserError(
                f"genlab {command} needs a model trained on data with task={command}, but "
                f"{run.name} was trained with task={run.spec.task}; genlab translate takes any task"
            )
        needs = " or ".join(" and ".join(sorted(verbs)) for verbs in REQUIREMENTS[command])
        instead = ""
        can_search = satisfies_command_requirements(
            available, "project"
        ) and command_supports_data_kind(run.spec.kind, "project")
        if "encode" in needs and can_search:
            instead = f" (genlab project searches the code of an item with {run.name})"
        raise UserError(
            f"genlab {command} needs {needs}, which {run.name} does not support{instead}; "
            f"models that do: {', '.join(recipe_names_supporting_command(command, run))}"
        )
    if not command_supports_data_kind(run.spec.kind, command):
        raise UserError(
            f"genlab {command} is for {' and '.join(DATA_KINDS[command])}, but {run.dataset_name} "
            f"consists of {run.spec.kind}"
        )
    return available
