"""How often a model names a held-out item's class: the error of `classify`."""

from __future__ import annotations

import torch

from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.likelihood import over


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    return (
        ["classification_error"] if "classify" in subject.abilities and subject.spec.classes else []
    )


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return the share of n held-out items of which another class than theirs is the most probable, binomial error."""
    model, settings = subject.model, subject.settings
    batch = subject.dataset.take(
        settings.split, settings.n, seed=settings.seed, device=subject.device
    )
    x = batch.x.to(next(model.parameters()).dtype)
    torch.manual_seed(settings.seed)
    log_p = over(settings, lambda x, y: model.classify(x), x, None)  # (N, classes)
    share = (log_p.argmax(1) != batch.y).double().mean().item()
    error = (share * (1 - share) / len(x)) ** 0.5
    conditions = {"n": len(x), "split": settings.split, "seed": settings.seed}
    return [Row("classification_error", share, "share", "exact", error, conditions=conditions)]
