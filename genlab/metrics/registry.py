"""The registry of metrics: which metrics there are, which apply to a model and its data.

A new metric is a function in a file of this folder and an entry in `all_metrics_by_name`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from genlab.abilities import ABILITIES, require_model_ability
from genlab.console import Progress
from genlab.errors import UserError, did_you_mean
from genlab.metrics import (
    active_units,
    classification_error,
    classifier_metrics,
    cluster_purity,
    crps,
    disentanglement,
    efficiency,
    energy_distance,
    forecast_likelihood,
    frechet,
    inception_score,
    interval_coverage,
    kid_mmd,
    likelihood,
    memorization,
    mode_coverage,
    paired_translation,
    pinball,
    precision_recall,
    reconstruction,
    sharpness,
    sliced_wasserstein,
    table_copying,
    table_correlations,
    table_marginals,
    table_utility,
    unpaired_translation,
    vlb_terms,
)
from genlab.metrics.base import STAGES, Metric, NotMeasurableError, Row, Stage
from genlab.metrics.context import MetricContext

ListModels = Callable[[str], list[str]]  # ability -> names of the recipes that have it


def all_metrics_by_name() -> dict[str, Metric]:
    """Return every metric by name."""
    densities, sample = ("log_prob", "log_partition", "iwae", "elbo"), ("sample",)
    encode, translate = ("encode",), ("translate",)
    classifier = classifier_metrics
    images = "images or points"
    series = "series, as dataset=series and dataset=ar2"
    tables = "tables with columns of categories, dataset=mixed_table"
    labels = "images with at least two classes"
    return {
        "likelihood": Metric(
            likelihood.row_names,
            likelihood.measure,
            densities,
            "training",
            takes_missing_values=True,
        ),
        "ode_likelihood": Metric(
            likelihood.ode_likelihood_row_names,
            likelihood.measure_ode_likelihood,
            ("ode_log_prob",),
            "on_request",
        ),
        "vlb_terms": Metric(vlb_terms.row_names, vlb_terms.measure, ("bound_terms",), "on_request"),
        "classification": Metric(
            classification_error.row_names,
            classification_error.measure,
            ("classify",),
            "training",
            data="data with classes",
        ),
        "active_units": Metric(
            active_units.row_names, active_units.measure, ("posterior",), "training", min_items=2
        ),
        "mode_coverage": Metric(
            mode_coverage.row_names,
            mode_coverage.measure,
            sample,
            "training",
            min_items=2,
            data="mixtures whose modes are known, such as dataset=ring",
        ),
        "frechet": Metric(frechet.row_names, frechet.measure, sample, min_items=2, data=images),
        "kid": Metric(kid_mmd.kid_row_names, kid_mmd.measure_kid, sample, min_items=2, data=images),
        "mmd": Metric(kid_mmd.mmd_row_names, kid_mmd.measure_mmd, sample, min_items=2, data=images),
        "sliced_wasserstein": Metric(
            sliced_wasserstein.row_names,
            sliced_wasserstein.measure,
            sample,
            min_items=2,
            data=images,
        ),
        "energy_distance": Metric(
            energy_distance.row_names,
            energy_distance.measure,
            sample,
            "training",
            min_items=2,
            data=images,
        ),
        "prdc": Metric(
            precision_recall.row_names,
            precision_recall.measure,
            sample,
            min_items=precision_recall.MIN_ITEMS,
            data=images,
        ),
        "inception_score": Metric(
            inception_score.row_names,
            inception_score.measure,
            sample,
            min_items=2,
            data="images in the space of a classifier: features=[classifier] or [inception]",
        ),
        "class_coverage": Metric(
            classifier.class_coverage_row_names,
            classifier.measure_class_coverage,
            sample,
            min_items=2,
            data=labels,
            needs_classifier=True,
        ),
        "class_accuracy": Metric(
            classifier.class_accuracy_row_names,
            classifier.measure_class_accuracy,
            sample,
            data=f"samples that were drawn for classes, of {labels}",
            needs_classifier=True,
        ),
        "prompt_accuracy": Metric(
            classifier.prompt_accuracy_row_names,
            classifier.measure_prompt_accuracy,
            sample,
            data="images whose captions name their class",
            needs_classifier=True,
        ),
        "cas": Metric(
            classifier.classification_accuracy_score_row_names,
            classifier.measure_classification_accuracy_score,
            sample,
            "on_request",
            data=f"samples that were drawn for classes, of {labels}",
        ),
        "sharpness": Metric(
            sharpness.row_names,
            sharpness.measure,
            sample,
            "on_request",
            data=f"images of at least {sharpness.MIN_SIDE}×{sharpness.MIN_SIDE} pixels",
        ),
        "nn_memorization": Metric(
            memorization.row_names, memorization.measure, sample, min_items=2, data=images
        ),
        "reconstruction": Metric(
            reconstruction.row_names, reconstruction.measure, ("decode",), data=images
        ),
        "paired_translation": Metric(
            paired_translation.row_names,
            paired_translation.measure,
            translate,
            "training",
            data="pairs of a source and its translation",
        ),
        "crps": Metric(crps.row_names, crps.measure, ("forecast",), "training", data=series),
        "pinball": Metric(
            pinball.row_names,
            pinball.measure,
            ("forecast",),
            "training",
            data=series,
        ),
        "interval_coverage": Metric(
            interval_coverage.row_names,
            interval_coverage.measure,
            ("forecast",),
            "training",
            data=series,
        ),
        "forecast_likelihood": Metric(
            forecast_likelihood.row_names,
            forecast_likelihood.measure,
            ("forecast_log_prob",),
            "training",
            data=series,
        ),
        "unpaired_translation": Metric(
            unpaired_translation.row_names,
            unpaired_translation.measure,
            translate,
            "training",
            min_items=2,
            data="unpaired images of two domains",
        ),
        "disentanglement": Metric(
            disentanglement.row_names,
            disentanglement.measure,
            encode,
            min_items=disentanglement.MIN_ITEMS,
            data="data with known factors, such as dataset=shapes",
        ),
        "cluster_purity": Metric(
            cluster_purity.row_names,
            cluster_purity.measure,
            encode,
            data="models that find categories without labels, as kmeans, gmm and infogan, and data "
            "with at least two classes",
        ),
        "table_marginals": Metric(
            table_marginals.row_names,
            table_marginals.measure,
            sample,
            "training",
            min_items=2,
            data=tables,
        ),
        "table_correlations": Metric(
            table_correlations.row_names,
            table_correlations.measure,
            sample,
            min_items=2,
            data=tables,
        ),
        "table_utility": Metric(
            table_utility.row_names,
            table_utility.measure,
            sample,
            min_items=2,
            data=f"samples with classes, of {tables}",
        ),
        "table_copying": Metric(
            table_copying.row_names, table_copying.measure, sample, min_items=2, data=tables
        ),
        "efficiency": Metric(
            efficiency.row_names, efficiency.measure, tuple(ABILITIES), takes_missing_values=True
        ),
    }


def applicable_metrics(context: MetricContext, stage: Stage = "evaluation") -> dict[str, Metric]:
    """Return the metrics that apply in a context and are on by default at a stage.

    In training these are only the fast ones. Metrics of the classifier are not on if other feature
    spaces were chosen, except at the stage "on_request".
    """
    stages = STAGES[: STAGES.index(stage) + 1]
    features = context.settings.features
    no_classifier = stage != "on_request" and features is not None and "classifier" not in features
    return {
        name: metric
        for name, metric in all_metrics_by_name().items()
        if metric.stage in stages
        and not (metric.needs_classifier and no_classifier)
        and (metric.takes_missing_values or not context.spec.has_missing)
        and metric.row_names(context)
    }


def select_metrics(
    context: MetricContext,
    names: list[str] | None = None,
    *,
    stage: Stage = "evaluation",
    list_models: ListModels | None = None,
) -> dict[str, Metric]:
    """Return the named metrics, or all that apply.

    Args:
        list_models: returns the recipes that have an ability, for error messages.

    Raises:
        UserError: a named metric does not exist, or does not apply; the message says why.
    """
    if names is None:
        return applicable_metrics(context, stage)
    known = all_metrics_by_name()
    for name in names:
        if name in ABILITIES and context.model is not None:
            require_model_ability(
                context.model, name, partial(list_models, name) if list_models else None
            )
            raise UserError(f"metrics: {name} is an ability; the metrics are {', '.join(known)}")
        if name not in known:
            raise UserError(
                f"metrics: no such metric '{name}'{did_you_mean(name, known)}; "
                f"the metrics are {', '.join(known)}"
            )
        if context.spec.has_missing and not known[name].takes_missing_values:
            raise UserError(
                f"metrics: {name} does not apply: it compares items, and those of this table have "
                "missing cells; genlab impute fills them in"
            )
        if not known[name].row_names(context):
            reason = reason_not_applicable(known[name], context, list_models)
            raise UserError(f"metrics: {name} does not apply: {reason}")
    return {name: known[name] for name in names}


@dataclass
class Measurement:
    """The rows of metrics by name, and why the others of those that apply have none."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def measure_metrics(
    context: MetricContext,
    names: list[str] | None = None,
    *,
    stage: Stage = "evaluation",
    list_models: ListModels | None = None,
) -> Measurement:
    """Measure the named metrics, or all that apply (see `select_metrics`).

    A metric for which the items do not suffice is skipped, and does not cancel the others.

    Raises:
        UserError: a named metric does not exist, or does not apply.
    """
    measurement = Measurement()
    selected = select_metrics(context, names, stage=stage, list_models=list_models)
    for name, metric in iterate_metrics_with_progress(selected):
        if reason := reason_too_few_items(metric, context):
            measurement.skipped[name] = reason
            continue
        try:
            measurement.rows[name] = metric.measure(context)
        except UserError as error:
            # a training continues in any case; otherwise an option may be wrong
            if stage != "training" and not isinstance(error, NotMeasurableError):
                raise
            measurement.skipped[name] = str(error)
        except torch.linalg.LinAlgError as error:
            words = str(error).strip().splitlines()[0]
            measurement.skipped[name] = f"its linear algebra failed on these items: {words}"
    return measurement


