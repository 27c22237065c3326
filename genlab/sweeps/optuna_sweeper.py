"""hydra/sweeper=optuna: draws trials, has Hydra's launcher run each as a job of the sweep, and tells the study how it ended."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from genlab.config.instantiate import arguments as checked
from genlab.config.instantiate import construct
from genlab.console import show
from genlab.errors import UserError, printable
from genlab.spec import Count, Positive
from genlab.sweeps.file_locks import hold
from genlab.sweeps.hydra_launchers import Jobs
from genlab.sweeps.sweep_folder import Job, State, Status, standing

if TYPE_CHECKING:
    from genlab.sweeps.optuna_study import Study


def register(failed: list[Exception]) -> None:
    """Make the sweeper known to Hydra in this process; it takes out of `failed` what the launchers put there of failed trials."""
    module = sys.modules[
        "hydra_plugins.genlab"
    ]  # the launchers': Hydra makes plugins of classes in hydra_plugins alone
    module.OptunaSweeper = type(
        "OptunaSweeper", (OptunaSweeper,), {"__module__": module.__name__, "failed": failed}
    )
    Plugins.instance().register(module.OptunaSweeper)


def paced(*, evaluate_every: Count, steps: Positive) -> None:
    """The types of the trainer's options that a search reads."""


class OptunaSweeper(Sweeper):
    """A sweep whose jobs are the trials of a study: job n is trial n, in the folder <sweep>/n."""

    failed: ClassVar[list[Exception]]

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives.

        Raises:
            UserError: optuna is not installed, or an option is not understood.
        """
        try:
            from genlab.sweeps.optuna_study import Search
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs optuna: pip install 'genlab[optuna]'"
            ) from error
        options = {
            key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v
            for key, v in self.options.items()
        }
        self.search = construct(Search, options, "hydra.sweeper")
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(self.launcher, Jobs):
            raise UserError(
                "hydra/sweeper=optuna needs a launcher of genlab's, which keeps each job's state: local, slurm, …"
            )
        self.at_once = self.search.n_jobs or len(getattr(self.launcher, "places", "1"))

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, from where an earlier start left it, and show the best trials.

        Raises:
            UserError: what is asked cannot be searched, another process runs this search, or trials are left unfinished.
        """
        from genlab.sweeps.optuna_study import Study
        from genlab.sweeps.search_space import Space

        given = [
            f"{key}={'null' if value is None else value}"
            for key, value in self.search.params.items()
        ]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = Space.of(parser.parse_overrides([*given, *arguments]))
        known = {
            key: OmegaConf.select(self.config, f"trainer.{key}")
            for key in ("evaluate_every", "steps")
        }
        every, steps = checked(paced, known, "trainer").values()
        goal = self.search.goal(OmegaConf.select(self.config, "trainer.monitor"), every)
        self.validate_batch_is_legal(space.probes())
        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder / ".search.lock", patience=0):
            study = Study(self.folder, space, goal, search=self.search, rungs=(every or 1, steps))
            print(
                f"searches {', '.join(space.searched)} by {', '.join(goal.objectives)}: {self.search.n_trials} trials, "
                f"{self.at_once} at a time, {len(study.trials())} begun: {self.folder}", flush=True,
            )  # fmt: skip
            left = self.run(study)
            report(study, self.folder)
        if left:
            said = ", ".join(f"{number} is {how}" for number, how in left.items())
            mend = f"go on with `genlab sweep resume {quote(str(self.folder))}`"
            raise UserError(f"trials of the search have not ended ({said}); {mend}")

    def run(self, study: Study) -> dict[int, str]:
        """Run trials until there are as many as asked for; return those that did not end, and how they stand."""
        from optuna.trial import TrialState

        waiting = list(
            self.settle(study, [trial.number for trial in study.trials(TrialState.RUNNING)])
        )
        left: dict[int, str] = {}
        while True:
            batch, waiting = waiting[: self.at_once], waiting[self.at_once :]
            resumes = bool(batch)  # and is told before more are drawn, as it would have been
            while (
                not resumes
                and len(batch) < self.at_once
                and len(study.trials()) < self.search.n_trials
            ):
                if (trial := study.ask()) is None:
                    break
                batch.append(trial.number)
            if not batch:
                return left
            self.launch(study, batch)
            unended = self.settle(study, batch, lost="failed")
            left |= unended
            if len(unended) == len(batch):  # whoever ended or cancelled them all meant the search
                return left | dict.fromkeys(waiting, "waiting")

    def launch(self, study: Study, numbers: list[int]) -> None:
        """Run the jobs of some trials, each in its folder, and wait for them."""
        trials = study.trials()
        before = [number for number in range(min(numbers), max(numbers)) if number not in numbers]
        for span in spans(
            numbers, {n for n, state in self.standing(before).items() if state.status == "done"}
        ):
            jobs = [study.overrides(trials[number]) for number in span]
            self.launcher.launch(jobs, initial_job_idx=span.start)
            self.failed.clear()  # a trial may fail: the study is told

    def settle(
        self, study: Study, numbers: Sequence[int], *, lost: Status = "lost"
    ) -> dict[int, str]:
        """Tell the study of those trials whose jobs have ended; return the others, and how they stand.

        Args:
            lost: how a job stands whose process is gone: after a launcher's own attempts it has failed.
        """
        left: dict[int, str] = {}
        for number, state in self.standing(numbers).items():
            status = lost if state.status == "lost" else state.status
            if status not in ("done", "failed"):
                left[number] = status
                continue
            said = study.tell(number, state.result if status == "done" else None, f"job {number}")
            why = (
                f" ({printable((state.error or state.status).splitlines()[-1])})"
                if status == "failed"
                else ""
            )
            drawn = " ".join(
                f"{key}={cell(value)}" for key, value in study.trials()[number].params.items()
            )
            print(f"trial {number}: {said}{why}: {drawn}", flush=True)
        return left

    def standing(self, numbers: Sequence[int]) -> dict[int, State]:
        """Return how the jobs of some trials stand."""
        jobs = [Job(number, (), self.folder / str(number)) for number in numbers]
        return dict(zip(numbers, standing(jobs), strict=True))


def spans(numbers: Sequence[int], done: set[int]) -> list[range]:
    """Return the numbers as ranges, each launched at once; what lies between two of one range is done, and not run again."""
    found: list[range] = []
    for number in sorted(numbers):
        if found and done >= set(range(found[-1].stop, number)):
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def cell(value: Any) -> str:
    """Return a number as it is shown."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def report(study: Study, folder: Path) -> None:
    """Print how the trials ended, and the best of them with its overrides and its folder."""
    counts = Counter(trial.state.name.lower() for trial in study.trials())
    print(f"{sum(counts.values())} trials: {', '.join(f'{n} {how}' for how, n in counts.items())}")
    keys = list(study.space.searched)
    rows = [
        [
            trial.number,
            *map(cell, trial.values),
            *(cell(trial.params[key]) for key in keys),
            folder / str(trial.number),
        ]
        for trial in study.best()
    ]
    if rows:
        show(["best", *study.goal.objectives, *keys, "folder"], rows)
