"""How probable a model finds held-out data: exact, bounded or estimated, in nats an item and bits a dimension."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import Estimate
from genlab.metrics import Row, Settings
from genlab.metrics.context import Subject

OWN = ("nll", "nll_elbo", "nll_iwae")  # of the items in their own space


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    has, names = subject.abilities, []
    if "log_prob" in has or {"energy", "log_partition"} <= has:
        names.append("nll")
        if known_law(subject):
            names.append("nll_gap")
    if logit(subject):
        names.append("nll_logit")
    if "elbo" in has:
        names.append("nll_elbo")
    if "iwae" in has:
        names.append("nll_iwae")
    if sequential(subject):
        return [*names, "nats_per_token", "bits_per_token"]
    return [*names, "bits_per_dim"] if names and subject.spec.levels else names


def known_law(subject: Subject) -> bool:
    """Whether the entropy of what the model is asked for, p(x), is known: the least −log p."""
    conditional = getattr(subject.model, "conditional", False)
    return hasattr(subject.dataset, "entropy") and not conditional and not subject.spec.dequantised


def logit(subject: Subject) -> bool:
    """Whether the model takes the logit of its data, in whose space likelihoods are often reported."""
    return "log_prob" in subject.abilities and getattr(subject.model, "squashed", False)


def sequential(subject: Subject) -> bool:
    """Whether the data are tokens and the model knows log p of the first ones alone, since it predicts one after another."""
    return subject.spec.kind == "tokens" and {"log_prob", "extend"} <= subject.abilities


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return −log p of n held-out items in every way that the model has, and the tightest in bits/dim.

    nll: exact from `log_prob`; or F(x) + log Z with log Z enumerated (exact) or by annealed importance sampling
    (estimate, whose error is counted in, as in the bounds that need log Z). nll_gap: nll above the entropy of the data's law,
    KL(law ‖ model), where that is known. nll_logit: nll of the logit of the pixels, where the model takes that. nll_elbo: the
    evidence lower bound. nll_iwae: the bound of Burda et al. 2016 (https://arxiv.org/abs/1509.00519) with K draws.
    bits_per_dim: that of the mass of each grey level's bin. nats_per_token, bits_per_token: −log p(x_2 … x_T | x_1)/(T − 1).
    The windows of a held-out text overlap by one token, so that each of its tokens but the first is predicted once, from the
    tokens before it in its window.
    """
    model, dataset, settings, has = (
        subject.model,
        subject.dataset,
        subject.settings,
        subject.abilities,
    )
    batch = dataset.take(settings.split, settings.n, seed=settings.seed, device=subject.device)
    dtype = next(model.parameters()).dtype
    x = batch.x.to(dtype) if batch.x.is_floating_point() else batch.x  # tokens stay whole numbers
    y = batch.y if getattr(model, "conditional", False) else None
    common = {"n": len(x), "split": settings.split, "seed": settings.seed}
    if dataset.spec.dequantised:
        common["data"] = "dequantised, one draw"
    found: list[Row] = []

    def add(name: str, log_p: Tensor, tag: str, spread: float = 0.0, **conditions: Any) -> None:
        value, error = mean(-log_p)
        error = None if error is None else math.hypot(error, spread)
        found.append(Row(name, value, "nats", tag, error, conditions={**common, **conditions}))

    torch.manual_seed(settings.seed)
    z = model.log_partition() if "log_partition" in has else Estimate(0.0, None, "exact")
    of_z = {"log Z": round(z.value, 3)} if "log_partition" in has else {}
    of_z |= (
        {"log Z error": round(z.error, 4)} if z.error else {}
    )  # counted in: log Z is the same in every item's number
    if "log_prob" in has:
        log_p = over(settings, lambda x, y: model.log_prob(x, y), x, y)
        add("nll", log_p, "exact")
    elif {"energy", "log_partition"} <= has:
        log_p = -over(settings, lambda x, y: model.energy(x), x, y).double() - z.value
        add("nll", log_p, z.tag, z.error or 0.0, **of_z)
    if found and known_law(
        subject
    ):  # item by item where the law's density is known: the noise of the draw cancels
        law = dataset.log_prob(x.double()) if hasattr(dataset, "log_prob") else -dataset.entropy
        add("nll_gap", log_p - law, found[0].tag, z.error or 0.0, entropy=round(dataset.entropy, 4))
    if logit(subject):
        add("nll_logit", over(settings, lambda x, y: model.logit_log_prob(x, y), x, y), "exact")
    if "elbo" in has:
        some = (
            {"terms": settings.terms} if "terms" in inspect.signature(model.elbo).parameters else {}
        )
        log_p = over(settings, lambda x, y: model.elbo(x, y, **some), x, y)
        add("nll_elbo", log_p, "bound", z.error or 0.0, **some, **of_z)
    if "iwae" in has:
        by_class = {"y"} & inspect.signature(
            model.iwae
        ).parameters.keys()  # log p(x|y), as the other numbers are
        of_y = lambda x, y: model.iwae(x, settings.k, y) if by_class else model.iwae(x, settings.k)  # noqa: E731
        log_p = over(settings, of_y, x, y)
        add("nll_iwae", log_p, "bound", z.error or 0.0, K=settings.k, **of_z)
    if sequential(subject):
        after_first = over(
            settings, lambda x, y: model.log_prob(x, y) - model.log_prob(x[:, :1], y), x, y
        )
        nats, error = mean(-after_first / (x.shape[1] - 1))
        said = {**common, "given": "each window's first token"}
        for unit, size in {"nats": 1.0, "bits": math.log(2)}.items():
            found.append(
                Row(
                    f"{unit}_per_token",
                    nats / size,
                    f"{unit}/token",
                    "exact",
                    error and error / size,
                    conditions=said,
                )
            )
    best = min((row for row in found if row.name in OWN), key=lambda row: row.value)
    if (bits := dataset.spec.bits_per_dim(-best.value)) is not None:
        error = best.error and best.error / (dataset.spec.dim * math.log(2))
        found.append(
            Row(
                "bits_per_dim",
                bits,
                "bits/dim",
                best.tag,
                error,
                conditions={**common, "from": best.name},
            )
        )
    return found


