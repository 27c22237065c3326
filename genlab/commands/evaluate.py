"""genlab evaluate: every metric that fits, as a table, as metrics.json and as pictures; of a run or of anybody's samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from genlab.commands.sample import sampler_options
from genlab.commands.translate import translations
from genlab.config.recipes import able
from genlab.console import show
from genlab.data.external_samples import read_samples
from genlab.errors import UserError
from genlab.inference.results import write_record
from genlab.metrics import Settings, measure, metrics_for, registry, why_not
from genlab.metrics.context import Subject
from genlab.runs.loaded_run import Run
from genlab.runs.run_folder import write_whole
from genlab.spec import Count, Positive
from genlab.viz import image_grids
from genlab.viz.latents import latent_pictures
from genlab.viz.rbm import machine_pictures

Split = Literal["test", "validation", "train"]
Items = Annotated[int, Ge(4)]  # two halves of two: the fewest that have a spread
SHOWN = 64  # samples in a picture
PAIRS = 10  # samples shown beside their nearest training items


def evaluate(
    run: Run,
    *,
    metrics: list[str] | None = None,
    split: Split = "test",
    n: Items = 1000,
    k: Positive = 100,
    terms: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    features: list[str] | None = None,
    sampler: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Measure the run's model on n held-out items; print a table, write metrics.json and pictures, return name -> value.

    Raises:
        UserError: a metric was named that does not exist or does not fit, or a feature space or sampler that is not there.
    """
    settings = Settings(
        split=split, n=n, k=k, terms=terms, seed=seed, batch_size=batch_size,
        features=tuple(features) if features else None, sampler=sampler_options(run, sampler or {}),
    )  # fmt: skip
    record = evaluate_run(run, settings, metrics)
    print(f"{run.folder.path}: {run.name} on {run.info['dataset']}, step {run.step:,}")
    table(record)
    print(record_path(run.folder.path, settings.sampler))
    to_tensorboard(run, values(record))
    return values(record)


def evaluate_run(run: Run, settings: Settings, metrics: list[str] | None = None) -> dict[str, Any]:
    """Measure a run's model, write the record and its pictures, and return the record."""
    subject = Subject(run.dataset, settings, model=run.model, training=run.training)
    record = {
        "model": run.name, "dataset": run.info["dataset"], "seed": run.info["seed"], "step": run.step,
        **measured(subject, metrics),
    }  # fmt: skip
    prefix = f"{tag(settings.sampler)}-" if settings.sampler else ""
    record["pictures"] = {}
    for name, picture in drawn(subject, {row["metric"] for row in record["metrics"]}).items():
        where = run.folder.path / "evaluation" / f"{prefix}{name}.png"
        record["pictures"][name] = str(
            image_grids.save(picture, where).relative_to(run.folder.path)
        )
    write_whole(
        record_path(run.folder.path, settings.sampler), json.dumps(record, indent=2).encode()
    )
    return record


def evaluate_samples(
    samples: str,
    dataset: Any,
    *,
    metrics: list[str] | None = None,
    split: Split = "test",
    n: Items | None = None,
    seed: Count = 0,
    batch_size: Positive = 250,
    features: list[str] | None = None,
    out: str | None = None,
) -> dict[str, float]:
    """Measure samples drawn elsewhere against a dataset; print a table, write it as JSON to `out` if given.

    Raises:
        UserError: the samples are not there, or are of another shape than the data; a metric that needs a model.
    """
    read = read_samples(Path(samples).expanduser(), dataset.spec)
    n = len(read) if n is None else n
    if not 4 <= n <= len(read):
        raise UserError(
            f"samples={samples} has {len(read):,} samples; n={n:,} cannot be measured (at least 4)"
        )
    settings = Settings(
        split=split,
        n=n,
        seed=seed,
        batch_size=batch_size,
        features=tuple(features) if features else None,
    )
    record = {
        "samples": samples,
        "dataset": dataset.name,
        **measured(Subject(dataset, settings, samples=read), metrics),
    }
    print(f"{samples}: {n:,} samples against {dataset.name}")
    table(record)
    if out:
        write_record(record, Path(out))
    return values(record)


