"""The Optuna study of a search, saved in the sweep's folder so that it can resume."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from genlab.config.override_keys import non_runtime_overrides
from genlab.errors import UserError, did_you_mean
from genlab.runs.migrations import FORMAT, migrate_overrides
from genlab.seeding import derive_seed
from genlab.spec import Count, Positive

if TYPE_CHECKING:
    from genlab.abilities import Estimate
    from genlab.sweeps.search_space import SearchSpace

JOURNAL_FILE = "study.journal"
STUDY_NAME = "sweep"  # the only study in its file
SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "random": "RandomSampler",
    "grid": "RandomSampler",
    "nsgaii": "NSGAIISampler",
}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
Direction = Literal["minimize", "maximize"]
NameWithOptions = str | dict[str, Any]  # a name, or {name: …} with options

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class SearchGoal:
    """The objectives of a search: names of a run's final numbers, and the direction of each."""

    objectives: tuple[str, ...]
    directions: tuple[Direction, ...]

    def objective_values(self, result: dict[str, Any], where: str) -> list[float]:
        """Return a run's values of the objectives.

        Raises:
            UserError: the run lacks one of them.
        """
        for name in self.objectives:
            if name not in result:
                raise UserError(
                    f"hydra.sweeper.objective: {where} has no '{name}'{did_you_mean(name, result)};"
                    f" it has {', '.join(result) or 'no numbers'}"
                )
        return [float(result[name]) for name in self.objectives]


@dataclass(frozen=True)
class SearchOptions:
    """The options of a search, as configs/hydra/sweeper/optuna.yaml lists them."""

    params: dict[str, Any] = field(default_factory=dict)
    objective: str | list[str] | None = None
    direction: Direction | list[Direction] = "minimize"
    n_trials: Positive = 20
    n_jobs: Positive | None = None
    sampler: NameWithOptions = "tpe"
    seed: Count | None = 0
    pruner: NameWithOptions = "none"

    @property
    def has_pruner(self) -> bool:
        """Whether trials may end early."""
        return parse_name_and_options(self.pruner, PRUNERS, "hydra.sweeper.pruner")[0] != "none"

    def make_goal(self, monitor: str | None, evaluate_every: int) -> SearchGoal:
        """Return the goal of the search.

        Args:
            monitor: the trainer's monitored metric, the default objective.
            evaluate_every: the trainer's steps between evaluations.

        Raises:
            UserError: no objective, a missing direction, or a pruner without evaluations.
        """
        objective = self.objective or monitor or []
        names = (objective,) if isinstance(objective, str) else tuple(objective)
        given = [self.direction] if isinstance(self.direction, str) else self.direction
        directions: tuple[Direction, ...] = tuple(given)
        if not names:
            raise UserError(
                "hydra/sweeper=optuna needs an objective: set trainer.monitor and "
                "trainer.evaluate_every, or hydra.sweeper.objective to a final number of a run"
            )
        if len(names) != len(directions):
            raise UserError(
                f"hydra.sweeper.objective={','.join(names)} and "
                f"hydra.sweeper.direction={','.join(directions)}: "
                "each objective needs its own direction, minimize or maximize"
            )
        if self.has_pruner and len(names) > 1:
            raise UserError(
                "hydra.sweeper.pruner needs a single objective: with several, neither of two "
                "runs may be the better one"
            )
        if self.has_pruner and not evaluate_every:
            raise UserError("hydra.sweeper.pruner needs evaluations: set trainer.evaluate_every")
        return SearchGoal(names, directions)


