"""genlab evaluate: measure a run, or samples of another program."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from genlab.commands.sample import validated_sampler_options
from genlab.comparison.metrics_table import print_metrics
from genlab.comparison.run_records import read_evaluation_record
from genlab.config.dotted_keys import flatten_config
from genlab.config.recipes import nearest_recipes_with
from genlab.data.dataset import SPLITS
from genlab.data.external_samples import read_samples
from genlab.data.image_decoding import Crop
from genlab.data.mixed_table_units import table_units_of_dataset
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.inference.image_to_image import preview_translations
from genlab.inference.items_and_codes import Split
from genlab.inference.output_files import (
    HASH_DIGITS,
    CommandRequest,
    Writer,
    WrittenFiles,
    checksum,
    refuse_taken_output_file,
    write_files_and_record,
    write_output_file,
)
from genlab.inference.results import make_picture_caption
from genlab.inference.series_forecasts import preview_forecasts
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.registry import (
    all_metrics_by_name,
    applicable_metrics,
    measure_metrics,
    reason_not_applicable,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.migrations import FORMAT
from genlab.spec import Count, Positive
from genlab.tables import print_wrapped
from genlab.untrusted.files import read_bytes
from genlab.untrusted.records import is_valid_record
from genlab.viz import item_pictures
from genlab.viz.bound_terms import plot_bound_terms
from genlab.viz.latents import latent_space_plots
from genlab.viz.picture import Picture
from genlab.viz.rbm import plot_rbm_filters_and_chains
from genlab.viz.sheets import save_picture_as_sheet

# Two halves of two items are the fewest that have a standard deviation.
ItemCount = Annotated[int, Ge(4)]
MAX_SHOWN = 64  # samples in a picture
NUM_NEIGHBORS_SHOWN = 10  # samples shown beside their nearest training items
# Of pictures whose name does not say enough.
PICTURE_TITLES = {
    "reals": "held-out items",
    "nearest": "samples and the nearest training items",
    "latent": "codes of held-out items",
    "manifold": "decoded grid of codes",
    "reconstructions": "held-out items and their reconstructions",
    "filters": "filters of the hidden units",
    "chains": "Gibbs chains",
    "vlb_terms": "terms of the bound",
}


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
        sampler=validated_sampler_options(run, sampler or {}),
    )
    record, answer = measure_run_and_write_record(run, settings, metrics)
    print(f"{run.folder.path}: {run.name} on {run.dataset_name}, step {run.step:,}")
    print_metrics(record["metrics"])
    print_skipped_metrics(record)
    print(latest_record_path(run.folder.path, settings.sampler))
    answer.print_paths()
    write_tensorboard_hparams(run, finite_metric_values(record))
    return finite_metric_values(record)


def evaluate_run(
    run: LoadedRun, settings: Settings, metrics: list[str] | None = None
) -> dict[str, Any]:
    """Measure a run's model, write the record and its pictures, and return the record."""
    return measure_run_and_write_record(run, settings, metrics)[0]


def measure_run_and_write_record(
    run: LoadedRun, settings: Settings, metrics: list[str] | None
) -> tuple[dict[str, Any], WrittenFiles]:
    """Measure a run's model; write the record and its pictures into the run's evaluation/.

    The newest record is also metrics.json, or that of a sampler metrics-<sampler>.json.

    Returns:
        The record, and where it is.
    """
    request = make_evaluation_request(run, settings, metrics)
    context = MetricContext(run.dataset, settings, model=run.model, training=run.training_cost)
    record = {
        "model": run.name,
        "dataset": run.dataset_name,
        "seed": run.metadata["seed"],
        "step": run.step,
        **measure_metrics_record(context, metrics),
    }
    pictures = render_evaluation_pictures(context, {row["metric"] for row in record["metrics"]})
    files: dict[str, Writer] = {
        f"_{name}.png": partial(
            save_picture_as_sheet,
            picture,
            caption=make_picture_caption(PICTURE_TITLES.get(name, name), run, settings.seed),
        )
        for name, picture in pictures.items()
    }

    def add_pictures(paths: dict[str, Path]) -> dict[str, Any]:
        record["pictures"] = {
            name: str(paths[f"_{name}.png"].relative_to(run.folder.path)) for name in pictures
        }
        return record

    picture = next(iter(files), "")
    folder = run.folder.path / "evaluation"
    answer = write_files_and_record(
        request, folder, "metrics", add_pictures, files, picture=picture
    )
    latest = latest_record_path(run.folder.path, settings.sampler)
    archive_replaced_record(latest, folder)
    atomic_write(latest, answer.record.read_bytes())
    return record, answer


