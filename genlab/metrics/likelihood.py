"""How probable a model finds held-out data: exact, bounded or estimated, in nats an item and bits a dimension."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.metrics import Row, Settings
from genlab.metrics.subject import Subject


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    has, names = subject.abilities, []
    if "log_prob" in has or {"energy", "log_partition"} <= has:
        names.append("nll")
    if "elbo" in has:
        names.append("nll_elbo")
    if "iwae" in has:
        names.append("nll_iwae")
    return [*names, "bits_per_dim"] if names and subject.spec.levels else names


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return −log p of n held-out items in every way that the model has, and the tightest in bits/dim.

    nll: exact from `log_prob`; or F(x) + log Z with log Z enumerated (exact) or by annealed importance sampling
    (estimate, whose error is counted in). nll_elbo: the evidence lower bound. nll_iwae: the bound of Burda et al. 2016
    (https://arxiv.org/abs/1509.00519) with K draws. bits_per_dim: that of the mass of each grey level's bin.
    """
    model, dataset, settings, has = subject.model, subject.dataset, subject.settings, subject.abilities
    batch = dataset.take(settings.split, settings.n, seed=settings.seed, device=subject.device)
    dtype = next(model.parameters()).dtype
    x, y = batch.x.to(dtype), batch.y if getattr(model, "conditional", False) else None
    common = {"n": len(x), "split": settings.split, "seed": settings.seed}
    if dataset.spec.dequantised:
        common["data"] = "dequantised, one draw"
    found: list[Row] = []

    def add(name: str, log_p: Tensor, tag: str, spread: float = 0.0, **conditions: Any) -> None:
        log_p = log_p.double()
        error = math.hypot(log_p.std().item() / math.sqrt(len(log_p)), spread) if len(log_p) > 1 else None
        found.append(Row(name, -log_p.mean().item(), "nats", tag, error, conditions={**common, **conditions}))

    torch.manual_seed(settings.seed)
    if "log_prob" in has:
        add("nll", over(settings, lambda x, y: model.log_prob(x, y), x, y), "exact")
    elif {"energy", "log_partition"} <= has:
        z = model.log_partition()
        conditions = {"log Z": round(z.value, 3)} | ({"log Z error": round(z.error, 4)} if z.error else {})
        log_p = -over(settings, lambda x, y: model.energy(x), x, y).double() - z.value
        add("nll", log_p, z.tag, z.error or 0.0, **conditions)
    if "elbo" in has:
        some = {"terms": settings.terms} if "terms" in inspect.signature(model.elbo).parameters else {}
        add("nll_elbo", over(settings, lambda x, y: model.elbo(x, y, **some), x, y), "bound", **some)
    if "iwae" in has:
        add("nll_iwae", over(settings, lambda x, y: model.iwae(x, settings.k), x, y), "bound", K=settings.k)
    if (bits := dataset.spec.bits_per_dim(-min(found, key=lambda row: row.value).value)) is not None:
        best = min(found, key=lambda row: row.value)
        error = best.error and best.error / (dataset.spec.dim * math.log(2))
        found.append(Row("bits_per_dim", bits, "bits/dim", best.tag, error, conditions={**common, "from": best.name}))
    return found


def over(settings: Settings, function: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, y: Tensor | None) -> Tensor:
    """Return function(x, y) (N,) computed batch by batch."""
    size = settings.batch_size
    parts = [function(x[i : i + size], None if y is None else y[i : i + size]) for i in range(0, len(x), size)]
    return torch.cat(parts)
