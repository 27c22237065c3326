"""hydra/sweeper=optuna: run trials as jobs and report their results to the study."""

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

from genlab.config.instantiate import instantiate, validate_kwargs
from genlab.errors import UserError, make_printable
from genlab.spec import Count, Positive
from genlab.sweeps.file_locks import hold_file_lock
from genlab.sweeps.hydra_launchers import SweepLauncher
from genlab.sweeps.job_state import Job, JobState, Status, current_states
from genlab.sweeps.sweep_folder import SweepFolder
from genlab.tables import print_table

if TYPE_CHECKING:
    from genlab.sweeps.optuna_study import Study


def register_sweeper(failed: list[Exception]) -> None:
    """Register the sweeper with Hydra in this process, after the launchers.

    Args:
        failed: where the launchers put the errors of jobs; the sweeper removes those of trials.
    """
    # Hydra instantiates only plugins of the package hydra_plugins.
    module = sys.modules["hydra_plugins.genlab"]
    members = {"__module__": module.__name__, "failed": failed}
    plugin = type("OptunaSweeper", (OptunaSweeper,), members)
    setattr(module, plugin.__name__, plugin)
    Plugins.instance().register(plugin)


def declare_trainer_option_types(*, evaluate_every: Count, steps: Positive) -> None:
    """Declare the types of the trainer's options that a search reads."""


