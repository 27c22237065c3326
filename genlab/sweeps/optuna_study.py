"""A search's memory: an optuna study in a file of the sweep's folder, which outlives its process; it is asked and told."""

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

from genlab.errors import UserError, did_you_mean
from genlab.seeding import mix
from genlab.spec import Count, Positive
from genlab.sweeps.sweep_folder import what

if TYPE_CHECKING:
    from genlab.abilities import Estimate
    from genlab.sweeps.search_space import Space

JOURNAL = "study.journal"
NAME = "sweep"  # of the study: its file holds no other
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
Named = str | dict[str, Any]  # a name, or {name: …} with options

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Goal:
    """What is searched for: final numbers of a run by name, and whether less or more of each is better."""

    objectives: tuple[str, ...]
    directions: tuple[Direction, ...]

    def values(self, result: dict[str, Any], where: str) -> list[float]:
        """Return a run's values of the objectives.

        Raises:
            UserError: it has no such number.
        """
        for name in self.objectives:
            if name not in result:
                listed = ", ".join(result) or "none"
                raise UserError(
                    f"hydra.sweeper.objective: {where} has no '{name}'{did_you_mean(name, result)}; it has {listed}"
                )
        return [float(result[name]) for name in self.objectives]


@dataclass(frozen=True)
class Search:
    """The options of a search, as configs/hydra/sweeper/optuna.yaml lists them."""

    params: dict[str, Any] = field(default_factory=dict)
    objective: str | list[str] | None = None
    direction: Direction | list[Direction] = "minimize"
    n_trials: Positive = 20
    n_jobs: Positive | None = None
    sampler: Named = "tpe"
    seed: Count | None = 0
    pruner: Named = "none"

    @property
    def prunes(self) -> bool:
        """Whether trials may end early."""
        return named(self.pruner, PRUNERS, "hydra.sweeper.pruner")[0] != "none"

    def goal(self, monitor: str | None, evaluate_every: int) -> Goal:
        """Return what is searched for in runs that are evaluated so.

        Raises:
            UserError: nothing is; an objective without its direction; pruning with nothing to judge by.
        """
        names = listed(self.objective or monitor or [])
        if not names:
            raise UserError(
                "hydra/sweeper=optuna needs a number to search by: set trainer.monitor and trainer.evaluate_every, "
                "or hydra.sweeper.objective to a final number of a run"
            )
        directions = listed(self.direction)
        if len(names) != len(directions):
            ours = f"objective={','.join(names)} and hydra.sweeper.direction={','.join(directions)}"
            raise UserError(
                f"hydra.sweeper.{ours}: each objective needs its own direction, minimize or maximize"
            )
        if self.prunes and len(names) > 1:
            raise UserError(
                "hydra.sweeper.pruner goes with one objective: by several none of two runs need be the better"
            )
        if self.prunes and not evaluate_every:
            raise UserError(
                "hydra.sweeper.pruner needs evaluations to judge by: set trainer.evaluate_every"
            )
        return Goal(names, directions)


def listed(one: str | list[str]) -> tuple[str, ...]:
    return (one,) if isinstance(one, str) else tuple(one)


