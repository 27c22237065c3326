"""Unpaired translation: distance of the translations to the targets, and cycle errors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genlab.metrics import energy_distance, frechet, kid_mmd
from genlab.metrics.base import Row, mean_and_error
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space
from genlab.metrics.paired_translation import translate_in_batches
from genlab.spec import Batch, DataSpec


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    spec = context.spec
    is_applicable = (
        "translate" in context.abilities
        and spec.source is not None
        and not context.dataset.paired
        and {spec.kind, spec.source.kind} == {"image"}
    )
    if not is_applicable:
        return []
    names = [
        row_name_in_space("energy_distance", space)
        for space in energy_distance.requested_or_value_spaces(context)
    ]
    if context.settings.features:
        names += [
            row_name_in_space(name, space)
            for name in ("frechet", "kid")
            for space in context.feature_spaces
        ]
    if context.model.translates_backward:
        names += ["cycle_error", "cycle_error_backward"]
    return names


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return distances of n translated sources to n held-out targets, and cycle errors.

    The conditions of a distance contain that of the untranslated sources if they have the shape of
    targets: a translator should be better. In feature spaces that were requested there are the
    Fréchet and the kernel distance too (in Inception's space FID and KID, as in papers).

    A cycle error is the mean absolute difference of an image and its translation there and back, as
    a fraction of the range. The cycle error of a model that does not change anything is 0, so the
    conditions contain the distance of a translation from its source (`change`).
    """
    model, spec, s = context.model, context.spec, context.settings
    batch, like = context.dataset.head(s.split, s.n, seed=s.seed), next(model.parameters())
    # if there are fewer sources than targets, some sources occur twice
    x, y = batch.cond.to(like).unique(dim=0), batch.x.to(like)
    translations = translate_in_batches(model.translate, x, spec)
    rows = make_distance_rows(context, translations)
    if spec.source.shape == spec.shape:
        of_sources = {row.name: f"{row.value:.4g}" for row in make_distance_rows(context, x)}
        rows = [
            replace(row, conditions=row.conditions | {"sources": of_sources[row.name]})
            for row in rows
        ]
    if model.translates_backward:
        backward = partial(model.translate, backward=True)
        cycled_x = translate_in_batches(backward, translations, spec.source)
        rows.append(
            make_cycle_error_row(context, "cycle_error", x, translations, cycled_x, spec.source)
        )
        backward_y = translate_in_batches(backward, y, spec.source)
        cycled_y = translate_in_batches(model.translate, backward_y, spec)
        rows.append(
            make_cycle_error_row(context, "cycle_error_backward", y, backward_y, cycled_y, spec)
        )
    return rows


def make_distance_rows(context: MetricContext, x: Tensor) -> list[Row]:
    """Return the distances of images x (N, *shape) to held-out targets."""
    samples = Batch(x.float().cpu())
    sample_context = MetricContext(
        context.dataset, context.settings, samples=samples, translated=True
    )
    rows = energy_distance.measure(sample_context)
    if context.settings.features:
        rows += frechet.measure(sample_context) + kid_mmd.measure_kid(sample_context)
    return rows


def make_cycle_error_row(
    context: MetricContext, name: str, x: Tensor, between: Tensor, cycled: Tensor, spec: DataSpec
) -> Row:
    """Return the row of the cycle error of images x, their translations, and the way back."""
    s = context.settings
    errors = mean_absolute_difference(x, cycled, spec)
    conditions: dict[str, Any] = {"n": len(errors), "split": s.split, "seed": s.seed}
    if x.shape == between.shape:
        change = mean_absolute_difference(x, between, spec).mean().item()
        conditions["change"] = f"{change:.4g}"
    value, error = mean_and_error(errors)
    return Row(name, value, "range", error=error, conditions=conditions)


def mean_absolute_difference(x: Tensor, other: Tensor, spec: DataSpec) -> Tensor:
    """Return the mean absolute difference (N,) of images (N, C, H, W) in units of the range."""
    low, high = spec.range
    return (x - other).abs().double().flatten(1).mean(1) / (high - low)
