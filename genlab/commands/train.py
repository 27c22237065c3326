"""genlab train: run the training loop, with previews and evaluations of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import nn

from genlab.abilities import Estimate, abilities
from genlab.config.dotted_keys import flatten_config
from genlab.config.instantiate import validate_kwargs
from genlab.config.recipes import nearest_recipes_with
from genlab.errors import UserError, did_you_mean
from genlab.inference.image_to_image import preview_translations
from genlab.inference.requirements import option_to_trust, suggest_next_command
from genlab.inference.series_forecasts import preview_forecasts
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import measure_metrics, reason_too_few_items, select_metrics
from genlab.output_streams import keep_lost_output_in
from genlab.runs.rewind import rewind_run_folder
from genlab.runs.run_folder import RunFolder
from genlab.signals import TrainingInterrupted
from genlab.spec import Positive
from genlab.sweeps.job_state import RUN_LOG
from genlab.tables import print_message_on_stderr
from genlab.training.loop import Evaluation, fit, has_missing_outputs, reason_for_end
from genlab.training.trainer import Trainer
from genlab.untrusted.files import half_memory_bytes
from genlab.viz import item_pictures
from genlab.viz.sheets import save_picture_as_sheet

if TYPE_CHECKING:
    import numpy as np

# Items in a preview, by kind of data.
PREVIEW_ITEMS = {"points": 1000, "tokens": 8, "video": 4, "table": 1000}
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
    left_out_before = dataset.describe().left_out_lines
    with ExitStack() as stack:
        if is_main:
            stack.enter_context(explain_write_errors(folder))
            folder.lock()
            stack.callback(folder.unlock)  # of the lock of then: one that is deleted is replaced
            keep_lost_output_in(folder.path / RUN_LOG)
            for line in rewind_run_folder(folder, trainer.global_step, trainer.best):
                print_message_on_stderr(line)
            folder.delete_old_checkpoints(options.keep_checkpoints)  # a kill may have left one
            print_start_and_save_real_items(trainer, dataset, folder)
        preview = partial(write_preview_picture, dataset, folder, trainer)
        evaluate = partial(evaluate_on_validation_split, dataset, config, set())
        reason = fit(
            trainer,
            dataset,
            run=folder,
            preview=preview if has_previews(trainer) else None,
            evaluate=evaluate if options.evaluate_every else None,
            stop_callback=stop_callback,
            config=flatten_config(config),
        )
        if not is_main:
            return None
        if reason not in END_REASONS:
            raise TrainingInterrupted(
                f"{reason}: saved at step {trainer.global_step:,}; continue with "
                f"`genlab train resume={folder.path}{option_to_trust(trainer.model)}`",
                reason,
            )
    if (left_out := dataset.describe().left_out_lines) != left_out_before:
        if folder.data_summary():  # an older run keeps the way in which it read its data
            folder.write_data_summary(dataset.describe())
        for line in left_out:  # files that were met while streaming
            print_message_on_stderr(f"data: {line}")
    print(
        f"trained {trainer.global_step:,} steps{END_REASONS[reason]} in {trainer.seconds:.0f} s: "
        f"{folder.path}"
    )
    if command := suggest_next_command(trainer.model, dataset.spec, folder.path):
        print(f"next: {command}")
    pruned = {"pruned": float(trainer.global_step)} if reason == "pruned" else {}
    return final_losses_and_metrics(trainer, folder) | pruned


def has_previews(trainer: Trainer) -> bool:
    """Whether the training shows samples of its model."""
    has_samples = bool({"sample", "translate", "forecast"} & abilities(trainer.model))
    return bool(trainer.options.preview_every) and has_samples


def done_message(trainer: Trainer, folder: RunFolder) -> str | None:
    """Return what a resume says of a run that has ended and is complete; None of any other.

    Every rank must call this, and gets the same answer.
    """
    o, reason = trainer.options, reason_for_end(trainer)
    evaluates = bool(o.evaluate_every)
    if not trainer.group.any(reason is not None) or has_missing_outputs(
        trainer, folder, has_previews=has_previews(trainer), has_evaluations=evaluates
    ):
        return None
    more = f"give a larger trainer.{'max_minutes' if reason == 'time' else reason}= to continue"
    why = {
        "time": f" in {trainer.seconds / 60:.3g} minutes of training (trainer.max_minutes)",
        "patience": f", the last {o.patience} evaluations were not better (trainer.patience)",
    }
    steps = f"{trainer.global_step:,} steps"
    return f"{folder.path} is done: {steps}{why.get(reason or '', '')}; {more}"


def final_losses_and_metrics(trainer: Trainer, folder: RunFolder) -> dict[str, float]:
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


def print_start_and_save_real_items(trainer: Trainer, dataset: Any, folder: RunFolder) -> None:
    """Print which model is trained on which data, and write real items for comparison."""
    parameters = sum(p.numel() for p in trainer.model.parameters())
    name = type(trainer.model).__name__.removeprefix("FSDP")
    step, size = trainer.global_step, dataset.size("train")
    verb = f"continues from step {step:,}" if step else "trains"
    print_message_on_stderr(
        f"{name} ({parameters:,} parameters) {verb} on {size:,} items of {dataset.name} "
        f"{dataset.spec.shape}, {trainer.device}: {folder.path}"
    )
    for line in dataset.describe().lines():
        print_message_on_stderr(f"data: {line}")
    reals = dataset.head("train", num_preview_items(dataset)).x
    item_pictures.save_items_as_sheet(
        reals,
        dataset.spec,
        folder.path / "reals.png",
        name="data",
        columns=dataset.columns,
        caption=f"training items of {dataset.name}, run {folder.path.resolve().name}",
    )


# --- previews -------------------------------------------------------------------------------------


def num_preview_items(dataset: Any) -> int:
    """Return the number of items in a preview."""
    return PREVIEW_ITEMS.get(dataset.spec.kind, PREVIEW_ITEMS_OTHER)


def write_preview_picture(
    dataset: Any, folder: RunFolder, trainer: Trainer, model: Any
) -> np.ndarray:
    """Write samples from the same noise every time, as samples/step_N.png; return the picture.

    A model that translates shows the same held-out sources, its outputs, and the truth if known; a
    model that forecasts shows the same held-out windows.
    """
    torch.manual_seed(0)
    step = trainer.global_step
    path = folder.preview_path(step)
    name = type(model).__name__.removeprefix("FSDP")
    of_run = f"{name} on {dataset.name}, step {step:,}, run {path.parent.parent.resolve().name}"
    if "translate" in abilities(model):
        split = "validation" if dataset.size("validation") else "train"
        picture = preview_translations(model, dataset, split)
        return save_picture_as_sheet(picture, path, caption=f"translations: {of_run}")
    if "forecast" in abilities(model):
        split = "validation" if dataset.size("validation") else "train"
        picture = preview_forecasts(model, dataset, split)
        return save_picture_as_sheet(picture, path, caption=f"forecasts: {of_run}")
    n = num_preview_items(dataset)
    with torch.no_grad():
        x = model.sample(n)
    is_scattered = dataset.spec.kind in ("points", "table")
    reals = dataset.head("train", n).x if is_scattered else None
    return item_pictures.save_items_as_sheet(
        x,
        dataset.spec,
        path,
        reals=reals,
        columns=dataset.columns,
        caption=f"samples: {of_run}",
    )


# --- evaluations ----------------------------------------------------------------------------------


def evaluation_settings_and_metrics(
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


def evaluation_context_and_metrics(
    model: nn.Module, dataset: Any, config: dict[str, Any]
) -> tuple[MetricContext, list[str] | None]:
    """Return the context and the metrics (None: all quick ones) of an evaluation in training.

    Raises:
        UserError: the section `evaluate` of the config is invalid.
    """
    options = validate_kwargs(
        evaluation_settings_and_metrics, config.get("evaluate", {}), "evaluate", skip=1
    )
    settings, metrics = evaluation_settings_and_metrics(config["seed"], **options)
    return MetricContext(dataset, settings, model=model), metrics


def evaluate_on_validation_split(
    dataset: Any, config: dict[str, Any], announced: set[str], model: nn.Module
) -> Evaluation:
    """Measure a model on the validation split: name -> (number, whether higher is better).

    A metric that cannot be measured is left out; the reason is printed once.

    Args:
        announced: names of metrics whose reason was printed; more are added.
    """
    context, metrics = evaluation_context_and_metrics(model, dataset, config)
    measurement = measure_metrics(context, metrics, stage="training")
    for name, reason in measurement.skipped.items():
        if name not in announced:
            announced.add(name)
            print_message_on_stderr(f"evaluation: {name} is left out: {reason}")
    found, parts = {}, {}
    for row in (row for rows in measurement.rows.values() for row in rows):
        estimate = Estimate(row.value, row.error, row.tag, row.note)
        found[row.name] = (estimate, row.better == "higher")
        for name, value in row.parts.items():
            parts[name] = (Estimate(value, None, row.tag), False)
    return found | parts


def refuse_failing_training_options(trainer: Trainer, dataset: Any, config: dict[str, Any]) -> None:
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
    context, metrics = evaluation_context_and_metrics(trainer.model, dataset, config)
    fitting = {}
    if options.evaluate_every:
        require_validation_items(dataset)
        fitting = select_metrics(
            context,
            metrics,
            stage="training",
            list_models=partial(nearest_recipes_with, kind=dataset.spec.kind),
        )
    if options.patience and not options.monitor:
        raise UserError("trainer.patience needs a metric to wait for: set trainer.monitor")
    if not options.monitor:
        return
    if not options.evaluate_every:
        raise UserError("trainer.monitor needs evaluations: set trainer.evaluate_every")
    reasons = {
        name: reason_too_few_items(metric, context)
        for metric in fitting.values()
        for name in metric.row_names(context)
    }
    if reason := reasons.get(options.monitor):
        raise UserError(f"trainer.monitor={options.monitor} cannot be measured: {reason}")
    names = [name for name, reason in reasons.items() if not reason]
    if options.monitor not in names:
        raise UserError(
            f"trainer.monitor={options.monitor}: no such metric here"
            f"{did_you_mean(options.monitor, names)}; there are {', '.join(names) or 'none'}"
        )


def require_validation_items(dataset: Any) -> None:
    """Raise UserError if evaluations in training would not have any items."""
    if dataset.size("validation"):
        return
    hint = ""
    if hasattr(dataset, "validation"):
        fraction = math.ceil(100 / max(2, dataset.size("train"))) / 100
        hint = f"; hold out some items, as dataset.validation={max(0.1, fraction):g}, or"
    raise UserError(
        f"trainer.evaluate_every measures the validation split, but {dataset.name} has no "
        f"validation items{hint or ';'} set trainer.evaluate_every=0"
    )