class Study:
    """A study and the rule that draws from it.

    Raises:
        UserError: the folder holds another search; a sampler or a pruner that is not there; a damaged journal.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        goal: Goal,
        *,
        search: Search,
        rungs: tuple[int, int],
    ) -> None:
        self.space, self.goal, self.seed = space, goal, search.seed
        self.name, self.options = named(search.sampler, SAMPLERS, "hydra.sweeper.sampler")
        folder.mkdir(parents=True, exist_ok=True)
        store, rules = (
            storage(folder),
            {"sampler": self.sampler(0), "pruner": make_pruner(search.pruner, rungs)},
        )
        if store.get_all_studies():
            self.study = optuna.load_study(study_name=NAME, storage=store, **rules)
        else:
            self.study = optuna.create_study(
                study_name=NAME, storage=store, directions=goal.directions, **rules
            )
        self.claim(folder)
        if self.name == "grid":
            grid = space.grid()
            for combination in itertools.product(*grid.values()):
                self.study.enqueue_trial(
                    dict(zip(grid, combination, strict=True)), skip_if_exists=True
                )
        for trial in self.trials(
            TrialState.RUNNING
        ):  # a kill may have come between two draws of one
            self.study.sampler = self.sampler(trial.number)
            suggest(optuna.Trial(self.study, trial._trial_id), space.searched)

    def claim(self, folder: Path) -> None:
        """Write into the study what it searches, so that no other search goes on with it; a name may change until one counted.

        Raises:
            UserError: it searches something else.
        """
        goal = {key: list(value) for key, value in asdict(self.goal).items()}
        asked = {"overrides": sorted(what(self.space.written)), **goal}
        known = self.study.user_attrs.get("search", asked)
        fixed = [
            key
            for key in asked
            if key != "objectives" or self.trials(TrialState.COMPLETE, TrialState.PRUNED)
        ]
        if differ := [key for key in fixed if known[key] != asked[key]]:
            theirs, ours = (
                ", ".join(f"{key} {' '.join(one[key])}" for key in differ) for one in (known, asked)
            )
            raise UserError(
                f"{folder} holds a search with {theirs}, and not with {ours}; give another hydra.sweep.dir="
            )
        if self.study.user_attrs.get("search") != asked:
            self.study.set_user_attr("search", asked)

    def sampler(self, number: int) -> BaseSampler:
        """Return the sampler of one trial: its draws are a function of the seed and the trial's number, so that a search that
        goes on draws what it would have drawn, and not its first trials again."""
        seed = None if self.seed is None else mix(self.seed, number) % 2**32
        liar = (
            {"constant_liar": True} if self.name == "tpe" else {}
        )  # trials of one batch keep clear of each other
        return make(
            optuna.samplers,
            SAMPLERS[self.name],
            {**liar, **self.options, "seed": seed},
            "hydra.sweeper.sampler",
        )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials begun, or those in some states."""
        begun = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return self.study.get_trials(deepcopy=False, states=states or begun)

    def ask(self) -> FrozenTrial | None:
        """Begin a trial and return it, or None where a grid is through."""
        if self.name == "grid" and not self.trials(TrialState.WAITING):
            return None
        self.study.sampler = self.sampler(len(self.trials()))
        number = self.study.ask(fixed_distributions=self.space.searched).number
        return self.study.get_trials(deepcopy=False)[number]

    def overrides(self, trial: FrozenTrial) -> list[str]:
        """Return the overrides of a trial's job."""
        return self.space.overrides(trial.params)

    def tell(self, number: int, result: dict[str, Any] | None, where: str) -> str:
        """Tell what a trial's job returned, None of one that failed; return it in words.

        Raises:
            UserError: the job returned no such objective; the trial stays untold.
        """
        if result is None:
            self.study.tell(number, state=TrialState.FAIL)
            return "failed"
        if "pruned" in result:
            self.study.tell(number, state=TrialState.PRUNED)
            return f"pruned at step {result['pruned']:,.0f}"
        found = self.goal.values(result, where)
        said = ", ".join(
            f"{name} {value:.6g}" for name, value in zip(self.goal.objectives, found, strict=True)
        )
        if not all(map(math.isfinite, found)):
            self.study.tell(number, state=TrialState.FAIL)
            return f"failed: {said}"
        self.study.tell(number, found)
        return said

    def best(self) -> list[FrozenTrial]:
        """Return the best trial, or of several objectives those that no other is better than in all; none is told yet: []."""
        return self.study.best_trials


