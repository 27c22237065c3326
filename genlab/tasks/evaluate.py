"""genlab evaluate: every metric that fits, as a table and as metrics.json."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from annotated_types import Ge

from genlab.metrics import Row, measure
from genlab.spec import Count, Positive
from genlab.tasks.catalogue import able
from genlab.tasks.run import Run
from genlab.tasks.tables import show
from genlab.training.run import write_whole


def evaluate(
    run: Run,
    *,
    metrics: list[str] | None = None,
    split: Literal["test", "validation", "train"] = "test",
    n: Annotated[int, Ge(4)] = 1000,  # two halves of two: the fewest that have a spread
    k: Positive = 100,
    terms: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
) -> dict[str, float]:
    """Measure the run's model on n held-out items; print a table, write metrics.json, return name -> value.

    Raises:
        UserError: a metric was named that does not exist or does not fit.
    """
    settings = {"split": split, "n": n, "k": k, "terms": terms, "seed": seed, "batch_size": batch_size}
    rows = measure(run.model, run.dataset, metrics=metrics, able=able, **settings)
    print(f"{run.folder.path}: {run.name} on {run.info['dataset']}, step {run.step:,}")
    show(["metric", "value", "± s.e.", "unit", "", "conditions"], [cells(row) for row in rows])
    record = {"step": run.step, "settings": settings, "metrics": [row.to_json() for row in rows]}
    write_whole(run.folder.path / "metrics.json", json.dumps(record, indent=2).encode())
    print(run.folder.path / "metrics.json")
    values = {row.name: row.value for row in rows}
    to_tensorboard(run, values)
    return values


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    conditions = ", ".join(f"{k}={v}" for k, v in row.conditions.items())
    error = "" if row.error is None else f"{row.error:.2g}"
    return [row.name, f"{row.value:.4f}", error, row.unit, row.tag, conditions]


def to_tensorboard(run: Run, values: dict[str, float]) -> None:
    """Add the numbers to the run's table of hyperparameters."""
    from torch.utils.tensorboard import SummaryWriter

    from genlab.tasks.train import flat

    options = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in flat(run.config).items()}
    with SummaryWriter(run.folder.path / "tensorboard") as board:
        board.add_hparams(options, {f"test/{k}": v for k, v in values.items()}, run_name=".", global_step=run.step)
