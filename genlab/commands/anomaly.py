"""genlab anomaly: detect items of an unseen class or of another dataset, or outliers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.inference.likelihood_scores import (
    SCORES,
    Score,
    ScoreKind,
    find_supported_score,
    score_items,
)
from genlab.inference.outliers import rank_rows_by_score
from genlab.inference.output_files import (
    CommandRequest,
    RequestedRun,
    Writer,
    write_and_print_output_files,
)
from genlab.inference.results import (
    common_output_folder,
    make_picture_caption,
    make_table_rows_csv_writers,
    run_record_fields,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, ClassNumber, Count, Positive
from genlab.tables import TableRow, print_table, print_wrapped
from genlab.viz import item_pictures
from genlab.viz.figures import make_canvas_and_axes, plot_histograms, save_canvas_as_png
from genlab.viz.outlier_plots import plot_outliers
from genlab.viz.picture import Picture, make_picture
from genlab.viz.sheets import save_picture_as_sheet

MAX_TRAIN_ITEMS = 5000  # training items whose mean score is that of a typical item
MAX_COLUMNS = 12  # images in a row of the picture
CELL_DIGITS = 6  # of a value that is listed
MAX_REASONS = 3  # columns that are printed beside an outlier
MIN_REASON_SHARE = 0.1  # of the largest contribution; smaller ones are not printed
OutlierFraction = Annotated[float, Interval(gt=0, lt=1)]
METRICS = ("auroc", "average_precision", "auroc_typicality", "average_precision_typicality")


@dataclass(frozen=True)
class OtherData:
    """Another dataset: its options, and how to open it in the form of a run's own data."""

    open: Callable[[LoadedRun], Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class EvaluationItems:
    """Held-out items that are normal, and anomalies."""

    normal: Batch
    anomalies: Batch
    # The classes, or the name of the dataset, that each are of.
    normal_source: list[int] | str
    anomaly_source: list[int] | str
    # Where the items of a table are in its file; [] for other data.
    normal_rows: list[int]
    anomaly_rows: list[int]


@dataclass(frozen=True)
class ItemScores:
    """The scores (N,) of training items, normal items and anomalies."""

    train: Tensor
    normal: Tensor
    anomalies: Tensor

    def anomaly_scores_by_criterion(self) -> dict[str, np.ndarray]:
        """Return how anomalous each of the normal items and anomalies (N,) is, by two criteria.

        "" is the negative score, and "_typicality" its distance from the mean over training items.
        """
        scores = torch.cat([self.normal, self.anomalies])
        distance = (scores - self.train.mean()).abs()
        return {"": -scores.numpy(), "_typicality": distance.numpy()}

    def anomaly_labels(self) -> np.ndarray:
        """Return whether each of the normal items and anomalies (N,) is an anomaly."""
        return np.r_[np.zeros(len(self.normal)), np.ones(len(self.anomalies))]


def anomaly(
    runs: list[LoadedRun],
    other: OtherData | None = None,
    *,
    classes: ClassNumber | list[ClassNumber] | None = None,
    score: ScoreKind | None = None,
    n: Positive | None = None,
    outlier_fraction: OutlierFraction = 0.01,
    shown: Positive = 15,
    iwae_samples: Positive = 100,
    elbo_timesteps: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    output_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Measure how well each run's model separates anomalies from normal items.

    Of a table without classes and without another dataset, list the rows with the lowest scores.

    An anomaly is an item of a class that was left out of training (or of `classes`), or of another
    dataset. Two criteria are measured: the score itself, under which the least likely items are
    anomalies; and its distance from the mean over training items, the typicality of Nalisnick et
    al. 2019 (https://arxiv.org/abs/1906.02994) for single items, since the raw likelihood can be
    higher on another dataset than on the model's own.

    Args:
        other: another dataset, whose items are the anomalies; None takes the anomalies from the
            run's own dataset.
        score: the kind of score; None is the first that the model supports of density, bound,
            energy and reconstruction.
        n: maximum number of items of each kind; None is all of the test split.
        outlier_fraction: of the training rows of a table without classes, which are below the
            threshold.
        shown: the strangest rows of a table without classes, which are listed.

    Raises:
        UserError: the model does not support the score, or nothing is anomalous.
    """
    records = []
    options = {"dataset": other and other.options}
    request = CommandRequest.from_command_call(anomaly, runs, locals(), further=options)
    for run in track(runs, "scoring", unit="runs"):
        found = find_supported_score(
            run,
            {score: SCORES[score]} if score else SCORES,
            iwae_samples=iwae_samples,
            elbo_timesteps=elbo_timesteps,
            purpose=f"score of the kind {score}" if score else "score",
        )
        if other is None and classes is None and is_table_without_classes(run):
            records.append(
                list_outliers(
                    run,
                    found,
                    replace(request, runs=(RequestedRun.from_loaded_run(run),)),
                    folder=common_output_folder(
                        [run], "anomaly", output_folder_among_runs(output_dir, run, len(runs))
                    ),
                    outlier_fraction=outlier_fraction,
                    shown=shown,
                    batch_size=batch_size,
                    seed=seed,
                )
            )
            continue
        if other is not None:
            data = other.open(run)
            items = evaluation_items_vs_other_dataset(run, data, n=n, seed=seed)
            name = data.name
        else:
            items = evaluation_items_by_class(run, classes, n=n, seed=seed)
            name = "unseen"
            if classes is not None:
                name = "class" + "-".join(map(str, items.anomaly_source))
        torch.manual_seed(seed)
        scores = score_train_and_test_items(run, found, items, batch_size=batch_size, seed=seed)
        record = run_record_fields(run, seed) | {
            "score": str(found),
            "normal": name_classes(run, items.normal_source),
            "anomalies": name_classes(run, items.anomaly_source),
            "n_normal": len(items.normal),
            "n_anomalies": len(items.anomalies),
            **measure_auroc_and_average_precision(scores),
            "folder": str(run.folder.path),
        }
        run_question = replace(request, runs=(RequestedRun.from_loaded_run(run),))
        run_output = output_folder_among_runs(output_dir, run, len(runs))
        folder = common_output_folder([run], "anomaly", run_output)
        caption = make_picture_caption("anomaly", run, seed)
        files: dict[str, Writer] = {
            "_roc.png": partial(plot_roc_and_score_histograms, found, scores, record, caption)
        }
        if run.spec.kind == "image":
            files["_images.png"] = partial(
                save_picture_as_sheet,
                render_least_and_most_likely_images(run, items, scores),
                caption=caption,
            )
        files |= make_scored_rows_csv_writers(run, items, scores)
        lead = f"{name}_{found.kind}"
        write_and_print_output_files(run_question, folder, lead, record, files, picture="_roc.png")
        records.append(record)
    measured = [record for record in records if "auroc" in record]
    if measured:
        print_detection_table(measured)
    if len(measured) > 1:
        folder = common_output_folder(runs, "anomaly", output_dir)
        write_and_print_output_files(
            request,
            folder,
            "mean",
            {"mean": mean_metrics_over_runs(measured), "runs": measured},
            {},
        )
    return records


def output_folder_among_runs(output_dir: str | None, run: LoadedRun, count: int) -> str | None:
    """Return where a run's files go: a folder of its own if there are several runs."""
    if output_dir and count > 1:
        return str(Path(output_dir) / run.folder.path.name)
    return output_dir


# --- outliers of a table without classes ----------------------------------------------------------


def is_table_without_classes(run: LoadedRun) -> bool:
    """Whether a run's data is points or rows of numbers without classes."""
    return run.spec.kind == "points" and not run.spec.num_classes


def list_outliers(
    run: LoadedRun,
    score: Score,
    request: CommandRequest,
    *,
    folder: Path,
    outlier_fraction: float,
    shown: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Print and write the rows with the lowest scores, and return the record."""
    ranked = rank_rows_by_score(
        run,
        score,
        outlier_fraction=outlier_fraction,
        shown=shown,
        batch_size=batch_size,
        seed=seed,
    )
    units, count = run.table_units, len(ranked.contributions)
    columns = [c.name for c in units.columns] if units else [f"x{i}" for i in range(run.spec.dim)]
    x = ranked.x[:count]
    own = units.to_own_units(x) if units else x.numpy()
    cells = [[f"{value + 0.0:.{CELL_DIGITS}g}" for value in row] for row in own.tolist()]
    gains = ranked.contributions.tolist()
    entries = [
        {
            "row": ranked.rows[i],
            "split": ranked.splits[i],
            "score": ranked.scores[i].item(),
            "is_outlier": bool(ranked.scores[i] < ranked.threshold),
            "values": dict(zip(columns, cells[i], strict=True)),
            "contributions": dict(zip(columns, gains[i], strict=True)),
        }
        for i in range(count)
    ]
    record = run_record_fields(run, seed) | {
        "score": str(score),
        "outlier_fraction": outlier_fraction,
        "threshold": ranked.threshold,
        "n": len(ranked.scores),
        "n_outliers": ranked.num_outliers,
        "rows": entries,
        "folder": str(run.folder.path),
    }
    print_outlier_table(entries, record)
    picture = plot_outliers(
        ranked.scores.numpy(),
        ranked.threshold,
        ranked.contributions.numpy(),
        cells,
        columns,
        [f"row {entry['row']}: {entry['score']:.4g}" for entry in entries],
        score_name=str(score),
    )
    caption = make_picture_caption("outliers", run, seed)
    files: dict[str, Writer] = {
        ".png": partial(save_picture_as_sheet, picture, caption=caption),
        **make_table_rows_csv_writers(
            run,
            Batch(ranked.x),
            ranked.rows,
            {
                "split": ranked.splits,
                "score": ranked.scores.tolist(),
                "outlier": (ranked.scores < ranked.threshold).int().tolist(),
            },
        ),
    }
    write_and_print_output_files(request, folder, f"outliers_{score.kind}", record, files)
    return record


def print_outlier_table(entries: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Print the strangest rows with their scores and the columns that explain them."""
    rows: list[TableRow] = []
    for entry in entries:
        gains = sorted(entry["contributions"].items(), key=lambda item: -item[1])
        reasons = [
            f"{name} {entry['values'][name]} (+{gain:.3g})"
            for name, gain in gains[:MAX_REASONS]
            if gain >= MIN_REASON_SHARE * gains[0][1]
        ]
        rows.append(
            [
                str(entry["row"]),
                f"{entry['score']:.2f}",
                "outlier" if entry["is_outlier"] else "",
                ", ".join(reasons),
            ]
        )
    print_table(["row", record["score"].partition(",")[0], "", "columns"], rows)
    print_wrapped(
        f"{record['n_outliers']:,} of {record['n']:,} rows are below the threshold "
        f"{record['threshold']:.4g}, which {record['outlier_fraction']:.1%} of the training rows "
        "are. (+…): what the score would gain if the column had its best value"
    )


# --- normal items and anomalies -------------------------------------------------------------------


def evaluation_items_vs_other_dataset(
    run: LoadedRun, other: Any, *, n: int | None, seed: int
) -> EvaluationItems:
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
    normal, rows = all_test_items_and_row_numbers(run.dataset, seed)
    trained, left_out = trained_and_left_out_classes(run)
    if left_out:
        normal, rows = select_items_of_classes(normal, rows, trained)
    anomalies, anomaly_rows = all_test_items_and_row_numbers(other, seed)
    return EvaluationItems(
        take_first_items(normal, n),
        take_first_items(anomalies, n),
        run.dataset_name,
        other.name,
        rows[:n],
        anomaly_rows[:n],
    )


def evaluation_items_by_class(
    run: LoadedRun, classes: int | list[int] | None, *, n: int | None, seed: int
) -> EvaluationItems:
    """Return held-out items of some classes as anomalies, and of the other trained classes.

    Args:
        classes: the anomalous classes; None is those without training items.

    Raises:
        UserError: a class does not exist, or nothing is anomalous or normal.
    """
    batch, rows = all_test_items_and_row_numbers(run.dataset, seed)
    trained, anomalous = trained_and_left_out_classes(run)
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
    normal_items, normal_rows = select_items_of_classes(batch, rows, normal)
    anomalies, anomaly_rows = select_items_of_classes(batch, rows, anomalous)
    return EvaluationItems(
        take_first_items(normal_items, n),
        take_first_items(anomalies, n),
        normal,
        anomalous,
        normal_rows[:n],
        anomaly_rows[:n],
    )


def all_test_items_and_row_numbers(dataset: Any, seed: int) -> tuple[Batch, list[int]]:
    """Return all test items of a dataset, and where they are in the file of a table."""
    index = dataset.head_indices("test", seed=seed)
    return dataset.head("test", seed=seed), dataset.file_row_numbers("test", index)


def name_classes(run: LoadedRun, source: list[int] | str) -> list[Any] | str:
    """Return classes by name where they have names; the name of a dataset as it is."""
    if isinstance(source, str) or not run.spec.class_names:
        return source
    return [run.spec.class_name(k) for k in source]


def trained_and_left_out_classes(run: LoadedRun) -> tuple[list[int], list[int]]:
    """Return the classes with training items, and those without."""
    y = run.dataset.splits["train"].y
    if y is None:
        return [], []
    counts = y.bincount(minlength=run.spec.num_classes).tolist()
    return [k for k, m in enumerate(counts) if m], [k for k, m in enumerate(counts) if not m]


def select_items_of_classes(
    batch: Batch, rows: list[int], classes: list[int]
) -> tuple[Batch, list[int]]:
    """Return the items of a labeled batch that belong to one of the classes, and their rows."""
    if batch.y is None:
        raise ValueError("cannot select classes from a batch without labels")
    keep = torch.isin(batch.y, torch.tensor(classes, device=batch.y.device))
    kept_rows = [row for row, is_kept in zip(rows, keep.tolist(), strict=False) if is_kept]
    return Batch(batch.x[keep], batch.y[keep]), kept_rows


def take_first_items(batch: Batch, n: int | None) -> Batch:
    """Return the first n items; None is all."""
    return Batch(batch.x[:n], None if batch.y is None else batch.y[:n])


# --- scores ---------------------------------------------------------------------------------------


def score_train_and_test_items(
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


def measure_auroc_and_average_precision(scores: ItemScores) -> dict[str, float]:
    """Return the mean scores, and AUROC and average precision by both criteria."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = {
        "mean_score_train": scores.train.mean().item(),
        "mean_score_normal": scores.normal.mean().item(),
        "mean_score_anomalies": scores.anomalies.mean().item(),
    }
    truth = scores.anomaly_labels()
    for suffix, ranking in scores.anomaly_scores_by_criterion().items():
        found[f"auroc{suffix}"] = float(roc_auc_score(truth, ranking))
        found[f"average_precision{suffix}"] = float(average_precision_score(truth, ranking))
    return found


# --- output ---------------------------------------------------------------------------------------


def plot_roc_and_score_histograms(
    score: Score, scores: ItemScores, record: dict[str, Any], caption: str, path: Path
) -> None:
    """Plot the ROC curves and the histograms of the scores."""
    from sklearn.metrics import roc_curve

    canvas, (roc, histogram) = make_canvas_and_axes(12, 5, 2)
    for suffix, ranking in scores.anomaly_scores_by_criterion().items():
        false_positives, true_positives, _ = roc_curve(scores.anomaly_labels(), ranking)
        label = "typicality" if suffix else score.kind
        auroc = record[f"auroc{suffix}"]
        roc.plot(false_positives, true_positives, label=f"{label}: AUROC {auroc:.4f}")
    roc.plot([0, 1], [0, 1], c="0.7", lw=1)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    roc.legend(fontsize=8, loc="lower right")
    values = {"normal": scores.normal, "anomalies": scores.anomalies}
    plot_histograms(histogram, values, str(score))
    save_canvas_as_png(canvas, path, caption=caption)


def render_least_and_most_likely_images(
    run: LoadedRun, items: EvaluationItems, scores: ItemScores
) -> Picture:
    """Return the least and the most likely normal images and anomalies, one row each."""
    rows, names = [], []
    for name, batch, values in (
        ("normal items", items.normal, scores.normal),
        ("anomalies", items.anomalies, scores.anomalies),
    ):
        order = values.argsort()
        count = min(MAX_COLUMNS, len(order))
        for which, index in (("least", order[:count]), ("most", order.flip(0)[:count])):
            rows.append(batch.x[index.to(batch.x.device)].cpu())
            names.append(f"{which} likely {name}")
    width = min(len(row) for row in rows)
    pixels = item_pictures.to_uint8_images(torch.cat([row[:width] for row in rows]), run.spec)
    return make_picture(pixels, columns=width, row_names=names)


def mean_metrics_over_runs(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each metric over the records of several runs."""
    return {name: float(np.mean([record[name] for record in records])) for name in METRICS}


def make_scored_rows_csv_writers(
    run: LoadedRun, items: EvaluationItems, scores: ItemScores
) -> dict[str, Writer]:
    """Return the writer of the rows of a table with their scores, the least likely first."""
    score = torch.cat([scores.normal, scores.anomalies])
    order = score.argsort()
    kinds = ["normal"] * len(items.normal) + ["anomaly"] * len(items.anomalies)
    rows = items.normal_rows + items.anomaly_rows
    if len(rows) != len(kinds):  # the anomalies are not of a table
        return {}
    x, y = torch.cat([items.normal.x, items.anomalies.x]), None
    if not isinstance(items.anomaly_source, str) and items.anomalies.y is not None:
        assert items.normal.y is not None, "both are of one labeled dataset"
        y = torch.cat([items.normal.y, items.anomalies.y])[order]
    answers = {"kind": [kinds[i] for i in order], "score": score[order].tolist()}
    return make_table_rows_csv_writers(run, Batch(x[order], y), [rows[i] for i in order], answers)


def print_detection_table(records: list[dict[str, Any]]) -> None:
    """Print the numbers as a table, with the mean over several runs."""
    rows: list[TableRow] = []
    for record in records:
        rows.append(
            f"{record['folder']}: normal {record['normal']}, anomalies {record['anomalies']}"
        )
        rows += format_detection_rows(record["score"], record)
    if len(records) > 1:
        rows.append(f"mean of {len(records)} runs")
        rows += format_detection_rows("score", mean_metrics_over_runs(records))
    print_table(["criterion", "AUROC", "average precision"], rows)


def format_detection_rows(score: str, numbers: dict[str, Any]) -> list[list[str]]:
    """Return a row of the table for each criterion: the score itself, and its typicality."""
    return [
        [name, *(f"{numbers[metric + suffix]:.4f}" for metric in ("auroc", "average_precision"))]
        for name, suffix in ((score, ""), ("typicality", "_typicality"))
    ]
