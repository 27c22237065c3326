"""genlab evaluate: measure a run, or samples of another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from genlab.commands.sample import sampler_options
from genlab.config.nested import flatten
from genlab.config.recipes import models_with
from genlab.console import print_table
from genlab.data.external_samples import read_samples
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.inference.image_to_image import preview_translations
from genlab.inference.queries import Split
from genlab.inference.results import write_record
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import (
    applicable_metrics,
    measure,
    reason_not_applicable,
    registry,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.migrations import FORMAT
from genlab.spec import Count, Positive
from genlab.viz import image_grids
from genlab.viz.latents import latent_space_plots
from genlab.viz.rbm import plot_rbm

# Two halves of two items are the fewest that have a standard deviation.
ItemCount = Annotated[int, Ge(4)]
MAX_SHOWN = 64  # samples in a picture
NUM_NEIGHBORS_SHOWN = 10  # samples shown beside their nearest training items
MIN_GROUPED = 1000  # integers from here on are shown with thousands separators


def evaluate(
    run: LoadedRun,
    *,
    metrics: list[str] | None = None,
    split: Split = "test",
    n: ItemCount = 1000,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    features: list[str] | None = None,
    sampler: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Measure the run's model on n held-out items; return the values by name.

    Prints a table, and writes metrics.json and pictures into the run's folder.

    Args:
        metrics: names of metrics; None is all that fit and need not be requested by name.
        features: feature spaces; None is the one that suits the data.
        sampler: options of the model's `sample`.

    Raises:
        UserError: a metric, feature space or sampler does not exist or does not fit
            sampler.
    """
    settings = Settings(
        split=split,
        n=n,
        iwae_samples=iwae_samples,
        elbo_timesteps=elbo_timesteps,
        seed=seed,
        batch_size=batch_size,
        features=tuple(features) if features else None,
        sampler=sampler_options(run, sampler or {}),
    )
    record = evaluate_run(run, settings, metrics)
    print(f"{run.folder.path}: {run.name} on {run.dataset_name}, step {run.step:,}")
    print_rows(record)
    print(record_path(run.folder.path, settings.sampler))
    write_hparams(run, finite_values(record))
    return finite_values(record)


def evaluate_run(
    run: LoadedRun, settings: Settings, metrics: list[str] | None = None
) -> dict[str, Any]:
    """Measure a run's model, write the record and its pictures, and return the record."""
    context = MetricContext(run.dataset, settings, model=run.model, training=run.training_cost)
    record = {
        "model": run.name,
        "dataset": run.dataset_name,
        "seed": run.metadata["seed"],
        "step": run.step,
        **measure_record(context, metrics),
    }
    prefix = f"{sampler_tag(settings.sampler)}-" if settings.sampler else ""
    record["pictures"] = {}
    pictures = render_pictures(context, {row["metric"] for row in record["metrics"]})
    for name, picture in pictures.items():
        path = run.folder.path / "evaluation" / f"{prefix}{name}.png"
        image_grids.save_png(picture, path)
        record["pictures"][name] = str(path.relative_to(run.folder.path))
    path = record_path(run.folder.path, settings.sampler)
    atomic_write(path, json.dumps(record, indent=2).encode())
    return record


def evaluate_samples(
    samples: str,
    dataset: Any,
    *,
    metrics: list[str] | None = None,
    split: Split = "test",
    n: ItemCount | None = None,
    seed: Count = 0,
    batch_size: Positive = 250,
    features: list[str] | None = None,
    output_file: str | None = None,
) -> dict[str, float]:
    """Measure samples that another program drew; print a table, and write it as JSON if asked.

    Raises:
        UserError: the samples do not exist, their shape is not that of the data, or a metric
            needs a model.
    """
    given = read_samples(Path(samples).expanduser(), dataset.spec)
    n = len(given) if n is None else n
    if not 4 <= n <= len(given):
        raise UserError(
            f"samples={samples} has {len(given):,} samples; n={n:,} cannot be measured (at least 4)"
        )
    settings = Settings(
        split=split,
        n=n,
        seed=seed,
        batch_size=batch_size,
        features=tuple(features) if features else None,
    )
    context = MetricContext(dataset, settings, samples=given)
    record = {
        "samples": samples,
        "dataset": dataset.name,
        **measure_record(context, metrics),
    }
    print(f"{samples}: {n:,} samples against {dataset.name}")
    print_rows(record)
    if output_file:
        write_record(record, Path(output_file))
    return finite_values(record)


def evaluate_pairs(
    samples: str, truth: str, *, crop: Count = 0, output_file: str | None = None
) -> dict[str, float]:
    """Compare restored images with the true images of the same names, by PSNR and SSIM.

    Args:
        crop: pixels cut off at each border.

    Raises:
        UserError: an image lacks a partner, or it has another size.
    """
    from genlab.metrics.psnr_ssim import measure_folders

    rows = measure_folders(Path(samples).expanduser(), Path(truth).expanduser(), crop=crop)
    record = {
        "samples": samples,
        "truth": truth,
        "metrics": [{"metric": "pairs", **row.to_json()} for row in rows],
    }
    print_rows(record)
    if output_file:
        write_record(record, Path(output_file))
    return finite_values(record)