def iterate_metrics_with_progress(selected: dict[str, Metric]) -> Iterator[tuple[str, Metric]]:
    """Yield the metrics and their names, and show which one is measured."""
    with Progress("measuring", len(selected)) as progress:
        for name, metric in selected.items():
            progress.label = f"measuring {name}"
            yield name, metric
            progress.update()


def measure(
    context: MetricContext,
    names: list[str] | None = None,
    *,
    stage: Stage = "evaluation",
    list_models: ListModels | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of the named metrics, or of all that apply (see `measure_metrics`)."""
    return measure_metrics(context, names, stage=stage, list_models=list_models).rows


def reason_too_few_items(metric: Metric, context: MetricContext) -> str:
    """Return why the items do not suffice for a metric, or "" if their numbers do."""
    split, heldout = context.settings.split, context.num_heldout
    least = metric.min_items
    if metric.measure is efficiency.measure:
        return ""
    if not heldout:
        return f"the {split} split of {context.dataset.name} is empty"
    if heldout < least:
        there = context.dataset.size(split)
        have = f"the {split} split has {there:,}" if there < context.settings.n else f"n={heldout}"
        return f"it requires at least {least} held-out items, but {have}"
    if context.samples is not None and len(context.samples) < least:
        return f"it requires at least {least} samples, but there are {len(context.samples)}"
    return ""


def reason_not_applicable(
    metric: Metric, context: MetricContext, list_models: ListModels | None = None
) -> str:
    """Return why a metric does not apply in a context."""
    needed = " or ".join(metric.abilities)
    if context.abilities & set(metric.abilities):
        subject = context.dataset.name
        if context.model is not None:
            subject = f"{context.name} on {subject}"
        return f"it is not defined for {subject}, but for {metric.data or 'other data'}"
    if context.model is None:
        return f"it needs a model with {needed}, but only samples are given"
    models: list[str] = []
    if list_models:
        names = [list(list_models(verb)) for verb in metric.abilities]
        models = list(dict.fromkeys(name for group in names for name in group if name != "…"))
    alternatives = f"; models that do: {', '.join(models)}" if models else ""
    return f"{context.name} does not support {needed}{alternatives}"
