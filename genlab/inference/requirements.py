"""Which abilities a command needs of a run's model: one table, which refusals and `genlab tasks` read."""

from __future__ import annotations

from genlab.abilities import abilities
from genlab.config.recipes import recipes
from genlab.errors import UserError
from genlab.inference.likelihood_scores import LIKELIHOODS, SCORES
from genlab.runs.loaded_run import Run

# beside the abilities:
CLASSES = "classes"  # the model was trained with classes
GRADIENT = "gradient"  # what `decode` gives has a gradient, by which a code can be searched for

# command -> the ways in which it can be done, each the abilities that it takes; a command with no line here needs none.
# task=… : the model was trained on data with that task (`Spec.task`)
NEEDS: dict[str, tuple[set[str], ...]] = {
    "sample": ({"sample"},),
    "complete": ({"extend"},),
    "reconstruct": ({"encode", "decode"},),
    "encode": ({"encode"},),
    "interpolate": ({"encode", "decode"}, {"prior", "decode"}),
    "traverse": ({"prior", "decode"}, {"encode", "decode"}),
    "arithmetic": ({"encode", "decode"}, {"prior", "decode"}),
    "mix": ({"prior", "styles", "synthesise"},),
    "project": ({"prior", "decode", GRADIENT},),
    "inpaint": (
        {"complete"},
        *({verb, "decode", GRADIENT} for verb in ("prior", "encode")),
        {"translate", "task=inpaint"},
    ),
    "denoise": ({"denoise"}, {"translate", "task=denoise"}),
    "translate": ({"translate"}, {"edit"}),
    "colorize": ({"translate", "task=colorize"}, {"restore"}),
    "superres": ({"translate", "task=superres"}, {"restore"}),
    "forecast": ({"translate", "task=forecast"},),
    "likelihood": tuple(way for ways in LIKELIHOODS.values() for way in ways),
    "anomaly": tuple(way for ways in SCORES.values() for way in ways),
    "classify": (
        {"classify"},
        *({verb, CLASSES} for verb in ("log_prob", "noise_error", "iwae", "elbo")),
    ),
}
KINDS = {  # of data; others: all
    "complete": ("tokens",),
    **dict.fromkeys(("mix", "colorize", "superres"), ("image",)),
    "translate": ("image", "video"),
    **dict.fromkeys(("project", "inpaint", "denoise"), ("image", "points")),
}


def traits(model: object, task: str) -> set[str]:
    """Return the abilities of a model, or a model class, and what else a need may name, `task` of its data included."""
    has = abilities(model) | {f"task={task}"}
    return has | {GRADIENT} if getattr(model, "differentiable", True) else has


def can(has: set[str], command: str) -> bool:
    """Whether a model with the traits `has` can do what the command asks."""
    return any(way <= has for way in NEEDS[command])


def commands(run: Run) -> list[str]:
    """Return the commands that fit the run's model and data."""
    has, kind = traits(run.model, run.spec.task), run.spec.kind
    has |= {CLASSES} if getattr(run.model, "conditional", False) else set()
    return [
        command for command in NEEDS if can(has, command) and kind in KINDS.get(command, (kind,))
    ]


def ready(run: Run, command: str) -> set[str]:
    """Return the model's traits, if the command can be done with them.

    Raises:
        UserError: it cannot; the message says what it takes, and names the models that can.
    """
    has, kind = traits(run.model, run.spec.task), run.spec.kind
    if not can(has, command):
        if "translate" in has and can(has | {f"task={command}"}, command):
            trained = f"{run.name} was trained for another: task={run.spec.task}"
            raise UserError(f"genlab {command} needs a model trained on data with task={command}, and {trained}; "
                            "genlab translate asks any")  # fmt: skip
        ways = " or ".join(" and ".join(sorted(way)) for way in NEEDS[command])
        names = ", ".join(
            recipe.name for recipe in recipes() if can(traits(recipe.model, command), command)
        )
        raise UserError(
            f"genlab {command} needs {ways}, which {run.name} has not; models that have it: {names}"
        )
    if kind not in KINDS.get(command, (kind,)):
        raise UserError(
            f"genlab {command} is for {' and '.join(KINDS[command])}, and {run.info['dataset']} has {kind}"
        )
    return has
