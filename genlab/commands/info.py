"""genlab tasks: what can be asked of a run."""

from __future__ import annotations

from genlab.abilities import ABILITIES, abilities
from genlab.commands import COMMANDS
from genlab.config.recipes import TAGS
from genlab.console import show
from genlab.inference.requirements import commands
from genlab.metrics import Settings, metrics_for
from genlab.metrics.context import Subject
from genlab.runs.loaded_run import Run


def tasks(run: Run) -> None:
    """Print the run's abilities, the commands that fit it, and the metrics that fit."""
    has = abilities(run.model)
    print(f"{run.folder.path}: {run.name} on {run.info['dataset']}, step {run.step:,}")
    show(
        ["ability", run.name],
        [[verb, TAGS.get(verb, "yes") if verb in has else "none"] for verb in ABILITIES],
    )
    fitting = commands(run)
    lines = [
        [f"genlab {command} run={run.folder.path}", COMMANDS[command].partition(":")[0]]
        for command in fitting
    ]
    show(["command", "what it gives"], lines)
    if "sample" in fitting:
        y = ["y=0"] if getattr(run.model, "conditional", False) else []
        for option in [*y, *(f"sampler={name}" for name in getattr(run.model, "samplers", ()))]:
            print(f"genlab sample run={run.folder.path} {option}")
    measures = metrics_for(Subject(run.dataset, Settings(), model=run.model, training=run.training))
    if measures:
        print(f"genlab evaluate run={run.folder.path} metrics=[{','.join(measures)}]")