def suggest(trial: optuna.Trial, space: dict[str, BaseDistribution]) -> None:
    """Draw for a trial whatever it has not drawn yet."""
    for key, one in space.items():
        if isinstance(one, CategoricalDistribution):
            trial.suggest_categorical(key, one.choices)
        elif isinstance(one, IntDistribution):
            trial.suggest_int(key, one.low, one.high, step=one.step, log=one.log)
        elif isinstance(one, FloatDistribution):
            trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def storage(folder: Path) -> JournalStorage:
    """Open the journal in a folder; a last line that a kill or a full disk cut short is dropped, since nobody was told of it.

    Raises:
        UserError: it is damaged.
    """
    path = (
        folder.resolve() / JOURNAL
    )  # absolute: optuna tells by the lock's target whether who holds it still lives
    lock = JournalFileSymlinkLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            with open(path, "rb+") as file:
                whole = file.read()
                if not whole.endswith(b"\n"):
                    file.truncate(whole.rfind(b"\n") + 1)
        finally:
            lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is unreadable: {error}") from error


def named(given: Named, known: dict[str, str], where: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options in `name` or `{name: name, …}`.

    Raises:
        UserError: there is no such name.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if name not in known:
        kind = where.rpartition(".")[2]
        raise UserError(
            f"{where}={name}: there is no such {kind}{did_you_mean(str(name), known)}; there are {', '.join(known)}"
        )
    return name, options


def make(module: Any, name: str, options: dict[str, Any], where: str) -> Any:
    """Return an object of optuna's, its options by name.

    Raises:
        UserError: an unknown option, or one that optuna refuses.
    """
    kind = getattr(module, name)
    known = {
        key: p.default for key, p in inspect.signature(kind).parameters.items() if key != "seed"
    }
    for key, value in options.items():
        if key not in known and key != "seed":
            listed = ", ".join(known) or "none"
            raise UserError(
                f"unknown option '{where}.{key}'{did_you_mean(key, known)}; {name} has {listed}"
            )
        if isinstance(known.get(key), int | float) and not isinstance(
            value, int | float
        ):  # optuna itself finds out too late
            raise UserError(
                f"{where}.{key}={value}: input should be a number or a truth value, such as {known[key]}"
            )
    try:
        return kind(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{where}: {name}: {' '.join(str(error).split())}") from error


def make_pruner(given: Named, rungs: tuple[int, int]) -> optuna.pruners.BasePruner:
    """Return a pruner; hyperband's brackets lie between `rungs`, the steps of a run's first evaluation and of its end."""
    name, options = named(given, PRUNERS, "hydra.sweeper.pruner")
    if name == "hyperband":
        options = {"min_resource": rungs[0], "max_resource": rungs[1]} | options
    return make(optuna.pruners, PRUNERS[name], options, "hydra.sweeper.pruner")


def verdict(
    folder: Path, number: int, goal: Goal, *, search: Search, rungs: tuple[int, int]
) -> Callable[[int, dict[str, tuple[Estimate, bool]]], str | None]:
    """Return what a job of a sweep asks after each evaluation: it tells the study the objective at that step, and returns
    "pruned" where the pruner ends the trial.

    Raises:
        UserError: by the returned function: no such metric is evaluated, or the search goes the wrong way.
    """
    (objective,), (direction,) = goal.objectives, goal.directions
    store = storage(folder)
    study = optuna.load_study(
        study_name=NAME, storage=store, pruner=make_pruner(search.pruner, rungs)
    )
    trial = store.get_trial_id_from_study_id_trial_number(
        store.get_study_id_from_name(NAME), number
    )

    def judged(step: int, measures: dict[str, tuple[Estimate, bool]]) -> str | None:
        if objective not in measures:
            near = did_you_mean(objective, measures)
            raise UserError(
                f"hydra.sweeper.objective={objective} is not evaluated{near}; there are {', '.join(measures)}"
            )
        estimate, higher = measures[objective]
        if higher and direction == "minimize":
            raise UserError(f"hydra.sweeper.direction=minimize: of {objective} more is better")
        if store.get_trial(trial).state.is_finished():
            return None  # a job that is run again after its trial was told
        store.set_trial_intermediate_value(trial, step, estimate.value)
        return "pruned" if study.pruner.prune(study, store.get_trial(trial)) else None

    return judged