def evaluate_pairs(
    samples: str, truth: str, *, crop: Count = 0, out: str | None = None
) -> dict[str, float]:
    """Measure restored images against the true ones of the same names; print a table, write it to `out` if given.

    Raises:
        UserError: an image has no partner, or one of another size.
    """
    from genlab.metrics.psnr_ssim import measure_folders

    found = measure_folders(Path(samples).expanduser(), Path(truth).expanduser(), crop=crop)
    record = {
        "samples": samples,
        "truth": truth,
        "metrics": [{"metric": "pairs", **row.to_json()} for row in found],
    }
    table(record)
    if out:
        write_record(record, Path(out))
    return values(record)


def measured(subject: Subject, metrics: list[str] | None) -> dict[str, Any]:
    """Return the part of a record that the measures give: their settings, numbers, and why others are not there."""
    found = measure(subject, metrics, able=able)
    fitting = metrics_for(subject, "asked")
    return {
        "settings": vars(subject.settings),
        "metrics": [
            {"metric": name, **row.to_json()} for name, rows in found.items() for row in rows
        ],
        "absent": {
            name: why_not(metric, subject)
            if name not in fitting
            else f"not asked for: metrics=[{name}]"
            for name, metric in registry().items()
            if name not in found
        },
    }


def drawn(subject: Subject, measured: set[str]) -> dict[str, Any]:
    """Return the pictures (H, W, 3) of an evaluation by name: samples, real items, codes, filters, chains.

    Neighbours are among them where they were measured.
    """
    from genlab.metrics import memorization

    spec, seed = subject.spec, subject.settings.seed
    found = {}
    reals = subject.dataset.take(subject.settings.split, subject.settings.n, seed=seed).x
    shown = len(reals) if spec.kind == "points" else SHOWN
    if "sample" in subject.abilities:
        found["samples"] = image_grids.picture(subject.shown(shown).x, spec, reals=reals)
        if spec.kind == "image" and "memorisation" in measured:
            x, near = memorization.pairs(subject, PAIRS)
            found["nearest"] = image_grids.rows(x, near)
    if measured & {"translation", "unpaired_translation"}:
        found["translations"] = translations(
            subject.model, subject.dataset, subject.settings.split, seed=seed
        )
    found["reals"] = image_grids.picture(reals[:shown], spec)
    if subject.model is not None:
        found |= latent_pictures(
            subject.model, subject.dataset, n=subject.settings.n, seed=seed, device=subject.device
        )
        found |= machine_pictures(subject.model, subject.dataset, seed=seed, device=subject.device)
    return found


def tag(sampler: dict[str, Any]) -> str:
    """Return a sampler's options as part of a file's name: "ddim-steps10"; nothing for the model's own."""
    said = {key: word(value) for key, value in sampler.items()}
    name = [said.pop("sampler")] if "sampler" in said else []
    return "-".join(name + [f"{key}{value}" for key, value in said.items()])


def word(value: Any) -> str:
    """Return an option's value as one says it on the command line, a list without its brackets."""
    if isinstance(value, list | tuple):
        return ",".join(word(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def record_path(folder: Path, sampler: dict[str, Any]) -> Path:
    """Return the file of a run's numbers with these options of its sampler."""
    return folder / (f"metrics-{tag(sampler)}.json" if sampler else "metrics.json")


def table(record: dict[str, Any]) -> None:
    """Print the numbers of a record."""
    show(
        ["metric", "value", "± s.e.", "floor", "unit", "", "conditions"],
        [cells(row) for row in record["metrics"]],
    )
    for row in record["metrics"]:
        if row["note"]:
            print(row["note"])


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    conditions = ", ".join(f"{k}={v}" for k, v in row["conditions"].items())
    error = "" if row["error"] is None else f"{row['error']:.2g}"
    floor = "" if row["floor"] is None else f"{row['floor']:.4g}"
    return [row["name"], number(row["value"]), error, floor, row["unit"], row["tag"], conditions]


def number(value: float | None) -> str:
    """Return a value as it is shown; None is one that was not finite."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4f}"


def values(record: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record by name."""
    return {row["name"]: row["value"] for row in record["metrics"] if row["value"] is not None}


def to_tensorboard(run: Run, values: dict[str, float]) -> None:
    """Add the numbers to the run's table of hyperparameters."""
    from torch.utils.tensorboard import SummaryWriter

    from genlab.commands.train import flat

    options = {
        k: v if isinstance(v, int | float | str | bool) else str(v)
        for k, v in flat(run.config).items()
    }
    with SummaryWriter(run.folder.path / "tensorboard") as board:
        board.add_hparams(
            options, {f"test/{k}": v for k, v in values.items()}, run_name=".", global_step=run.step
        )
