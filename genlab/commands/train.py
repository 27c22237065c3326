"""genlab train: run the training loop, with previews and evaluations of the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import nn

from genlab.abilities import Estimate, abilities
from genlab.config.instantiate import validate_kwargs
from genlab.config.nested import flatten
from genlab.config.recipes import models_with
from genlab.data.npy_files import half_memory_bytes
from genlab.errors import UserError, did_you_mean
from genlab.inference.image_to_image import preview_translations
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import measure, select_metrics
from genlab.runs.run_folder import RunFolder
from genlab.signals import TrainingInterrupted
from genlab.spec import Positive
from genlab.training.loop import Evaluation, fit
from genlab.training.trainer import Trainer
from genlab.viz import image_grids

if TYPE_CHECKING:
    import numpy as np

# Items in a preview, by kind of data.
PREVIEW_ITEMS = {"points": 1000, "tokens": 8, "video": 4}
PREVIEW_ITEMS_OTHER = 64
BYTES_PER_VALUE = 4  # of a float32 batch
# Reasons for the end of a training, as they are added to its last line.
END_REASONS = {
    "steps": "",
    "time": " (trainer.max_minutes)",
    "patience": " (no better evaluation)",
    "pruned": " (pruned)",
}


def train(
    trainer: Trainer,
    dataset: Any,
    folder: RunFolder,
    *,
    config: dict[str, Any],
    stop_callback: Callable[[int, Evaluation], str | None] | None = None,
) -> dict[str, float] | None:
    """Train until the options say so, and print where the run is; return its final numbers.

    Args:
        folder: the run folder, written by the main process; other processes return None.
        stop_callback: receives each evaluation, and may end the run with a reason such as "pruned".

    Raises:
        TrainingInterrupted: a signal ended the run.
    """
    is_main, options = trainer.group.is_main, trainer.options
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(explain_write_errors(folder))
            stack.enter_context(folder.lock())
            folder.truncate_after(trainer.global_step)
            announce_training(trainer, dataset, folder)
        evaluate = partial(evaluate_model, dataset, config) if options.evaluate_every else None
        has_samples = {"sample", "translate"} & abilities(trainer.model)
        preview = None
        if options.preview_every and has_samples:
            preview = partial(write_preview, dataset, folder, trainer)
        reason = fit(
            trainer,
            dataset,
            run=folder,
            preview=preview,
            evaluate=evaluate,
            stop_callback=stop_callback,
            config=flatten(config),
        )
        model = None
        if preview and reason in END_REASONS and trainer.global_step % options.preview_every:
            model = trainer.eval_model()  # on every rank, because each may hold a part of it
        if not is_main:
            return None
        # After a signal there may be no time for a last preview.
        if reason not in END_REASONS:
            raise TrainingInterrupted(
                f"{reason}: saved at step {trainer.global_step:,}; continue with "
                f"`genlab train resume={folder.path}`",
                reason,
            )
        if preview and model is not None:
            preview(model)
    for line in dataset.report():
        print(f"data: {line}", file=sys.stderr)
    print(
        f"trained {trainer.global_step:,} steps{END_REASONS[reason]} in {trainer.seconds:.0f} s: "
        f"{folder.path}"
    )
    pruned = {"pruned": float(trainer.global_step)} if reason == "pruned" else {}
    return final_numbers(trainer, folder) | pruned


def final_numbers(trainer: Trainer, folder: RunFolder) -> dict[str, float]:
    """Return the last losses and evaluation of a run; of the monitored metric, the best value."""
    last: dict[str, float] = {}
    for line in folder.read_log():
        losses = {name: value for name, value in line.items() if isinstance(value, float)}
        last |= line.get("evaluation", losses)
    if trainer.best and trainer.options.monitor:
        last[trainer.options.monitor] = trainer.best["value"]
    return last


@contextmanager
def explain_write_errors(folder: RunFolder) -> Iterator[None]:
    """Report what is saved when the run folder cannot be written, as on a full disk.

    Raises:
        UserError: instead of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        checkpoints = folder.checkpoint_files()
        saved = f"{checkpoints[-1]} is intact" if checkpoints else "there is no checkpoint yet"
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror}; {saved}; fix this and continue "
            f"with `genlab train resume={folder.path}`"
        ) from error


def announce_training(trainer: Trainer, dataset: Any, folder: RunFolder) -> None:
    """Print which model is trained on which data, and write real items for comparison."""
    parameters = sum(p.numel() for p in trainer.model.parameters())
    name = type(trainer.model).__name__.removeprefix("FSDP")
    step, size = trainer.global_step, dataset.size("train")
    verb = f"continues from step {step:,}" if step else "trains"
    print(
        f"{name} ({parameters:,} parameters) {verb} on {size:,} items of {dataset.name} "
        f"{dataset.spec.shape}, {trainer.device}: {folder.path}",
        file=sys.stderr,
    )
    for line in dataset.report():
        print(f"data: {line}", file=sys.stderr)
    reals = dataset.head("train", num_preview_items(dataset)).x
    image_grids.save_items(reals, dataset.spec, folder.path / "reals.png")


