"""What can be said of a translation that nothing pairs: whether its images lie among the targets, and whether they lead back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genlab.metrics import Row, energy_distance, frechet, kid_mmd
from genlab.metrics.context import Subject
from genlab.metrics.features import named
from genlab.metrics.paired_translation import both_ways, translated
from genlab.spec import Batch, Spec


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    spec = subject.spec
    fits = (
        "translate" in subject.abilities and spec.source is not None and not subject.dataset.paired
    )
    if not fits or {spec.kind, spec.source.kind} != {"image"}:
        return []
    found = [named("energy_distance", space) for space in energy_distance.spaces(subject)]
    if subject.settings.features:
        found += [
            named(name, space)
            for name in ("frechet", "kernel_distance")
            for space in subject.spaces
        ]
    return found + ["cycle_error", "cycle_error_back"] * both_ways(subject.model)


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return the distances of translations of n held-out sources to n held-out targets, and how far a cycle leads from its start.

    A distance has beside it that of the sources as they are, where they could be targets: what a translator has to be
    better than. In spaces that were asked for there are the Fréchet and the kernel distance too (in Inception's FID and KID,
    which papers give). A cycle error is the mean absolute difference between an image and what comes back from it, in parts
    of the range; a model that changes nothing makes none, so how far a translation lies from its source stands beside it.
    """
    model, spec, s = subject.model, subject.spec, subject.settings
    batch, like = subject.dataset.take(s.split, s.n, seed=s.seed), next(model.parameters())
    x, y = (
        batch.cond.to(like).unique(dim=0),
        batch.x.to(like),
    )  # where there are fewer sources than targets, some come twice
    made = translated(model.translate, x, spec)
    found = distances(subject, made)
    if spec.source.shape == spec.shape:
        beside = {row.name: f"{row.value:.4g}" for row in distances(subject, x)}
        found = [
            replace(row, conditions=row.conditions | {"sources": beside[row.name]}) for row in found
        ]
    if both_ways(model):
        back = partial(model.translate, backward=True)
        other = translated(back, y, spec.source)
        for name, start, between, end, of in (
            ("cycle_error", x, made, translated(back, made, spec.source), spec.source),
            ("cycle_error_back", y, other, translated(model.translate, other, spec), spec),
        ):
            errors = difference(start, end, of)
            error = errors.std().item() / len(errors) ** 0.5 if len(errors) > 1 else None
            said = {"n": len(errors), "split": s.split, "seed": s.seed}
            if start.shape == between.shape:
                said["change"] = f"{difference(start, between, of).mean().item():.4g}"
            found.append(
                Row(name, errors.mean().item(), "range", "exact", error, None, "lower", said)
            )
    return found


def distances(subject: Subject, x: Tensor) -> list[Row]:
    """Return the distances of images x (N, *shape) to held-out targets."""
    drawn = Subject(subject.dataset, subject.settings, samples=Batch(x.float().cpu()))
    asked = [frechet.measure, kid_mmd.kid_measure] if subject.settings.features else []
    return [row for distance in (energy_distance.measure, *asked) for row in distance(drawn)]


def difference(x: Tensor, other: Tensor, spec: Spec) -> Tensor:
    """Return the mean absolute difference (N,) of images (N, C, H, W) in parts of a Spec's range."""
    low, high = spec.range
    return (x - other).abs().double().flatten(1).mean(1) / (high - low)
