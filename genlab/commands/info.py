"""genlab info: list the abilities, commands and metrics that fit a run."""

from __future__ import annotations

from genlab.abilities import ABILITIES, abilities
from genlab.commands import COMMANDS
from genlab.config.recipes import LIKELIHOOD_TAGS
from genlab.console import print_table
from genlab.inference.requirements import supported_commands
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import applicable_metrics
from genlab.runs.loaded_run import LoadedRun


def info(run: LoadedRun) -> None:
    """Print the abilities of the run's model, and the commands and metrics that fit the run."""
    available = abilities(run.model)
    print(f"{run.folder.path}: {run.name} on {run.dataset_name}, step {run.step:,}")
    print_table(
        ["ability", run.name],
        [
            [verb, LIKELIHOOD_TAGS.get(verb, "yes") if verb in available else "none"]
            for verb in ABILITIES
        ],
    )
    commands = supported_commands(run)
    print_table(
        ["command", "description"],
        [
            [f"genlab {command} run={run.folder.path}", COMMANDS[command].help.partition(":")[0]]
            for command in commands
        ],
    )
    if "sample" in commands:
        labels = ["label=0"] if run.model.conditional else []
        for option in [*labels, *(f"sampler={name}" for name in run.model.samplers)]:
            print(f"genlab sample run={run.folder.path} {option}")
    context = MetricContext(run.dataset, Settings(), model=run.model, training=run.training_cost)
    if metrics := applicable_metrics(context):
        print(f"genlab evaluate run={run.folder.path} metrics=[{','.join(metrics)}]")