class Study:
    """A study in a sweep's folder, and the sampler that draws its trials.

    Args:
        folder: of the sweep.
        eval_steps: the steps of a run's first evaluation and of its end.

    Raises:
        UserError: the folder holds another search; an unknown sampler or pruner; a damaged journal.
    """

    def __init__(
        self,
        folder: Path,
        space: SearchSpace,
        goal: SearchGoal,
        *,
        search: SearchOptions,
        eval_steps: tuple[int, int],
    ) -> None:
        self.space, self.goal, self.seed = space, goal, search.seed
        self.sampler_name, self.sampler_options = parse_name_and_options(
            search.sampler, SAMPLERS, "hydra.sweeper.sampler"
        )
        folder.mkdir(parents=True, exist_ok=True)
        store = open_storage(folder)
        sampler, pruner = self.make_sampler(0), make_pruner(search.pruner, eval_steps)
        if store.get_all_studies():
            self.study = optuna.load_study(
                study_name=STUDY_NAME, storage=store, sampler=sampler, pruner=pruner
            )
        else:
            self.study = optuna.create_study(
                study_name=STUDY_NAME,
                storage=store,
                sampler=sampler,
                pruner=pruner,
                directions=goal.directions,
            )
        self.check_same_search(folder)
        if self.sampler_name == "grid":
            self.enqueue_grid()
        # A killed process may have left a trial with some of its values only.
        for trial in self.trials(TrialState.RUNNING):
            self.study.sampler = self.make_sampler(trial.number)
            suggest_missing_params(optuna.Trial(self.study, trial._trial_id), space.distributions)

    def check_same_search(self, folder: Path) -> None:
        """Record what this study searches, and refuse to continue another search.

        An objective's name may change until a trial counted.

        Raises:
            UserError: the study searches something else.
        """
        goal = {key: list(value) for key, value in asdict(self.goal).items()}
        wanted = {"overrides": sorted(non_runtime_overrides(self.space.given)), **goal}
        record = wanted | {"format": FORMAT}
        known = dict(self.study.user_attrs.get("search", record))
        known["overrides"] = sorted(migrate_overrides(known["overrides"], known.pop("format", 1)))
        has_counted_trials = bool(self.trials(TrialState.COMPLETE, TrialState.PRUNED))
        fixed = [key for key in wanted if key != "objectives" or has_counted_trials]
        if changed := [key for key in fixed if known[key] != wanted[key]]:
            theirs, ours = (
                ", ".join(f"{key} {' '.join(search[key])}" for key in changed)
                for search in (known, wanted)
            )
            raise UserError(
                f"{folder} holds a search with {theirs}, not with {ours}; "
                "give another hydra.sweep.dir="
            )
        self.refuse_renamed_params(folder)
        if self.study.user_attrs.get("search") != record:
            self.study.set_user_attr("search", record)

    def refuse_renamed_params(self, folder: Path) -> None:
        """Refuse a study of an older format in which a searched option had another name.

        Raises:
            UserError: names the option; the study's file cannot be changed.
        """
        for trial in self.study.get_trials(deepcopy=False):
            if unknown := trial.params.keys() - self.space.distributions.keys():
                raise UserError(
                    f"{folder} searches {', '.join(sorted(unknown))}, which is now called "
                    "differently; give another hydra.sweep.dir="
                )

    def enqueue_grid(self) -> None:
        """Put all combinations of the grid's values into the queue, each once."""
        grid = self.space.grid_values()
        for combination in itertools.product(*grid.values()):
            params = dict(zip(grid, combination, strict=True))
            self.study.enqueue_trial(params, skip_if_exists=True)

    def make_sampler(self, number: int) -> BaseSampler:
        """Return the sampler of one trial.

        Its draws are a function of the seed and the trial's number. So a resumed search draws what
        it would have drawn without the interruption.
        """
        options = dict(self.sampler_options)
        if self.sampler_name == "tpe":  # keep trials of one batch apart from each other
            options = {"constant_liar": True} | options
        options["seed"] = None if self.seed is None else derive_seed(self.seed, number) % 2**32
        class_name = SAMPLERS[self.sampler_name]
        return make_optuna_object(optuna.samplers, class_name, options, "hydra.sweeper.sampler")

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states; without states, all that were started."""
        started = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return self.study.get_trials(deepcopy=False, states=states or started)

    def ask(self) -> FrozenTrial | None:
        """Start a trial and return it; None when a grid is exhausted."""
        if self.sampler_name == "grid" and not self.trials(TrialState.WAITING):
            return None
        self.study.sampler = self.make_sampler(len(self.trials()))
        number = self.study.ask(fixed_distributions=self.space.distributions).number
        return self.study.get_trials(deepcopy=False)[number]

    def trial_overrides(self, trial: FrozenTrial) -> list[str]:
        """Return the overrides of a trial's job."""
        return self.space.job_overrides(trial.params)

    def tell(self, number: int, result: dict[str, Any] | None, where: str) -> str:
        """Record the result of a trial's job, None for a failed job; return it in words.

        Raises:
            UserError: the result lacks an objective; the trial stays running.
        """
        if result is None:
            self.study.tell(number, state=TrialState.FAIL)
            return "failed"
        if "pruned" in result:
            self.study.tell(number, state=TrialState.PRUNED)
            return f"pruned at step {result['pruned']:,.0f}"
        values = self.goal.objective_values(result, where)
        text = ", ".join(
            f"{name} {value:.6g}" for name, value in zip(self.goal.objectives, values, strict=True)
        )
        if not all(map(math.isfinite, values)):
            self.study.tell(number, state=TrialState.FAIL)
            return f"failed: {text}"
        self.study.tell(number, values)
        return text

    def best_trials(self) -> list[FrozenTrial]:
        """Return the best trial; with several objectives, the Pareto front; [] without results."""
        return self.study.best_trials


