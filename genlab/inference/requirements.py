"""The abilities that each command requires of a run's model.

One table serves the refusals of the commands and the list of `genlab info`.
"""

from __future__ import annotations

from genlab.abilities import abilities
from genlab.config.recipes import Recipe, list_recipes
from genlab.errors import UserError
from genlab.inference.likelihood_scores import LIKELIHOODS, SCORES
from genlab.model import GenerativeModel
from genlab.runs.loaded_run import LoadedRun

# Capabilities beside the abilities.
CLASSES = "classes"  # the model was trained with class labels
GRADIENT = "gradient"  # `decode` is differentiable, so a code can be found by gradient descent

# Command -> alternatives, each a set of capabilities that together suffice. A command that is not
# listed requires nothing. "task=…" requires a model trained on data with that task
# (`DataSpec.task`).
REQUIREMENTS: dict[str, tuple[set[str], ...]] = {
    "sample": ({"sample"},),
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
    "denoise": ({"denoise"}, {"translate", "task=denoise"}),
    "translate": ({"translate"}, {"edit"}),
    "colorize": ({"translate", "task=colorize"}, {"restore"}),
    "superres": ({"translate", "task=superres"}, {"restore"}),
    "forecast": ({"translate", "task=forecast"},),
    "likelihood": tuple(verbs for sources in LIKELIHOODS.values() for verbs in sources),
    "anomaly": tuple(verbs for sources in SCORES.values() for verbs in sources),
    "classify": (
        {"classify"},
        {"log_prob", CLASSES},
        {"eps_mse", CLASSES},
        {"iwae", CLASSES},
        {"elbo", CLASSES},
    ),
}
# Kinds of data that a command works on; all kinds if it is not listed.
DATA_KINDS: dict[str, tuple[str, ...]] = {
    "complete": ("tokens",),
    "mix": ("image",),
    "colorize": ("image",),
    "superres": ("image",),
    "translate": ("image", "video"),
    "project": ("image", "points"),
    "inpaint": ("image", "points"),
    "denoise": ("image", "points"),
}


def capabilities(model: GenerativeModel | type[GenerativeModel], task: str) -> set[str]:
    """Return the abilities of a model or model class, its further capabilities, and its task."""
    found = abilities(model) | {f"task={task}"}
    return found | {GRADIENT} if model.differentiable else found


def satisfies(available: set[str], command: str) -> bool:
    """Whether a model with these capabilities has all that the command requires."""
    return any(required <= available for required in REQUIREMENTS[command])


def supports_kind(kind: str, command: str) -> bool:
    """Whether the command works on this kind of data."""
    return kind in DATA_KINDS.get(command, (kind,))


def supported_commands(run: LoadedRun) -> list[str]:
    """Return the commands that fit the run's model and data."""
    available = capabilities(run.model, run.spec.task)
    if run.model.conditional:
        available.add(CLASSES)
    return [
        command
        for command in REQUIREMENTS
        if satisfies(available, command) and supports_kind(run.spec.kind, command)
    ]


def models_supporting(command: str) -> list[str]:
    """Return the recipes whose models can do a command, if trained on suitable data."""

    def fits(recipe: Recipe) -> bool:
        return satisfies(capabilities(recipe.model, task=command), command)

    return [recipe.name for recipe in list_recipes() if fits(recipe)]


def require_command(run: LoadedRun, command: str) -> set[str]:
    """Return the capabilities of the run's model, if the command can be carried out with them.

    Raises:
        UserError: it cannot; says what is required and which models have it.
    """
    available = capabilities(run.model, run.spec.task)
    if not satisfies(available, command):
        if "translate" in available and satisfies(available | {f"task={command}"}, command):
            raise UserError(
                f"genlab {command} needs a model trained on data with task={command}, but "
                f"{run.name} was trained with task={run.spec.task}; genlab translate takes any task"
            )
        needs = " or ".join(" and ".join(sorted(verbs)) for verbs in REQUIREMENTS[command])
        raise UserError(
            f"genlab {command} needs {needs}, which {run.name} does not support; "
            f"models that do: {', '.join(models_supporting(command))}"
        )
    if not supports_kind(run.spec.kind, command):
        raise UserError(
            f"genlab {command} is for {' and '.join(DATA_KINDS[command])}, but {run.dataset_name} "
            f"consists of {run.spec.kind}"
        )
    return available
