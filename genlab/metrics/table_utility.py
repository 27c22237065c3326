"""Train on generated rows, test on real ones: what a classifier learns from the samples.

Esteban, Hyland & Rätsch 2017, https://arxiv.org/abs/1706.02633, section 4.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from genlab.console import Progress
from genlab.metrics.base import NotMeasurableError, Row
from genlab.metrics.context import MAX_TRAIN_ITEMS, MetricContext
from genlab.metrics.memorization import copying_probability_and_error
from genlab.metrics.table_rows import is_sampled_table, rows_of_items
from genlab.spec import Batch

MAX_NATIVE_CATEGORIES = 255  # more are given to the classifier as numbers


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    is_applicable = (
        is_sampled_table(context)
        and context.spec.num_classes > 1
        and context.conditional
        and context.dataset.size("train") > 0
    )
    return ["utility_auc", "utility_ratio"] if is_applicable else []


def measure(context: MetricContext) -> list[Row]:
    """Return the AUC of a classifier of generated rows on held-out ones, and its ratio.

    As many rows are generated as are trained on. Of several classes it is the mean over classes of
    one against the others. `real_vs_real` is the AUC of a classifier of the training rows.

    Raises:
        NotMeasurableError: a split has a single class.
    """
    dataset, settings = context.dataset, context.settings
    train = dataset.head("train", MAX_TRAIN_ITEMS, seed=settings.seed)
    heldout = Batch(*dataset.raw_items_and_labels(settings.split))
    generated = context.draw_samples(len(train))
    for name, batch in {"training": train, settings.split: heldout, "generated": generated}.items():
        if len(batch.y.unique()) < 2:
            raise NotMeasurableError(f"all {name} rows have the same class")
    found = []
    with Progress("training classifiers", 2) as progress:
        for batch in (train, generated):
            found.append(area_under_curve(context, batch, heldout))
            progress.update()
    (real, _), (value, error) = found
    conditions = {
        "n": f"{len(generated)} against {len(heldout)}",
        "split": settings.split,
        "seed": settings.seed,
        "train": len(train),
    }
    return [
        Row(
            "utility_auc",
            value,
            "AUC",
            "estimate",
            error,
            real,
            better="higher",
            conditions=conditions,
        ),
        Row(
            "utility_ratio",
            value / real,
            "ratio",
            "estimate",
            error / real,
            1.0,
            better="higher",
            conditions=conditions,
        ),
    ]


def area_under_curve(context: MetricContext, train: Batch, test: Batch) -> tuple[float, float]:
    """Return the AUC on test rows of a gradient-boosted classifier, and its standard error."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    sizes = np.array(context.spec.categories)
    is_native = (sizes > 0) & (sizes <= MAX_NATIVE_CATEGORIES)
    classifier = HistGradientBoostingClassifier(
        categorical_features=is_native if is_native.any() else None,
        random_state=context.settings.seed % 2**32,
    )
    values = [rows_of_items(context, batch.x, None).values for batch in (train, test)]
    assert train.y is not None and test.y is not None, "only rows with classes are measured"
    classifier.fit(values[0], train.y.numpy())
    scores = torch.from_numpy(classifier.predict_proba(values[1]))
    known = [int(k) for k in classifier.classes_]
    classes = [k for k in test.y.unique().tolist() if k in known]
    if context.spec.num_classes == 2:
        classes = classes[-1:]  # the other class has the same curve
    areas = [binary_auc_and_error(scores[:, known.index(k)], test.y == k) for k in classes]
    error = math.sqrt(sum(e**2 for _, e in areas)) / len(areas)
    return sum(value for value, _ in areas) / len(areas), error


def binary_auc_and_error(scores: Tensor, is_positive: Tensor) -> tuple[float, float]:
    """Return the AUC of scores (N,), and its standard error by DeLong et al. 1988.

    It is the probability that a negative row has a smaller score than a positive one.
    """
    return copying_probability_and_error(scores[~is_positive], scores[is_positive])
