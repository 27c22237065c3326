"""genlab anomaly: detect items of a class left out of training, or of another dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.console import print_table
from genlab.errors import UserError
from genlab.inference.likelihood_scores import (
    SCORES,
    Score,
    ScoreKind,
    find_score,
    score_items,
)
from genlab.inference.results import common_output_folder, describe_run, write_record
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, Positive
from genlab.viz import image_grids
from genlab.viz.figures import make_figure, plot_histograms, save_figure

MAX_TRAIN_ITEMS = 5000  # training items whose mean score is that of a typical item
MAX_COLUMNS = 12  # images in a row of the picture
METRICS = ("auroc", "average_precision", "auroc_typicality", "average_precision_typicality")


@dataclass(frozen=True)
class EvaluationItems:
    """Held-out items that are normal, and anomalies."""

    normal: Batch
    anomalies: Batch
    # The classes, or the name of the dataset, that each are of.
    normal_source: list[int] | str
    anomaly_source: list[int] | str


@dataclass(frozen=True)
class ItemScores:
    """The scores (N,) of training items, normal items and anomalies."""

    train: Tensor
    normal: Tensor
    anomalies: Tensor

    def rankings(self) -> dict[str, np.ndarray]:
        """Return how anomalous each of the normal items and anomalies (N,) is, by two criteria.

        "" is the negative score, and "_typicality" its distance from the mean over training items.
        """
        scores = torch.cat([self.normal, self.anomalies])
        distance = (scores - self.train.mean()).abs()
        return {"": -scores.numpy(), "_typicality": distance.numpy()}

    def truth(self) -> np.ndarray:
        """Return whether each of the normal items and anomalies (N,) is an anomaly."""
        return np.r_[np.zeros(len(self.normal)), np.ones(len(self.anomalies))]


def anomaly(
    runs: list[LoadedRun],
    open_other: Callable[[LoadedRun], Any] | None = None,
    *,
    classes: Count | list[Count] | None = None,
    score: ScoreKind | None = None,
    n: Positive | None = None,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    output_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Measure how well each run's model separates anomalies from normal items.

    An anomaly is an item of a class that was left out of training (or of `classes`), or of another
    dataset. Two criteria are measured: the score itself, under which the least likely items are
    anomalies; and its distance from the mean over training items, the typicality of Nalisnick et
    al. 2019 (https://arxiv.org/abs/1906.02994) for single items, since the raw likelihood can be
    higher on another dataset than on the model's own.

    Args:
        open_other: opens another dataset in the form of the run's own; None takes the anomalies
            from the run's own dataset.
        score: the kind of score; None is the first that the model supports of density, bound,
            energy and reconstruction.
        n: maximum number of items of each kind; None is all of the test split.

    Raises:
        UserError: the model does not support the score, or nothing is anomalous.
    """
    records = []
    for run in runs:
        found = find_score(
            run,
            {score: SCORES[score]} if score else SCORES,
            iwae_samples=iwae_samples,
            elbo_timesteps=elbo_timesteps,
            purpose=f"score of the kind {score}" if score else "score",
        )
        other = open_other(run) if open_other else None
        if other is not None:
            items = take_from_other(run, other, n=n, seed=seed)
            name = other.name
        else:
            items = take_from_classes(run, classes, n=n, seed=seed)
            name = "unseen"
            if classes is not None:
                name = "class" + "-".join(map(str, items.anomaly_source))
        torch.manual_seed(seed)
        scores = score_test_items(run, found, items, batch_size=batch_size, seed=seed)
        record = describe_run(run, seed) | {
            "score": str(found),
            "normal": items.normal_source,
            "anomalies": items.anomaly_source,
            "n_normal": len(items.normal),
            "n_anomalies": len(items.anomalies),
            **measure_detection(scores),
            "folder": str(run.folder.path),
        }
        run_output = output_dir
        if output_dir and len(runs) > 1:
            run_output = str(Path(output_dir) / run.folder.path.name)
        folder = common_output_folder([run], "anomaly", run_output)
        stem = f"{name}_{found.kind}_step{run.step}_seed{seed}"
        plot_detection(found, scores, record, folder / f"{stem}_roc.png")
        if run.spec.kind == "image":
            write_extreme_images(run, items, scores, folder / f"{stem}_images.png")
        write_record(record, folder / f"{stem}.json")
        records.append(record)
    write_summary(records, runs, output_dir)
    return records


# --- normal items and anomalies -------------------------------------------------------------------


def take_from_other(run: LoadedRun, other: Any, *, n: int | None, seed: int) -> EvaluationItems:
    """Return the run's held-out items, and the items of another dataset as anomalies.

    Raises:
        UserError: the items of the other dataset have another shape.
    """
    if other.spec.shape != run.spec.shape:
        raise UserError(
            f"{other.name} has items of shape {other.spec.shape}, but the model takes "
            f"{run.spec.shape}; set dataset.size to its side, and choose a dataset with as many "
            "channels"
        )
    normal = run.dataset.head("test", seed=seed)
    trained, left_out = split_classes(run)
    if left_out:
        normal = select_classes(normal, trained)
    return EvaluationItems(
        take_first(normal, n), other.head("test", n, seed=seed), run.dataset_name, other.name
    )


