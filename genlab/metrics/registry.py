"""The registry of metrics: which metrics there are, which apply to a model and its data.

A new metric is a function in a file of this folder and an entry in `registry`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from genlab.abilities import ABILITIES, require
from genlab.errors import UserError, did_you_mean
from genlab.metrics import (
    active_units,
    classification_error,
    classifier_metrics,
    cluster_purity,
    disentanglement,
    efficiency,
    energy_distance,
    frechet,
    inception_score,
    kid_mmd,
    likelihood,
    memorization,
    mode_coverage,
    paired_translation,
    precision_recall,
    reconstruction,
    sliced_wasserstein,
    unpaired_translation,
)
from genlab.metrics.base import STAGES, Metric, Row, Stage
from genlab.metrics.context import MetricContext

ListModels = Callable[[str], list[str]]  # ability -> names of the recipes that have it


def registry() -> dict[str, Metric]:
    """Return every metric by name."""
    densities, sample = ("log_prob", "log_partition", "iwae", "elbo"), ("sample",)
    encode, translate = ("encode",), ("translate",)
    classifier = classifier_metrics
    return {
        "likelihood": Metric(likelihood.row_names, likelihood.measure, densities, "training"),
        "ode_likelihood": Metric(
            likelihood.ode_row_names, likelihood.measure_ode, ("ode_log_prob",), "on_request"
        ),
        "classification": Metric(
            classification_error.row_names, classification_error.measure, ("classify",), "training"
        ),
        "active_units": Metric(
            active_units.row_names, active_units.measure, ("posterior",), "training"
        ),
        "mode_coverage": Metric(mode_coverage.row_names, mode_coverage.measure, sample, "training"),
        "frechet": Metric(frechet.row_names, frechet.measure, sample),
        "kid": Metric(kid_mmd.kid_row_names, kid_mmd.measure_kid, sample),
        "mmd": Metric(kid_mmd.mmd_row_names, kid_mmd.measure_mmd, sample),
        "sliced_wasserstein": Metric(
            sliced_wasserstein.row_names, sliced_wasserstein.measure, sample
        ),
        "energy_distance": Metric(
            energy_distance.row_names, energy_distance.measure, sample, "training"
        ),
        "prdc": Metric(precision_recall.row_names, precision_recall.measure, sample),
        "inception_score": Metric(inception_score.row_names, inception_score.measure, sample),
        "class_coverage": Metric(
            classifier.class_coverage_row_names, classifier.measure_class_coverage, sample
        ),
        "class_accuracy": Metric(
            classifier.class_accuracy_row_names, classifier.measure_class_accuracy, sample
        ),
        "prompt_accuracy": Metric(
            classifier.prompt_accuracy_row_names, classifier.measure_prompt_accuracy, sample
        ),
        "cas": Metric(classifier.cas_row_names, classifier.measure_cas, sample, "on_request"),
        "nn_memorization": Metric(memorization.row_names, memorization.measure, sample),
        "reconstruction": Metric(reconstruction.row_names, reconstruction.measure, ("decode",)),
        "paired_translation": Metric(
            paired_translation.row_names, paired_translation.measure, translate, "training"
        ),
        "unpaired_translation": Metric(
            unpaired_translation.row_names, unpaired_translation.measure, translate, "training"
        ),
        "disentanglement": Metric(disentanglement.row_names, disentanglement.measure, encode),
        "cluster_purity": Metric(cluster_purity.row_names, cluster_purity.measure, encode),
        "efficiency": Metric(efficiency.row_names, efficiency.measure, tuple(ABILITIES)),
    }


def applicable_metrics(context: MetricContext, stage: Stage = "evaluation") -> dict[str, Metric]:
    """Return the metrics that apply in a context and are on by default at a stage.

    In training these are only the fast ones.
    """
    stages = STAGES[: STAGES.index(stage) + 1]
    return {
        name: metric
        for name, metric in registry().items()
        if metric.stage in stages and metric.row_names(context)
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
    known = registry()
    for name in names:
        if name in ABILITIES and context.model is not None:
            require(context.model, name, partial(list_models, name) if list_models else None)
            raise UserError(f"metrics: {name} is an ability; the metrics are {', '.join(known)}")
        if name not in known:
            raise UserError(
                f"metrics: no such metric '{name}'{did_you_mean(name, known)}; "
                f"the metrics are {', '.join(known)}"
            )
        if not known[name].row_names(context):
            reason = reason_not_applicable(known[name], context, list_models)
            raise UserError(f"metrics: {name} does not apply: {reason}")
    return {name: known[name] for name in names}


def measure(
    context: MetricContext,
    names: list[str] | None = None,
    *,
    stage: Stage = "evaluation",
    list_models: ListModels | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of the named metrics, or of all that apply (see `select_metrics`)."""
    metrics = select_metrics(context, names, stage=stage, list_models=list_models)
    return {name: metric.measure(context) for name, metric in metrics.items()}


def reason_not_applicable(
    metric: Metric, context: MetricContext, list_models: ListModels | None = None
) -> str:
    """Return why a metric does not apply in a context."""
    needed = " or ".join(metric.abilities)
    if context.abilities & set(metric.abilities):
        return f"it is not defined for the data of {context.dataset.name}"
    if context.model is None:
        return f"it needs a model with {needed}, but only samples are given"
    models = (
        sorted({name for verb in metric.abilities for name in list_models(verb)})
        if list_models
        else []
    )
    alternatives = f"; models that do: {', '.join(models)}" if models else ""
    return f"{context.name} does not support {needed}{alternatives}"
