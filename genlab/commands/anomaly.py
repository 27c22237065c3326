"""genlab anomaly: how well a model tells items of a class that it never saw, or of another set, from those that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.console import show
from genlab.errors import UserError
from genlab.inference.likelihood_scores import (
    SCORES,
    Kind,
    Score,
    figure,
    folder_of,
    histogram,
    save,
    score_of,
    scores,
)
from genlab.inference.results import write_record
from genlab.runs.loaded_run import Run
from genlab.spec import Batch, Count, Positive
from genlab.viz import image_grids

TRAIN = 5000  # training items, at most, whose mean score is that of a typical item
COLUMNS = 12  # images in a row of the picture


def anomaly(
    runs: list[Run],
    elsewhere: Any = None,
    *,
    classes: Count | list[Count] | None = None,
    score: Kind | None = None,
    n: Positive | None = None,
    k: Positive = 100,
    terms: Positive | None = 20,
    seed: Count = 0,
    batch_size: Positive = 250,
    out: str | None = None,
) -> list[dict[str, Any]]:
    """Say how well each run's model tells anomalies from held-out items of what it was trained on; return a record a run.

    An anomaly is an item of a class that was left out of training (or of `classes`), or of another set. Two scores are
    judged: the model's own, by which the least likely items are anomalies; and its distance from the mean over training
    items, the typicality of Nalisnick et al. 2019 (https://arxiv.org/abs/1906.02994) for single items, since raw likelihood
    can be higher on another set than on its own.

    Args:
        elsewhere: opens another dataset in the run's own form, for each run; None: anomalies are of the run's own set.
        score: the kind of score; None: the first that the model has of density, bound, energy and reconstruction.
        n: items of each kind, at most; None: all of the test split.

    Raises:
        UserError: the model has no such score, or nothing is anomalous.
    """
    records = []
    for run in runs:
        ways = {score: SCORES[score]} if score else SCORES
        found = score_of(
            run, ways, k=k, terms=terms, task=f"score of the kind {score}" if score else "score"
        )
        other = elsewhere(run) if elsewhere else None
        normal, odd, said = parts(run, other, classes, n=n, seed=seed)
        torch.manual_seed(seed)
        train = run.dataset.take("train", min(TRAIN, run.dataset.size("train")), seed=seed)
        of = {name: scores(run, found, batch, batch_size=batch_size)
              for name, batch in {"train": train, "normal": normal, "odd": odd}.items()}  # fmt: skip
        record = {
            "model": run.name, "dataset": run.info["dataset"], "step": run.step, "seed": seed, "score": str(found),
            **said, "n_normal": len(normal), "n_anomalies": len(odd), **judged(of),
        }  # fmt: skip
        record["folder"] = str(run.folder.path)
        own = str(Path(out) / run.folder.path.name) if out and runs[1:] else out
        where = folder_of([run], "anomaly", own)
        against = (
            other.name
            if other
            else "unseen"
            if classes is None
            else "class" + "-".join(map(str, said["anomalies"]))
        )
        draw(
            run,
            found,
            of,
            normal,
            odd,
            record,
            where / f"{against}_{found.kind}_step{run.step}_seed{seed}",
        )
        records.append(record)
    summary(records, runs, out)
    return records


def parts(
    run: Run, other: Any, classes: int | list[int] | None, *, n: int | None, seed: int
) -> tuple[Batch, Batch, dict]:
    """Return the held-out items that are normal, the anomalies, and what makes them so."""
    held = run.dataset.take("test", seed=seed)
    trained, left_out = known(run)
    if other is not None:
        if other.spec.shape != run.spec.shape:
            raise UserError(f"{other.name} has items of shape {other.spec.shape}, and the model takes {run.spec.shape}; "
                            "set dataset.size to its side, and choose a set with as many channels")  # fmt: skip
        normal = of_classes(held, trained) if left_out else held
        return (
            cut(normal, n),
            other.take("test", n, seed=seed),
            {"normal": run.info["dataset"], "anomalies": other.name},
        )
    odd = left_out if classes is None else classes if isinstance(classes, list) else [classes]
    usual = [c for c in trained if c not in odd]
    if bad := [c for c in odd if c >= run.spec.classes]:
        raise UserError(
            f"classes={bad[0]}: {run.info['dataset']} has the classes 0 to {run.spec.classes - 1}"
        )
    if not odd or not usual:
        raise UserError("nothing is anomalous: train with dataset.only=<class> or dataset.keep={<class>:0}, name classes=, "
                        "or give dataset=<another set>")  # fmt: skip
    return (
        cut(of_classes(held, usual), n),
        cut(of_classes(held, odd), n),
        {"normal": usual, "anomalies": odd},
    )


def known(run: Run) -> tuple[list[int], list[int]]:
    """Return the classes with training items, and those without."""
    y = run.dataset.splits["train"].y
    if y is None:
        return [], []
    counts = y.bincount(minlength=run.spec.classes).tolist()
    return [c for c, m in enumerate(counts) if m], [c for c, m in enumerate(counts) if not m]


def of_classes(batch: Batch, classes: list[int]) -> Batch:
    keep = torch.isin(batch.y, torch.tensor(classes, device=batch.y.device))
    return Batch(batch.x[keep], batch.y[keep])


def cut(batch: Batch, n: int | None) -> Batch:
    return Batch(batch.x[:n], None if batch.y is None else batch.y[:n])


def judged(of: dict[str, Tensor]) -> dict[str, Any]:
    """Return the area under the ROC curve and the average precision of finding the anomalies, by both scores."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    found: dict[str, Any] = {
        f"mean_score_{name}": values.mean().item() for name, values in of.items()
    }
    for name, strangeness in strange(of).items():
        truth, value = strangeness
        found[f"auroc{name}"] = float(roc_auc_score(truth, value))
        found[f"average_precision{name}"] = float(average_precision_score(truth, value))
    return found