def measure_record(context: MetricContext, metrics: list[str] | None) -> dict[str, Any]:
    """Return the settings, the rows of the metrics, and why other metrics are absent."""
    measured = measure(context, metrics, list_models=models_with)
    applicable = applicable_metrics(context, "on_request")
    absent = {}
    for name, metric in registry().items():
        if name not in measured:
            reason = f"not requested: metrics=[{name}]"
            if name not in applicable:
                reason = reason_not_applicable(metric, context)
            absent[name] = reason
    return {
        "format": FORMAT,
        "settings": vars(context.settings),
        "metrics": [
            {"metric": name, **row.to_json()} for name, rows in measured.items() for row in rows
        ],
        "absent": absent,
    }


def render_pictures(context: MetricContext, measured: set[str]) -> dict[str, np.ndarray]:
    """Return the pictures (H, W, 3) of an evaluation by name: samples, real items, codes, ….

    Args:
        measured: names of the metrics; pictures of some need what the metric computes.
    """
    from genlab.metrics import memorization

    spec, settings = context.spec, context.settings
    pictures = {}
    reals = context.dataset.head(settings.split, settings.n, seed=settings.seed).x
    shown = len(reals) if spec.kind == "points" else MAX_SHOWN
    if "sample" in context.abilities:
        samples = context.preview_samples(shown).x
        pictures["samples"] = image_grids.render_items(samples, spec, reals=reals)
        if spec.kind == "image" and "nn_memorization" in measured:
            pairs = memorization.nearest_pairs(context, NUM_NEIGHBORS_SHOWN)
            pictures["nearest"] = image_grids.make_row_grid(*pairs)
    if measured & {"paired_translation", "unpaired_translation"}:
        pictures["translations"] = preview_translations(
            context.model, context.dataset, settings.split, seed=settings.seed
        )
    pictures["reals"] = image_grids.render_items(reals[:shown], spec)
    if context.model is not None:
        options: dict[str, Any] = {"seed": settings.seed, "device": context.device}
        pictures |= latent_space_plots(context.model, context.dataset, n=settings.n, **options)
        pictures |= plot_rbm(context.model, context.dataset, **options)
    return pictures


# --- records --------------------------------------------------------------------------------------


def record_path(folder: Path, sampler: dict[str, Any]) -> Path:
    """Return the file in a run's folder for the numbers with these options of the sampler."""
    return folder / (f"metrics-{sampler_tag(sampler)}.json" if sampler else "metrics.json")


def sampler_tag(sampler: dict[str, Any]) -> str:
    """Return a sampler's options as part of a file name, such as "ddim-steps10"."""
    options = {key: format_option(value) for key, value in sampler.items()}
    name = [options.pop("sampler")] if "sampler" in options else []
    return "-".join(name + [f"{key}{value}" for key, value in options.items()])


def format_option(value: Any) -> str:
    """Return an option's value as it is typed, a list without its brackets."""
    if isinstance(value, list | tuple):
        return ",".join(format_option(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_rows(record: dict[str, Any]) -> None:
    """Print the rows of a record as a table, and their notes."""
    header = ["metric", "value", "± s.e.", "real_vs_real", "unit", "", "conditions"]
    print_table(header, [format_row(row) for row in record["metrics"]])
    for row in record["metrics"]:
        if row["note"]:
            print(row["note"])


def format_row(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row in the table of metrics."""
    conditions = ", ".join(f"{key}={value}" for key, value in row["conditions"].items())
    error = "" if row["error"] is None else f"{row['error']:.2g}"
    real_vs_real = "" if row["real_vs_real"] is None else f"{row['real_vs_real']:.4g}"
    value = format_value(row["value"])
    return [row["name"], value, error, real_vs_real, row["unit"], row["tag"], conditions]


def format_value(value: float | None) -> str:
    """Return a metric's value as it is shown; None stands for a value that is not finite."""
    if value is None:
        return "not finite"
    if value == int(value) and abs(value) >= MIN_GROUPED:
        return f"{value:,.0f}"
    return f"{value:.4f}"


def finite_values(record: dict[str, Any]) -> dict[str, float]:
    """Return the finite values of a record by name."""
    return {row["name"]: row["value"] for row in record["metrics"] if row["value"] is not None}


def write_hparams(run: LoadedRun, values: dict[str, float]) -> None:
    """Add the values to the run's hyperparameter table in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    options = {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in flatten(run.config).items()
    }
    metrics = {f"test/{name}": value for name, value in values.items()}
    with SummaryWriter(run.folder.path / "tensorboard") as board:
        board.add_hparams(options, metrics, run_name=".", global_step=run.step)