def make_evaluation_request(
    run: LoadedRun, settings: Settings, metrics: list[str] | None
) -> CommandRequest:
    """Return the request of an evaluation."""
    options = vars(settings) | {"metrics": metrics and sorted(metrics)}
    return CommandRequest.from_options_and_defaults(
        "evaluate", [run], options, vars(Settings()) | {"metrics": None}
    )


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
    resize: Crop | None = None,
    output_file: str | None = None,
    data_options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Measure samples that another program drew; print a table, and write it as JSON if asked.

    Args:
        resize: how images of another size are made square and resized; None refuses them.
        data_options: the options of the dataset, for the record.

    Raises:
        UserError: the samples do not exist, their shape is not that of the data, a metric needs a
            model, or the output file exists.
    """
    options = {"samples": samples}
    request = CommandRequest.from_command_call(evaluate_samples, [], locals(), further=options)
    if output_file:
        refuse_taken_output_file(Path(output_file).expanduser(), "output_file", request)
    units = table_units_of_dataset(dataset)
    notes: list[str] = []
    path = Path(samples).expanduser()
    given = read_samples(
        path,
        dataset.spec,
        units,
        resize=resize,
        file_range=getattr(dataset, "file_range", None),
        notes=notes,
    )
    for note in notes:
        print(f"samples: {note}", file=sys.stderr)
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
        "notes": notes,
        "dataset": dataset.name,
        **measure_metrics_record(context, metrics),
    }
    print(f"{samples}: {n:,} samples against {dataset.name}")
    print_metrics(record["metrics"])
    print_skipped_metrics(record)
    if output_file:
        write_output_file(Path(output_file).expanduser(), record, request)
    return finite_metric_values(record)


def evaluate_pairs(
    samples: str, truth: str, *, crop: Count = 0, output_file: str | None = None
) -> dict[str, float]:
    """Compare restored images with the true images of the same names, by PSNR and SSIM.

    Args:
        crop: pixels cut off at each border.

    Raises:
        UserError: an image lacks a partner, it has another size, or the output file exists.
    """
    from genlab.metrics.psnr_ssim import measure_psnr_and_ssim_of_folders

    options = {"samples": samples, "truth": truth}
    request = CommandRequest.from_command_call(evaluate_pairs, [], locals(), further=options)
    if output_file:
        refuse_taken_output_file(Path(output_file).expanduser(), "output_file", request)
    rows = measure_psnr_and_ssim_of_folders(
        Path(samples).expanduser(), Path(truth).expanduser(), crop=crop
    )
    record: dict[str, Any] = {
        "samples": samples,
        "truth": truth,
        "metrics": [{"metric": "pairs", **row.to_json()} for row in rows],
    }
    print_metrics(record["metrics"])
    print_skipped_metrics(record)
    if output_file:
        write_output_file(Path(output_file).expanduser(), record, request)
    return finite_metric_values(record)


def measure_metrics_record(context: MetricContext, metrics: list[str] | None) -> dict[str, Any]:
    """Return the settings, the rows of the metrics, and why other metrics are absent.

    `skipped` has those for which the items do not suffice.

    Raises:
        UserError: held-out items are missing, or no metric can be measured.
    """
    require_heldout_items(context)
    list_models = partial(nearest_recipes_with, kind=context.spec.kind)
    measurement = measure_metrics(context, metrics, list_models=list_models)
    skipped = measurement.skipped
    if not measurement.rows and metrics != []:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"no metric can be measured: {reasons or 'none applies'}")
    applicable = applicable_metrics(context, "on_request")
    absent = dict(skipped)
    for name, metric in all_metrics_by_name().items():
        if name not in measurement.rows and name not in skipped:
            reason = f"not requested: metrics=[{name}]"
            if name not in applicable:
                reason = reason_not_applicable(metric, context)
            absent[name] = reason
    return {
        "format": FORMAT,
        "settings": vars(context.settings),
        "metrics": [
            {"metric": name, **row.to_json()}
            for name, rows in measurement.rows.items()
            for row in rows
        ],
        "skipped": skipped,
        "absent": absent,
    }


def print_skipped_metrics(record: dict[str, Any]) -> None:
    """Print why metrics are left out, those with the same reason on one line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in record.get("skipped", {}).items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        print_wrapped(f"left out: {', '.join(names)}: {reason}")