def strange(of: dict[str, Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (whether an item is an anomaly, how strange it is) by the score, "", and by its typicality, "_typicality"."""
    truth = np.r_[np.zeros(len(of["normal"])), np.ones(len(of["odd"]))]
    both = torch.cat([of["normal"], of["odd"]])
    return {
        "": (truth, -both.numpy()),
        "_typicality": (truth, (both - of["train"].mean()).abs().numpy()),
    }


# --- what is shown ----------------------------------------------------------------------------------------------------


def draw(
    run: Run,
    score: Score,
    of: dict[str, Tensor],
    normal: Batch,
    odd: Batch,
    record: dict[str, Any],
    path: Path,
) -> None:
    """Write the ROC curves with the scores' histograms, the most and least likely images, and the record."""
    from sklearn.metrics import roc_curve

    canvas, (roc, bars) = figure(10, 4, 2)
    for name, (truth, value) in strange(of).items():
        wrong, right, _ = roc_curve(truth, value)
        label = "typicality" if name else score.kind
        roc.plot(wrong, right, label=f"{label}: AUROC {record[f'auroc{name}']:.4f}")
    roc.plot([0, 1], [0, 1], c="0.7", lw=1)
    roc.set(xlabel="normal items called anomalies", ylabel="anomalies found", aspect="equal")
    roc.legend(fontsize=8, loc="lower right")
    histogram(bars, {"normal": of["normal"], "anomalies": of["odd"]}, str(score))
    save(canvas, path.with_name(path.name + "_roc.png"))
    if run.spec.kind == "image":
        rows, words = [], []
        for name, batch in (("normal", normal), ("odd", odd)):
            order = of[name].argsort()
            m = min(COLUMNS, len(order))
            for what, index in (("least", order[:m]), ("most", order.flip(0)[:m])):
                rows.append(batch.x[index.to(batch.x.device)].cpu())
                words.append(f"{what} likely {'normal items' if name == 'normal' else 'anomalies'}")
        width = min(map(len, rows))
        sheet = image_grids.grid(
            image_grids.to_bytes(torch.cat([row[:width] for row in rows]), run.spec), columns=width
        )
        print(
            f"{image_grids.save(sheet, path.with_name(path.name + '_images.png'))} (rows: {', '.join(words)})"
        )
    write_record(record, path.with_name(path.name + ".json"))


def summary(records: list[dict[str, Any]], runs: list[Run], out: str | None) -> None:
    """Print the numbers as a table, with the mean over several runs, which is written beside them."""
    names = ("auroc", "average_precision", "auroc_typicality", "average_precision_typicality")
    rows = [
        [
            r["folder"],
            r["score"],
            str(r["normal"]),
            str(r["anomalies"]),
            *(f"{r[m]:.4f}" for m in names),
        ]
        for r in records
    ]
    if len(records) > 1:
        mean = {name: float(np.mean([r[name] for r in records])) for name in names}
        rows.append([f"mean of {len(records)}", "", "", "", *(f"{mean[m]:.4f}" for m in names)])
        write_record({"mean": mean, "runs": records}, folder_of(runs, "anomaly", out) / "mean.json")
    show(["run", "score", "normal", "anomalies", *names], rows)
