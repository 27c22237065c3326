"""genlab info: list the abilities, commands and metrics that fit a run."""

from __future__ import annotations

import sys
from typing import Any

from genlab.abilities import ABILITIES, abilities
from genlab.commands import COMMANDS
from genlab.config.recipes import LIKELIHOOD_TAGS
from genlab.data.dataset import Dataset
from genlab.data.summary import DataSummary
from genlab.errors import UserError, make_printable
from genlab.inference.requirements import commands_supported_by_run
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import applicable_metrics
from genlab.runs.loaded_run import LoadedRun
from genlab.tables import print_table, print_wrapped, use_nonbreaking_spaces


def info(run: LoadedRun) -> None:
    """Print a run's data, the abilities of its model, and the commands and metrics that fit."""
    available = abilities(run.model)
    print(f"{run.folder.path}: {run.name} on {run.dataset_name}, step {run.step:,}")
    for line in data_summary_lines(run):
        print_wrapped(f"data: {line}")
    print_table(
        ["ability", run.name],
        [
            [verb, LIKELIHOOD_TAGS.get(verb, "yes") if verb in available else "none"]
            for verb in ABILITIES
        ],
    )
    commands = commands_supported_by_run(run)
    print_table(
        ["command", "description"],
        [
            [
                use_nonbreaking_spaces(f"genlab {command} run={run.folder.path}"),
                COMMANDS[command].help.partition(":")[0],
            ]
            for command in commands
        ],
    )
    if "sample" in commands:
        labels = (
            [example_label_option(run)] if run.model.conditional and run.spec.num_classes else []
        )
        for option in [*labels, *(f"sampler={name}" for name in run.model.samplers)]:
            print(f"genlab sample run={run.folder.path} {option}")
    if (dataset := open_dataset_or_warn(run)) is None:
        return
    context = MetricContext(dataset, Settings(), model=run.model, training=run.training_cost)
    if metrics := applicable_metrics(context):
        print(f"genlab evaluate run={run.folder.path} metrics=[{','.join(metrics)}]")


def data_summary_lines(run: LoadedRun) -> list[str]:
    """Return what was understood of the run's data, as its training printed it."""
    values = run.folder.data_summary()
    if not values:  # a run of an older version
        dataset = open_dataset_or_warn(run)
        return dataset.describe().lines() if isinstance(dataset, Dataset) else []
    try:
        lines = DataSummary.from_json(values).lines()
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{run.folder.path / 'data.json'} is unreadable: it is not a summary ({reason})"
        ) from error
    return [make_printable(line) for line in lines]


def open_dataset_or_warn(run: LoadedRun) -> Any:
    """Return the run's dataset; if it cannot be opened, print why and return None."""
    try:
        return run.dataset
    except UserError as error:
        print(f"metrics are not listed: {error}", file=sys.stderr)
        return None


def example_label_option(run: LoadedRun) -> str:
    """Return the option that asks for the run's first class."""
    label = run.spec.class_name(0)
    return f"label={label}" if label.isalnum() else f'label="{label}"'
