"""genlab train: the loop, with pictures and measures of the model while it trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import nn

from genlab.abilities import Estimate, abilities
from genlab.commands.translate import translations
from genlab.config.instantiate import arguments
from genlab.config.recipes import able
from genlab.data.npy_files import memory
from genlab.errors import UserError, did_you_mean
from genlab.metrics import Settings, chosen, measure
from genlab.metrics.context import Subject
from genlab.runs.run_folder import RunFolder
from genlab.signals import Stopped
from genlab.spec import Positive
from genlab.training.loop import Measures
from genlab.training.trainer import Trainer
from genlab.viz import image_grids

if TYPE_CHECKING:
    import numpy as np

PREVIEWS = {
    "points": 1000,
    "tokens": 8,
    "video": 4,
}  # items in a preview; of anything else a grid of 64


def train(
    trainer: Trainer,
    dataset: Any,
    folder: RunFolder,
    *,
    config: dict[str, Any],
    verdict: Callable[[int, Measures], str | None] | None = None,
) -> dict[str, float] | None:
    """Train to the end that the options say, and say where the run is; return its final numbers.

    Args:
        folder: where the run is written, by the first process.
        verdict: hears each evaluation, and may end the run at it: "pruned".

    Raises:
        Stopped: a signal asked the run to end.
    """
    writes = trainer.ranks.first
    with keeping(folder) if writes else nullcontext(), folder.lock() if writes else nullcontext():
        if writes:
            folder.forget_after(trainer.at)
            start(trainer, dataset, folder)
        o = trainer.options
        evaluate = partial(judge, dataset, config) if o.evaluate_every else None
        drawn = {"sample", "translate"} & abilities(trainer.model)
        draw = partial(preview, dataset, folder, trainer) if o.preview_every and drawn else None
        ended = trainer.fit(
            dataset, folder, preview=draw, evaluate=evaluate, verdict=verdict, config=flat(config)
        )
        why = {
            "steps": "",
            "time": " (trainer.max_time)",
            "patience": " (no better evaluation)",
            "pruned": " (pruned)",
        }
        last_look = draw and ended in why and trainer.at % o.preview_every
        model = (
            trainer.sampler() if last_look else None
        )  # in all processes: each may hold a part of it
        if not writes:
            return None
        if ended not in why:  # who sent the signal may not wait for a picture
            raise Stopped(
                f"{ended}: saved at step {trainer.at:,}; go on with `genlab train resume={folder.path}`",
                ended,
            )
        if last_look:
            draw(model)
    for line in dataset.report():
        print(f"data: {line}", file=sys.stderr)
    print(f"trained {trainer.at:,} steps{why[ended]} in {trainer.seconds:.0f} s: {folder.path}")
    return numbers(trainer, folder) | ({"pruned": float(trainer.at)} if ended == "pruned" else {})


def numbers(trainer: Trainer, folder: RunFolder) -> dict[str, float]:
    """Return a run's final numbers: its last losses and evaluation, and of the monitored metric the best, which best.pt has."""
    last: dict[str, float] = {}
    for line in folder.history():
        last |= line.get("evaluation", {k: v for k, v in line.items() if isinstance(v, float)})
    return last | ({trainer.options.monitor: trainer.best["value"]} if trainer.best else {})


