"""Likelihood of held-out data: exact, bounded or estimated, in nats and bits/dim."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import Estimate, HasODENoise
from genlab.batching import map_batched
from genlab.metrics.base import Row, mean_and_error
from genlab.metrics.context import MetricContext
from genlab.spec import DataSpec

# Rows in nats of the items themselves; the smallest is converted to bits per dimension.
NATS_ROWS = ("nll", "nll_elbo", "nll_iwae")


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    abilities, names = context.abilities, []
    if has_log_prob_or_log_partition(abilities):
        names.append("nll")
        if has_known_entropy(context):
            names.append("kl_to_truth")
    if uses_logit_transform(context):
        names.append("nll_logit")
    if "elbo" in abilities:
        names.append("nll_elbo")
    if "iwae" in abilities:
        names.append("nll_iwae")
    if is_sequence_model(context):
        names += ["nats_per_token", "bits_per_token"]
    elif names and context.spec.levels:
        names.append("bits_per_dim")
    return names


def has_log_prob_or_log_partition(abilities: set[str]) -> bool:
    """Whether the model has a log-density, or an energy with log Z."""
    return "log_prob" in abilities or {"energy", "log_partition"} <= abilities


def has_known_entropy(context: MetricContext) -> bool:
    """Whether the entropy of p(x), the smallest possible −log p, is known."""
    return (
        context.dataset.entropy is not None
        and not context.model.conditional
        and not context.spec.dequantized
    )


def uses_logit_transform(context: MetricContext) -> bool:
    """Whether the model uses the logit of its data, in whose space papers often report."""
    return "log_prob" in context.abilities and context.model.logit_transform


def is_sequence_model(context: MetricContext) -> bool:
    """Whether the data are tokens that the model predicts one after another."""
    return context.spec.kind == "tokens" and {"log_prob", "extend"} <= context.abilities


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return −log p of n held-out items in every way that the model has, and bits/dim.

    nll: exact from `log_prob`; or F(x) + log Z with log Z enumerated (exact) or by annealed
    importance sampling (estimate; its error is included). A bound that needs an estimated log Z is
    an estimate too. The error is that of log Z only if the items are the whole distribution.
    kl_to_truth: nll minus the entropy of the data, KL(data ‖ model), where that is known.
    nll_logit: nll of the logit of the pixels. nll_elbo: the evidence lower bound. nll_iwae: the
    bound of Burda et al. 2016 (https://arxiv.org/abs/1509.00519) with K importance samples.
    bits_per_dim: of the probability mass of each level's bin, from the smallest of the above.
    nats_per_token, bits_per_token: −log p(x_2 … x_T | x_1)/(T − 1). The windows of a held-out text
    overlap by one token, so that each token except the first is predicted once, from the tokens
    before it in its window.
    """
    return LikelihoodMeasurement(context).measure_rows()