def require_heldout_items(context: MetricContext) -> None:
    """Raise UserError if the split is empty; the message names those that are not."""
    dataset, split = context.dataset, context.settings.split
    if dataset.size(split):
        return
    sizes = {name: dataset.size(name) for name in SPLITS}
    others = " or ".join(f"split={name} ({size:,} items)" for name, size in sizes.items() if size)
    raise UserError(f"the {split} split of {dataset.name} is empty; use {others}")


def render_evaluation_pictures(context: MetricContext, measured: set[str]) -> dict[str, Picture]:
    """Return the pictures of an evaluation by name: samples, real items, codes, ….

    Args:
        measured: names of the metrics; pictures of some need what the metric computes.
    """
    from genlab.metrics import memorization, vlb_terms

    spec, settings = context.spec, context.settings
    pictures: dict[str, Picture] = {}
    columns = context.dataset.columns
    reals = context.dataset.head(settings.split, settings.n, seed=settings.seed).x
    shown = len(reals) if spec.kind in ("points", "table") else MAX_SHOWN
    if "sample" in context.abilities:
        samples = context.preview_samples(shown).x
        pictures["samples"] = item_pictures.render_items_as_picture(
            samples, spec, reals=reals, columns=columns
        )
        if spec.kind == "image" and "nn_memorization" in measured:
            pairs = memorization.samples_and_nearest_train_items(context, NUM_NEIGHBORS_SHOWN)
            names = ("sample", "nearest training item")
            pictures["nearest"] = item_pictures.make_picture_of_named_rows(
                dict(zip(names, pairs, strict=True))
            )
    if measured & {"paired_translation", "unpaired_translation"}:
        pictures["translations"] = preview_translations(
            context.model, context.dataset, settings.split, seed=settings.seed
        )
    if "forecast" in context.abilities:
        torch.manual_seed(settings.seed)
        pictures["forecasts"] = preview_forecasts(context.model, context.dataset, settings.split)
    if "vlb_terms" in measured:
        pictures["vlb_terms"] = plot_bound_terms(vlb_terms.compute_bound_terms(context))
    pictures["reals"] = item_pictures.render_items_as_picture(
        reals[:shown], spec, name="data", columns=columns
    )
    if context.model is not None:
        options: dict[str, Any] = {
            "seed": settings.seed,
            "device": context.device,
            "split": settings.split,
        }
        pictures |= latent_space_plots(context.model, context.dataset, n=settings.n, **options)
        pictures |= plot_rbm_filters_and_chains(context.model, context.dataset, **options)
    return pictures


# --- records --------------------------------------------------------------------------------------


def latest_record_path(folder: Path, sampler: dict[str, Any]) -> Path:
    """Return the file in a run's folder for its newest numbers with these sampler options."""
    return folder / (f"metrics-{sampler_file_suffix(sampler)}.json" if sampler else "metrics.json")


def archive_replaced_record(path: Path, folder: Path) -> None:
    """Move a record that is about to be replaced into `folder`, unless it has a copy there.

    A file that is not a record, such as a damaged one, gets the suffix .aside.
    """
    if not path.exists():
        return
    content = read_bytes(path)
    if any(read_bytes(copy) == content for copy in folder.glob("*.json")):
        return
    name = f"{path.stem}_earlier-{checksum(content)[:HASH_DIGITS]}.json"
    try:
        is_record = is_valid_record(read_evaluation_record(path))
    except UserError:
        is_record = False
    os.replace(path, folder / (name if is_record else f"{name}.aside"))


def sampler_file_suffix(sampler: dict[str, Any]) -> str:
    """Return a sampler's options as part of a file name, such as "ddim-steps10"."""
    options = {key: format_option_value(value) for key, value in sampler.items()}
    name = [options.pop("sampler")] if "sampler" in options else []
    return "-".join(name + [f"{key}{value}" for key, value in options.items()])


def format_option_value(value: Any) -> str:
    """Return an option's value as it is typed, a list without its brackets."""
    if isinstance(value, list | tuple):
        return ",".join(format_option_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def finite_metric_values(record: dict[str, Any]) -> dict[str, float]:
    """Return the finite values of a record by name."""
    return {row["name"]: row["value"] for row in record["metrics"] if row["value"] is not None}


def write_tensorboard_hparams(run: LoadedRun, values: dict[str, float]) -> None:
    """Add the values to the run's hyperparameter table in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    options = {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in flatten_config(run.config).items()
    }
    metrics = {f"test/{name}": value for name, value in values.items()}
    with SummaryWriter(run.folder.path / "tensorboard") as board:
        board.add_hparams(options, metrics, run_name=".", global_step=run.step)