def take_from_classes(
    run: LoadedRun, classes: int | list[int] | None, *, n: int | None, seed: int
) -> EvaluationItems:
    """Return held-out items of some classes as anomalies, and of the other trained classes.

    Args:
        classes: the anomalous classes; None is those without training items.

    Raises:
        UserError: a class does not exist, or nothing is anomalous or normal.
    """
    batch = run.dataset.head("test", seed=seed)
    trained, anomalous = split_classes(run)
    if classes is not None:
        anomalous = classes if isinstance(classes, list) else [classes]
    normal = [k for k in trained if k not in anomalous]
    if unknown := [k for k in anomalous if k >= run.spec.num_classes]:
        raise UserError(
            f"classes={unknown[0]}: {run.dataset_name} has the classes 0 to "
            f"{run.spec.num_classes - 1}"
        )
    if not anomalous or not normal:
        raise UserError(
            "nothing is anomalous: train with dataset.classes=<class> or "
            "dataset.class_fraction={<class>:0}, give classes=, or dataset=<another dataset>"
        )
    return EvaluationItems(
        take_first(select_classes(batch, normal), n),
        take_first(select_classes(batch, anomalous), n),
        normal,
        anomalous,
    )


def split_classes(run: LoadedRun) -> tuple[list[int], list[int]]:
    """Return the classes with training items, and those without."""
    y = run.dataset.splits["train"].y
    if y is None:
        return [], []
    counts = y.bincount(minlength=run.spec.num_classes).tolist()
    return [k for k, m in enumerate(counts) if m], [k for k, m in enumerate(counts) if not m]


def select_classes(batch: Batch, classes: list[int]) -> Batch:
    """Return the items of a labeled batch that belong to one of the classes."""
    if batch.y is None:
        raise ValueError("cannot select classes from a batch without labels")
    keep = torch.isin(batch.y, torch.tensor(classes, device=batch.y.device))
    return Batch(batch.x[keep], batch.y[keep])


def take_first(batch: Batch, n: int | None) -> Batch:
    """Return the first n items; None is all."""
    return Batch(batch.x[:n], None if batch.y is None else batch.y[:n])


# --- scores ---------------------------------------------------------------------------------------


def score_test_items(
    run: LoadedRun, score: Score, items: EvaluationItems, *, batch_size: int, seed: int
) -> ItemScores:
    """Return the scores of training items, normal items and anomalies."""
    count = min(MAX_TRAIN_ITEMS, run.dataset.size("train"))
    train = run.dataset.head("train", count, seed=seed)
    return ItemScores(
        *(
            score_items(run, score, batch, batch_size=batch_size)
            for batch in (train, items.normal, items.anomalies)
        )
    )


def measure_detection(scores: ItemScores) -> dict[str, float]:
    """Return the mean scores, and AUROC and average precision by both criteria."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = {
        "mean_score_train": scores.train.mean().item(),
        "mean_score_normal": scores.normal.mean().item(),
        "mean_score_anomalies": scores.anomalies.mean().item(),
    }
    truth = scores.truth()
    for suffix, ranking in scores.rankings().items():
        found[f"auroc{suffix}"] = float(roc_auc_score(truth, ranking))
        found[f"average_precision{suffix}"] = float(average_precision_score(truth, ranking))
    return found


# --- output ---------------------------------------------------------------------------------------


def plot_detection(score: Score, scores: ItemScores, record: dict[str, Any], path: Path) -> None:
    """Plot the ROC curves and the histograms of the scores, and print the path."""
    from sklearn.metrics import roc_curve

    canvas, (roc, histogram) = make_figure(10, 4, 2)
    for suffix, ranking in scores.rankings().items():
        false_positives, true_positives, _ = roc_curve(scores.truth(), ranking)
        label = "typicality" if suffix else score.kind
        auroc = record[f"auroc{suffix}"]
        roc.plot(false_positives, true_positives, label=f"{label}: AUROC {auroc:.4f}")
    roc.plot([0, 1], [0, 1], c="0.7", lw=1)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    roc.legend(fontsize=8, loc="lower right")
    values = {"normal": scores.normal, "anomalies": scores.anomalies}
    plot_histograms(histogram, values, str(score))
    print(save_figure(canvas, path))


def write_extreme_images(
    run: LoadedRun, items: EvaluationItems, scores: ItemScores, path: Path
) -> None:
    """Write the least and the most likely normal images and anomalies, one row each."""
    rows, captions = [], []
    for name, batch, values in (
        ("normal items", items.normal, scores.normal),
        ("anomalies", items.anomalies, scores.anomalies),
    ):
        order = values.argsort()
        count = min(MAX_COLUMNS, len(order))
        for which, index in (("least", order[:count]), ("most", order.flip(0)[:count])):
            rows.append(batch.x[index.to(batch.x.device)].cpu())
            captions.append(f"{which} likely {name}")
    width = min(len(row) for row in rows)
    pixels = image_grids.to_uint8_images(torch.cat([row[:width] for row in rows]), run.spec)
    image_grids.save_png(image_grids.make_grid(pixels, columns=width), path)
    print(f"{path} (rows: {', '.join(captions)})")


def write_summary(
    records: list[dict[str, Any]], runs: list[LoadedRun], output_dir: str | None
) -> None:
    """Print the numbers as a table; write and print the mean over several runs."""
    rows = [
        [
            record["folder"],
            record["score"],
            str(record["normal"]),
            str(record["anomalies"]),
            *(f"{record[name]:.4f}" for name in METRICS),
        ]
        for record in records
    ]
    if len(records) > 1:
        mean = {name: float(np.mean([record[name] for record in records])) for name in METRICS}
        cells = [f"{mean[name]:.4f}" for name in METRICS]
        rows.append([f"mean of {len(records)}", "", "", "", *cells])
        folder = common_output_folder(runs, "anomaly", output_dir)
        write_record({"mean": mean, "runs": records}, folder / "mean.json")
    print_table(["run", "score", "normal", "anomalies", *METRICS], rows)