def ode_rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `ode` gives."""
    if "ode_log_prob" not in subject.abilities:
        return []
    return [
        "nll_ode",
        *(["nll_ode_gap"] if known_law(subject) else []),
        *(["bits_per_dim_ode"] if subject.spec.levels else []),
    ]


def ode(subject: Subject) -> list[Row]:
    """Return −log p of n held-out items by following an ODE to noise, an estimate (Song et al. 2021, 2011.13456, section 4.3).

    Levels are spread evenly over their bins, one draw an item: the mean is then above the −log P of the levels. The density is
    that of the model's law with the noise of the ODE's first level on it, which the conditions tell in grey levels: where that
    noise is not small beside a bin, the number says little of finer detail. The error holds the spread of the items and of the
    estimate, not what the ODE's steps leave.
    """
    model, dataset, settings = subject.model, subject.dataset, subject.settings
    spec = dataset.spec
    batch = dataset.take(settings.split, settings.n, seed=settings.seed, device=subject.device)
    x = batch.x.to(next(model.parameters()).dtype)
    torch.manual_seed(settings.seed)
    span, width = spec.range[1] - spec.range[0], 0.0
    if spec.discrete:  # a level stands in the middle of its bin
        width = span / (spec.levels - 1)
        x = x + width * (torch.rand_like(x) - 0.5)
    elif spec.levels:
        width = span / spec.levels
    log_p = over(
        settings,
        lambda x, y: model.ode_log_prob(x, y),
        x,
        batch.y if getattr(model, "conditional", False) else None,
    )
    common = {"n": len(x), "split": settings.split, "seed": settings.seed}
    if hasattr(model, "ode_noise"):
        noise = model.ode_noise()
        common["start noise"] = f"{noise / width:.2g} grey levels" if width else f"{noise:.2g}"
    value, error = mean(-log_p)
    found = [Row("nll_ode", value, "nats", "estimate", error, conditions=common)]
    if known_law(subject):
        law = (
            dataset.log_prob(batch.x.double()) if hasattr(dataset, "log_prob") else -dataset.entropy
        )
        gap, its_error = mean(law - log_p)
        known = common | {"entropy": round(dataset.entropy, 4)}
        found.append(Row("nll_ode_gap", gap, "nats", "estimate", its_error, conditions=known))
    if spec.levels:
        bits = (value - spec.dim * math.log(width)) / (spec.dim * math.log(2))
        of_bits = error and error / (spec.dim * math.log(2))
        found.append(
            Row("bits_per_dim_ode", bits, "bits/dim", "estimate", of_bits, conditions=common)
        )
    return found


def mean(values: Tensor) -> tuple[float, float | None]:
    """Return the mean of values (N,) and its standard error, which one value has none of."""
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(
        values
    ) > 1 else None


def over(
    settings: Settings,
    function: Callable[[Tensor, Tensor | None], Tensor],
    x: Tensor,
    y: Tensor | None,
) -> Tensor:
    """Return function(x, y) (N,) computed batch by batch."""
    size = settings.batch_size
    parts = [
        function(x[i : i + size], None if y is None else y[i : i + size])
        for i in range(0, len(x), size)
    ]
    return torch.cat(parts)