@contextmanager
def keeping(folder: RunFolder) -> Iterator[None]:
    """Say what is saved when the system refuses to write: a full disk, a folder that became read-only.

    Raises:
        UserError: in place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        saved = folder.steps()
        kept = f"{saved[-1]} is whole" if saved else "there is no checkpoint yet"
        again = f"mend that and go on with `genlab train resume={folder.path}`"
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror}; {kept}; {again}"
        ) from error


def start(trainer: Trainer, dataset: Any, folder: RunFolder) -> None:
    """Say what is trained on what, and show real items beside the samples to come."""
    n = sum(p.numel() for p in trainer.model.parameters())
    verb = f"goes on from step {trainer.at:,}" if trainer.at else "trains"
    print(
        f"{type(trainer.model).__name__.removeprefix('FSDP')} ({n:,} parameters) {verb} on {dataset.size('train'):,} items of "
        f"{dataset.name} {dataset.spec.shape}, {trainer.device}: {folder.path}",
        file=sys.stderr,
    )
    for line in dataset.report():
        print(f"data: {line}", file=sys.stderr)
    reals = dataset.take("train", count(dataset)).x
    image_grids.write(reals, dataset.spec, folder.path / "reals.png")


def count(dataset: Any) -> int:
    return PREVIEWS.get(dataset.spec.kind, 64)


def preview(dataset: Any, folder: RunFolder, trainer: Trainer, model: nn.Module) -> np.ndarray:
    """Draw samples from the same noise every time, as samples/step_N.png (text as .txt too); return the picture.

    Of a model that translates: the same held-out sources, what it makes of them, and the truth, if there is one.
    """
    torch.manual_seed(0)
    if "translate" in abilities(model):
        image = translations(
            model, dataset, "validation" if dataset.size("validation") else "train"
        )
        image_grids.save(image, folder.samples / f"step_{trainer.at:09d}.png")
        return image
    with torch.no_grad():
        x = model.sample(count(dataset))
    reals = dataset.take("train", count(dataset)).x if dataset.spec.kind == "points" else None
    return image_grids.write(
        x, dataset.spec, folder.samples / f"step_{trainer.at:09d}.png", reals=reals
    )


def judged(
    seed: int,
    *,
    metrics: list[str] | None = None,
    n: Annotated[int, Ge(4)] = 500,
    k: Positive = 100,
    terms: Positive | None = 20,
    features: list[str] | None = None,
    batch_size: Positive = 250,
) -> tuple[Settings, list[str] | None]:
    """Return how a model is measured while it trains, and by which metrics: the block `evaluate` of a run's config."""
    spaces = tuple(features) if features else None
    settings = Settings(
        split="validation", n=n, seed=seed, k=k, terms=terms, batch_size=batch_size, features=spaces
    )
    return settings, metrics


def subject(
    model: nn.Module, dataset: Any, config: dict[str, Any]
) -> tuple[Subject, list[str] | None]:
    """Return what is measured while a model trains, and by which metrics (None: all that are quick).

    Raises:
        UserError: the block `evaluate` of the config is not understood.
    """
    options = arguments(judged, config.get("evaluate", {}), "evaluate", skip=1)
    settings, metrics = judged(config["seed"], **options)
    return Subject(dataset, settings, model=model), metrics


def judge(
    dataset: Any, config: dict[str, Any], model: nn.Module
) -> dict[str, tuple[Estimate, bool]]:
    """Measure the model on the validation split: name -> (number, whether higher is better)."""
    measures = measure(*subject(model, dataset, config), when="training")
    rows = [row for rows in measures.values() for row in rows]
    parts = {
        name: (Estimate(value, None, row.tag), False)
        for row in rows
        for name, value in row.parts.items()
    }
    return {
        row.name: (Estimate(row.value, row.error, row.tag, row.note), row.better == "higher")
        for row in rows
    } | parts


def check(trainer: Trainer, dataset: Any, config: dict[str, Any]) -> None:
    """Refuse what could not be trained or judged, before there is a run folder.

    Raises:
        UserError: a batch that cannot be cut, a metric that does not fit, or a `trainer.monitor` that none of them gives.
    """
    trainer.stream(dataset)
    o = trainer.options
    if (size := 4 * o.batch_size * dataset.spec.dim) > memory():
        many = f"trainer.batch_size={o.batch_size:,} items of {dataset.spec.shape} take {size / 2**30:,.0f} GB"
        raise UserError(f"{many}, more than half of this machine's memory")
    judges = subject(trainer.model, dataset, config)
    fitting = chosen(*judges, when="training", able=able) if o.evaluate_every else {}
    if o.patience and not o.monitor:
        raise UserError("trainer.patience needs a metric to wait for: set trainer.monitor")
    if not o.monitor:
        return
    if not o.evaluate_every:
        raise UserError(
            "trainer.monitor needs evaluations to choose by: set trainer.evaluate_every"
        )
    known = [name for metric in fitting.values() for name in metric.rows(judges[0])]
    if o.monitor not in known:
        near = did_you_mean(o.monitor, known)
        raise UserError(
            f"trainer.monitor={o.monitor}: no such metric here{near}; there are {', '.join(known) or 'none'}"
        )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options as one level, for TensorBoard's table: {"trainer.steps": 100}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return found