def suggest_missing_params(trial: optuna.Trial, distributions: dict[str, BaseDistribution]) -> None:
    """Draw those values of a trial that it does not have yet."""
    for key, one in distributions.items():
        if isinstance(one, CategoricalDistribution):
            trial.suggest_categorical(key, one.choices)
        elif isinstance(one, IntDistribution):
            trial.suggest_int(key, one.low, one.high, step=one.step, log=one.log)
        elif isinstance(one, FloatDistribution):
            trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def open_storage(folder: Path) -> JournalStorage:
    """Open the journal in a folder.

    A last line that a kill or a full disk cut short is dropped: it was never acted on.

    Raises:
        UserError: the journal is damaged.
    """
    # An absolute path: optuna follows the lock's link to see whether its holder lives.
    path = folder.resolve() / JOURNAL_FILE
    lock = JournalFileSymlinkLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            with open(path, "rb+") as file:
                content = file.read()
                if not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
        finally:
            lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is unreadable: {error}") from error


def parse_name_and_options(
    given: NameWithOptions, known: dict[str, str], where: str
) -> tuple[str, dict[str, Any]]:
    """Return the name and the options in `name` or `{name: name, …}`.

    Raises:
        UserError: the name is unknown.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if name not in known:
        kind = where.rpartition(".")[2]
        near = did_you_mean(str(name), known)
        raise UserError(
            f"{where}={name}: there is no such {kind}{near}; there are {', '.join(known)}"
        )
    return str(name), options


def make_optuna_object(module: Any, name: str, options: dict[str, Any], where: str) -> Any:
    """Return an object of a class of optuna.

    Raises:
        UserError: an unknown option, or one that optuna refuses.
    """
    cls = getattr(module, name)
    parameters = inspect.signature(cls).parameters
    defaults = {key: p.default for key, p in parameters.items() if key != "seed"}
    for key, value in options.items():
        if key not in defaults and key != "seed":
            raise UserError(
                f"unknown option '{where}.{key}'{did_you_mean(key, defaults)}; "
                f"{name} has {', '.join(defaults) or 'no options'}"
            )
        # optuna itself would notice a wrong type too late.
        is_number = isinstance(defaults.get(key), int | float)
        if is_number and not isinstance(value, int | float):
            raise UserError(
                f"{where}.{key}={value}: input should be a number or a truth value, "
                f"such as {defaults[key]}"
            )
    try:
        return cls(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{where}: {name}: {' '.join(str(error).split())}") from error


def make_pruner(given: NameWithOptions, eval_steps: tuple[int, int]) -> optuna.pruners.BasePruner:
    """Return a pruner.

    Args:
        eval_steps: the steps of a run's first evaluation and of its end; Hyperband's brackets lie
            between them.
    """
    name, options = parse_name_and_options(given, PRUNERS, "hydra.sweeper.pruner")
    if name == "hyperband":
        options = {"min_resource": eval_steps[0], "max_resource": eval_steps[1]} | options
    return make_optuna_object(optuna.pruners, PRUNERS[name], options, "hydra.sweeper.pruner")


def stop_callback(
    folder: Path,
    number: int,
    goal: SearchGoal,
    *,
    search: SearchOptions,
    eval_steps: tuple[int, int],
) -> Callable[[int, dict[str, tuple[Estimate, bool]]], str | None]:
    """Return the function that a trial's job calls after each evaluation.

    It records the objective at that step in the study, and returns "pruned" if the pruner ends the
    trial.

    Raises:
        UserError: raised by the returned function, if the objective is not evaluated or the search
            has the wrong direction.
    """
    (objective,), (direction,) = goal.objectives, goal.directions
    store = open_storage(folder)
    study = optuna.load_study(
        study_name=STUDY_NAME, storage=store, pruner=make_pruner(search.pruner, eval_steps)
    )
    study_id = store.get_study_id_from_name(STUDY_NAME)
    trial = store.get_trial_id_from_study_id_trial_number(study_id, number)

    def stop_reason(step: int, measures: dict[str, tuple[Estimate, bool]]) -> str | None:
        if objective not in measures:
            near = did_you_mean(objective, measures)
            raise UserError(
                f"hydra.sweeper.objective={objective} is not evaluated{near}; "
                f"there are {', '.join(measures)}"
            )
        estimate, higher_is_better = measures[objective]
        if higher_is_better and direction == "minimize":
            raise UserError(
                f"hydra.sweeper.direction=minimize: {objective} is better if higher; "
                "set hydra.sweeper.direction=maximize"
            )
        if store.get_trial(trial).state.is_finished():
            return None  # the job runs again after its trial has ended
        store.set_trial_intermediate_value(trial, step, estimate.value)
        return "pruned" if study.pruner.prune(study, store.get_trial(trial)) else None

    return stop_reason
