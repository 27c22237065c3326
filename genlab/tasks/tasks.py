"""genlab tasks: what can be asked of a run."""

from __future__ import annotations

from genlab.abilities import ABILITIES, abilities
from genlab.metrics import Settings, metrics_for
from genlab.metrics.subject import Subject
from genlab.tasks.catalogue import TAGS
from genlab.tasks.run import Run
from genlab.tasks.tables import show


def tasks(run: Run) -> None:
    """Print the run's abilities with the command for each, and the metrics that fit."""
    has = abilities(run.model)
    print(f"{run.folder.path}: {run.name} on {run.info['dataset']}, step {run.step:,}")
    rows = [[verb, TAGS.get(verb, "yes") if verb in has else "none"] for verb in ABILITIES]
    show(["ability", run.name], rows)
    commands = []
    if "sample" in has:
        y = " y=0" if getattr(run.model, "conditional", False) else ""
        commands.append(f"genlab sample run={run.folder.path}{y}")
        commands += [f"genlab sample run={run.folder.path} sampler={name}" for name in getattr(run.model, "samplers", ())]
    fitting = metrics_for(Subject(run.dataset, Settings(), model=run.model, training=run.training))
    if fitting:
        commands.append(f"genlab evaluate run={run.folder.path} metrics=[{','.join(fitting)}]")
    print("\n".join(commands))