class LikelihoodMeasurement:
    """The items and the rows of one call of `measure`."""

    def __init__(self, context: MetricContext) -> None:
        self.context, self.model = context, context.model
        self.settings, self.dataset = context.settings, context.dataset
        s = self.settings
        batch = self.dataset.head(s.split, s.n, seed=s.seed, device=context.device)
        dtype = next(self.model.parameters()).dtype
        # tokens stay integers
        self.x = batch.x.to(dtype) if batch.x.is_floating_point() else batch.x
        self.y = batch.y if self.model.conditional else None
        self.conditions: dict[str, Any] = {"n": len(self.x), "split": s.split, "seed": s.seed}
        if self.dataset.spec.dequantized:
            self.conditions["data"] = "dequantized, one draw"
        self.found: list[Row] = []

    def map_items_in_batches(self, function: Any) -> Tensor:
        """Return function(x, y) (N,) of the items, batch by batch."""
        return map_batched(function, self.x, self.y, batch_size=self.settings.batch_size)

    def add_nll_row(
        self,
        name: str,
        log_p: Tensor,
        tag: str,
        common_error: float = 0.0,
        note: str = "",
        **conditions: Any,
    ) -> None:
        """Add the row of log-probabilities (N,).

        Args:
            common_error: standard error of a term that all items share.
            note: a warning for the user, of which only the first row has a copy.
        """
        value, error = self.context.mean_and_error(-log_p)
        error = None if error is None else math.hypot(error, common_error)
        if name in NATS_ROWS and not self.dataset.spec.is_discrete:
            conditions = value_range_condition(self.dataset.spec) | conditions
        if any(row.note == note for row in self.found):
            note = ""
        conditions = {**self.conditions, **conditions}
        self.found.append(Row(name, value, "nats", tag, error, conditions=conditions, note=note))

    def measure_rows(self) -> list[Row]:
        """Return all rows that the model allows."""
        context, model, s = self.context, self.model, self.settings
        abilities = context.abilities
        torch.manual_seed(s.seed)
        log_z = Estimate(0.0, None, "exact")
        log_z_conditions: dict[str, Any] = {}
        if "log_partition" in abilities:
            log_z = model.log_partition()
            log_z_conditions["log Z"] = round(log_z.value, 3)
        if log_z.error:  # added to each row's error: log Z is the same in every item's number
            log_z_conditions["log Z error"] = round(log_z.error, 4)
        log_z_error = log_z.error or 0.0
        if log_z.effective_chains is not None:
            log_z_conditions["log Z chains"] = f"{log_z.effective_chains:.3g} effective"
        bound = log_z.tag if log_z.tag != "exact" else "bound"  # a bound with an estimate is one
        note = log_z.note
        if "log_prob" in abilities:
            log_p = self.map_items_in_batches(model.log_prob)
            self.add_nll_row("nll", log_p, "exact")
        elif has_log_prob_or_log_partition(abilities):
            log_p = -self.map_items_in_batches(lambda x, y: model.energy(x)).double() - log_z.value
            self.add_nll_row("nll", log_p, log_z.tag, log_z_error, note, **log_z_conditions)
        if self.found and has_known_entropy(context):
            gap = log_p - true_log_prob(self.dataset, self.x)
            entropy = round(self.dataset.entropy, 4)
            self.add_nll_row("kl_to_truth", gap, self.found[0].tag, log_z_error, entropy=entropy)
        if uses_logit_transform(context):
            self.add_nll_row("nll_logit", self.map_items_in_batches(model.logit_log_prob), "exact")
        if "elbo" in abilities:
            conditions = log_z_conditions
            if model.elbo_over_timesteps:
                conditions = {"elbo_timesteps": s.elbo_timesteps, **conditions}
            log_p = self.map_items_in_batches(
                lambda x, y: model.elbo(x, y, num_terms=s.elbo_timesteps)
            )
            self.add_nll_row("nll_elbo", log_p, bound, log_z_error, note, **conditions)
        if "iwae" in abilities:
            conditions = {"iwae_samples": s.iwae_samples, **log_z_conditions}
            log_p = self.map_items_in_batches(lambda x, y: model.iwae(x, s.iwae_samples, y))
            self.add_nll_row("nll_iwae", log_p, bound, log_z_error, note, **conditions)
        if is_sequence_model(context):
            self.found += self.per_token_rows()
        if (row := self.bits_per_dim_row()) is not None:
            self.found.append(row)
        return self.found

    def per_token_rows(self) -> list[Row]:
        """Return nats and bits per token, given the first token of each window."""
        model = self.model
        log_p = self.map_items_in_batches(
            lambda x, y: model.log_prob(x, y) - model.log_prob(x[:, :1], y)
        )
        nats, error = self.context.mean_and_error(-log_p / (self.x.shape[1] - 1))
        conditions = {**self.conditions, "given": "each window's first token"}
        return [
            Row(
                f"{unit}_per_token",
                nats / size,
                f"{unit}/token",
                error=error and error / size,
                conditions=conditions,
            )
            for unit, size in (("nats", 1.0), ("bits", math.log(2)))
        ]

    def bits_per_dim_row(self) -> Row | None:
        """Return bits per dimension of the smallest nll, or None for data without levels."""
        spec = self.dataset.spec
        best = min((row for row in self.found if row.name in NATS_ROWS), key=lambda row: row.value)
        bits = spec.bits_per_dim(-best.value)
        if bits is None:
            return None
        return Row(
            "bits_per_dim",
            bits,
            "bits/dim",
            best.tag,
            best.error and best.error / (spec.dim * math.log(2)),
            conditions={**self.conditions, "from": best.name},
        )