# --- previews -------------------------------------------------------------------------------------


def num_preview_items(dataset: Any) -> int:
    """Return the number of items in a preview."""
    return PREVIEW_ITEMS.get(dataset.spec.kind, PREVIEW_ITEMS_OTHER)


def write_preview(dataset: Any, folder: RunFolder, trainer: Trainer, model: Any) -> np.ndarray:
    """Write samples from the same noise every time, as samples/step_N.png; return the picture.

    A model that translates shows the same held-out sources, its outputs, and the truth if known.
    """
    torch.manual_seed(0)
    path = folder.samples / f"step_{trainer.global_step:09d}.png"
    if "translate" in abilities(model):
        split = "validation" if dataset.size("validation") else "train"
        image = preview_translations(model, dataset, split)
        image_grids.save_png(image, path)
        return image
    n = num_preview_items(dataset)
    with torch.no_grad():
        x = model.sample(n)
    reals = dataset.head("train", n).x if dataset.spec.kind == "points" else None
    return image_grids.save_items(x, dataset.spec, path, reals=reals)


# --- evaluations ----------------------------------------------------------------------------------


def evaluation_settings(
    seed: int,
    *,
    metrics: list[str] | None = None,
    n: Annotated[int, Ge(4)] = 500,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    features: list[str] | None = None,
    batch_size: Positive = 250,
) -> tuple[Settings, list[str] | None]:
    """Return the settings and the metrics that the section `evaluate` of a config describes."""
    settings = Settings(
        split="validation",
        n=n,
        seed=seed,
        iwae_samples=iwae_samples,
        elbo_timesteps=elbo_timesteps,
        batch_size=batch_size,
        features=tuple(features) if features else None,
    )
    return settings, metrics


def evaluation_context(
    model: nn.Module, dataset: Any, config: dict[str, Any]
) -> tuple[MetricContext, list[str] | None]:
    """Return the context and the metrics (None: all quick ones) of an evaluation in training.

    Raises:
        UserError: the section `evaluate` of the config is invalid.
    """
    options = validate_kwargs(evaluation_settings, config.get("evaluate", {}), "evaluate", skip=1)
    settings, metrics = evaluation_settings(config["seed"], **options)
    return MetricContext(dataset, settings, model=model), metrics


def evaluate_model(dataset: Any, config: dict[str, Any], model: nn.Module) -> Evaluation:
    """Measure a model on the validation split: name -> (number, whether higher is better)."""
    context, metrics = evaluation_context(model, dataset, config)
    measured = measure(context, metrics, stage="training")
    found, parts = {}, {}
    for row in (row for rows in measured.values() for row in rows):
        estimate = Estimate(row.value, row.error, row.tag, row.note)
        found[row.name] = (estimate, row.better == "higher")
        for name, value in row.parts.items():
            parts[name] = (Estimate(value, None, row.tag), False)
    return found | parts


def check_training(trainer: Trainer, dataset: Any, config: dict[str, Any]) -> None:
    """Refuse options with which training or evaluation would fail.

    Raises:
        UserError: a batch that cannot be divided or is too large, a metric that does not fit, or a
            `trainer.monitor` that no metric gives.
    """
    trainer.train_batches(dataset)
    options = trainer.options
    size = BYTES_PER_VALUE * options.batch_size * dataset.spec.dim
    if size > half_memory_bytes():
        raise UserError(
            f"trainer.batch_size={options.batch_size:,} items of {dataset.spec.shape} take "
            f"{size / 2**30:,.0f} GB, more than half of this machine's memory"
        )
    context, metrics = evaluation_context(trainer.model, dataset, config)
    fitting = {}
    if options.evaluate_every:
        fitting = select_metrics(context, metrics, stage="training", list_models=models_with)
    if options.patience and not options.monitor:
        raise UserError("trainer.patience needs a metric to wait for: set trainer.monitor")
    if not options.monitor:
        return
    if not options.evaluate_every:
        raise UserError("trainer.monitor needs evaluations: set trainer.evaluate_every")
    names = [name for metric in fitting.values() for name in metric.row_names(context)]
    if options.monitor not in names:
        raise UserError(
            f"trainer.monitor={options.monitor}: no such metric here"
            f"{did_you_mean(options.monitor, names)}; there are {', '.join(names) or 'none'}"
        )