class OptunaSweeper(Sweeper):
    """A sweep whose jobs are the trials of a study: job n is trial n, in the folder <sweep>/n."""

    failed: ClassVar[list[Exception]]
    config: DictConfig
    launcher: SweepLauncher
    hydra_context: HydraContext

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store what Hydra passes, and check the options.

        Raises:
            UserError: optuna is not installed, or an option is wrong.
        """
        try:
            from genlab.sweeps.optuna_study import SearchOptions
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs optuna: pip install 'genlab[optuna]'"
            ) from error
        options = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self.options.items()
        }
        self.search: SearchOptions = instantiate(SearchOptions, options, "hydra.sweeper")
        self.hydra_context, self.config = hydra_context, config
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher):
            raise UserError(
                "hydra/sweeper=optuna needs a launcher of genlab, which records each job's state: "
                "hydra/launcher=local, slurm, …"
            )
        self.launcher = launcher
        self.num_parallel_trials = self.search.n_jobs or launcher.num_parallel_jobs

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, or resume it, and print the best trials.

        Raises:
            UserError: the search is not valid, another process runs it, or trials did not end.
        """
        from genlab.sweeps.optuna_study import Study
        from genlab.sweeps.search_space import SearchSpace

        params = [
            f"{key}={'null' if value is None else value}"
            for key, value in self.search.params.items()
        ]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = SearchSpace.from_overrides(parser.parse_overrides([*params, *arguments]))
        trainer = {
            key: OmegaConf.select(self.config, f"trainer.{key}")
            for key in ("evaluate_every", "steps")
        }
        trainer = validate_kwargs(declare_trainer_option_types, trainer, "trainer")
        evaluate_every, steps = trainer["evaluate_every"], trainer["steps"]
        goal = self.search.make_goal(
            OmegaConf.select(self.config, "trainer.monitor"), evaluate_every
        )
        self.validate_batch_is_legal(space.probe_overrides())
        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        SweepFolder(self.folder).refuse_links()
        with hold_file_lock(self.folder / ".search.lock", timeout_s=0):
            study = Study(
                self.folder,
                space,
                goal,
                search=self.search,
                eval_steps=(evaluate_every or 1, steps),
            )
            print(
                f"searching {', '.join(space.distributions)} by {', '.join(goal.objectives)}: "
                f"{self.search.n_trials} trials, {self.num_parallel_trials} at a time, "
                f"{len(study.trials())} started: {self.folder}",
                flush=True,
            )
            unfinished = self.run_trials(study)
            print_best_trials(study, self.folder)
        if unfinished:
            statuses = ", ".join(f"{number} is {status}" for number, status in unfinished.items())
            raise UserError(
                f"trials of the search did not end ({statuses}); "
                f"resume it with `genlab sweep resume {quote(str(self.folder))}`"
            )

    def run_trials(self, study: Study) -> dict[int, str]:
        """Run trials until there are n_trials; return number -> status of unfinished ones."""
        from optuna.trial import TrialState

        running = [trial.number for trial in study.trials(TrialState.RUNNING)]
        waiting = list(self.tell_ended_trials(study, running))
        unfinished: dict[int, str] = {}
        while True:
            size = self.num_parallel_trials
            batch, waiting = waiting[:size], waiting[size:]
            if not batch:
                # Only after the resumed trials: so new ones are drawn as without an interruption.
                batch = self.draw_trials(study)
            if not batch:
                return unfinished
            self.launch_trials(study, batch)
            left = self.tell_ended_trials(study, batch, status_of_lost="failed")
            unfinished |= left
            if len(left) == len(batch):  # all were stopped: the user means the whole search
                return unfinished | dict.fromkeys(waiting, "waiting")

    def draw_trials(self, study: Study) -> list[int]:
        """Draw a batch of new trials, and return their numbers; [] if the search is complete."""
        batch: list[int] = []
        while len(batch) < self.num_parallel_trials and len(study.trials()) < self.search.n_trials:
            if (trial := study.ask()) is None:
                break
            batch.append(trial.number)
        return batch

    def launch_trials(self, study: Study, numbers: list[int]) -> None:
        """Run the jobs of some trials, each in its folder, and wait for them."""
        trials = study.trials()
        others = [number for number in range(min(numbers), max(numbers)) if number not in numbers]
        done = {n for n, state in self.trial_states(others).items() if state.status == "done"}
        for span in group_into_launch_ranges(numbers, done):
            jobs = [study.trial_overrides(trials[number]) for number in span]
            self.launcher.launch(jobs, initial_job_idx=span.start)
            self.failed.clear()  # a failed trial is a result, not an error of the search

    def tell_ended_trials(
        self, study: Study, numbers: Sequence[int], *, status_of_lost: Status = "lost"
    ) -> dict[int, str]:
        """Tell the study the results of trials whose jobs have ended.

        Args:
            status_of_lost: the status of jobs whose process is gone. After the launcher has tried
                them again, they have failed.

        Returns:
            number -> status of the other trials.
        """
        left: dict[int, str] = {}
        for number, state in self.trial_states(numbers).items():
            status = status_of_lost if state.status == "lost" else state.status
            if status not in ("done", "failed"):
                left[number] = status
                continue
            result = state.result if status == "done" else None
            assert result is None or isinstance(result, dict)
            text = study.tell(number, result, f"job {number}")
            if status == "failed":
                text += f" ({make_printable((state.error or state.status).splitlines()[-1])})"
            params = study.trials()[number].params
            drawn = " ".join(
                f"{key}={format_value_for_display(value)}" for key, value in params.items()
            )
            print(f"trial {number}: {text}: {drawn}", flush=True)
        return left

    def trial_states(self, numbers: Sequence[int]) -> dict[int, JobState]:
        """Return the present states of some trials' jobs, by number."""
        jobs = [Job(number, (), self.folder / str(number)) for number in numbers]
        return dict(zip(numbers, current_states(jobs), strict=True))


def group_into_launch_ranges(numbers: Sequence[int], done: set[int]) -> list[range]:
    """Return numbers as ranges, one for each launch.

    A range may contain other numbers if their jobs are done: those do not run again.
    """
    ranges: list[range] = []
    for number in sorted(numbers):
        if ranges and done >= set(range(ranges[-1].stop, number)):
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    return ranges


def format_value_for_display(value: Any) -> str:
    """Return a value as text, floats with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_best_trials(study: Study, folder: Path) -> None:
    """Print how the trials ended, and the best of them with their values and folders."""
    counts = Counter(trial.state.name.lower() for trial in study.trials())
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"{sum(counts.values())} trials: {summary}")
    keys = list(study.space.distributions)
    rows = [
        [
            str(trial.number),
            *map(format_value_for_display, trial.values or []),
            *(format_value_for_display(trial.params[key]) for key in keys),
            str(folder / str(trial.number)),
        ]
        for trial in study.best_trials()
    ]
    if rows:
        print_table(["best", *study.goal.objectives, *keys, "folder"], rows)