def value_range_condition(spec: DataSpec) -> dict[str, str]:
    """Return the range of the values that a density in nats is of; {} for points.

    The same density of values in another range has other nats.
    """
    if spec.kind not in ("image", "video"):
        return {}
    return {"range": "[{:g}, {:g}]".format(*spec.range)}


def true_log_prob(dataset: Any, x: Tensor) -> Tensor | float:
    """Return the true log-density (N,) of x, or minus the entropy if only that is known.

    With the density the noise of the choice of items cancels in the difference to a model's.
    """
    log_prob = dataset.log_prob(x.double())
    return -dataset.entropy if log_prob is None else log_prob


# --- by the probability flow ODE ------------------------------------------------------------------


def ode_likelihood_row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure_ode_likelihood` gives."""
    if "ode_log_prob" not in context.abilities:
        return []
    names = ["nll_ode"]
    if has_known_entropy(context):
        names.append("kl_to_truth_ode")
    if context.spec.levels:
        names.append("bits_per_dim_ode")
    return names


def measure_ode_likelihood(context: MetricContext) -> list[Row]:
    """Return an estimate of −log p of n held-out items, by following an ODE to noise.

    Song et al. 2021, 2011.13456, section 4.3. Levels are spread evenly over their bins, with one
    draw per item; the mean is then above the −log P of the levels. The density is that of the
    model's distribution with the noise of the ODE's first level, which the conditions contain in
    units of gray levels: if that noise is not small compared with a bin, the number is not
    informative about finer detail. The error covers the spread of the items and of the estimate,
    but not the error of the ODE's steps.
    """
    model, dataset, s = context.model, context.dataset, context.settings
    spec = dataset.spec
    batch = dataset.head(s.split, s.n, seed=s.seed, device=context.device)
    x = batch.x.to(next(model.parameters()).dtype)
    torch.manual_seed(s.seed)
    width = level_bin_width(context)
    if spec.is_discrete:  # a level is the middle of its bin
        x = x + width * (torch.rand_like(x) - 0.5)
    y = batch.y if model.conditional else None
    log_p = map_batched(model.ode_log_prob, x, y, batch_size=s.batch_size)
    conditions: dict[str, Any] = {"n": len(x), "split": s.split, "seed": s.seed}
    if isinstance(model, HasODENoise):
        noise = model.ode_noise_std()
        conditions["start noise"] = f"{noise / width:.2g} gray levels" if width else f"{noise:.2g}"
    value, error = mean_and_error(-log_p)  # the estimate of a whole distribution has an error too
    of_range = value_range_condition(spec) | conditions
    rows = [Row("nll_ode", value, "nats", "estimate", error, conditions=of_range)]
    if has_known_entropy(context):
        gap, gap_error = mean_and_error(true_log_prob(dataset, batch.x) - log_p)
        known = conditions | {"entropy": round(dataset.entropy, 4)}
        row = Row("kl_to_truth_ode", gap, "nats", "estimate", gap_error, conditions=known)
        rows.append(row)
    if spec.levels:
        nats_per_bit = spec.dim * math.log(2)
        bits = (value - spec.dim * math.log(width)) / nats_per_bit
        bits_error = error and error / nats_per_bit
        row = Row(
            "bits_per_dim_ode", bits, "bits/dim", "estimate", bits_error, conditions=conditions
        )
        rows.append(row)
    return rows


def level_bin_width(context: MetricContext) -> float:
    """Return the width of a level's bin in the data's range; 0 for data without levels."""
    spec = context.spec
    span = spec.range[1] - spec.range[0]
    if spec.is_discrete:
        return span / (spec.levels - 1)
    return span / spec.levels if spec.levels else 0.0
