"""Purity, NMI and ARI: categories found without labels, compared with classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import AssignsCategories
from genlab.metrics.base import Row, binomial_standard_error
from genlab.metrics.classifier_metrics import has_labeled_image_samples
from genlab.metrics.context import MetricContext
from genlab.metrics.disentanglement import encode_heldout_items

NUM_BOOTSTRAPS = 200


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if not isinstance(context.model, AssignsCategories) or context.spec.num_classes < 2:
        return []
    if context.conditional and "log_prob" in context.abilities:
        return []  # a mixture per class knows the classes
    names = ["code_purity", "code_nmi", "code_ari"]
    if (
        has_labeled_image_samples(context)
        and not context.dataset.stacked
        and can_sample_from_prior_codes(context)
    ):
        names.append("sample_purity")
    return names


def can_sample_from_prior_codes(context: MetricContext) -> bool:
    """Whether codes, and with them categories, are drawn before samples are made of them."""
    features = context.settings.features
    return {"prior", "decode"} <= context.abilities and (
        features is None or "classifier" in features
    )


def contingency_table(categories: Tensor, classes: Tensor) -> Tensor:
    """Return how many items have each category and class (categories, classes) float64."""
    shape = int(categories.max()) + 1, int(classes.max()) + 1
    table = torch.zeros(shape, dtype=torch.float64)
    ones = torch.ones(len(classes), dtype=torch.float64)
    return table.index_put_((categories, classes), ones, accumulate=True)


def cluster_purity(categories: Tensor, classes: Tensor) -> float:
    """Return the fraction of items with the most frequent class (N,) of their category (N,).

    Manning et al. 2008, Introduction to Information Retrieval, section 16.3. By chance it is at
    least the fraction of the largest class, and it grows with the number of categories: it is 1 if
    each item has its own.
    """
    return (contingency_table(categories, classes).amax(1).sum() / len(classes)).item()


def normalized_mutual_information(table: Tensor) -> float:
    """Return the mutual information of a contingency table over the mean of both entropies.

    Strehl & Ghosh 2002, https://www.jmlr.org/papers/v3/strehl02a.html, with the arithmetic mean. It
    is 1 if categories and classes are the same up to their names, and 1 too if each is a single
    one. It is 0 if they are independent; but few items in many categories give more by chance.
    """
    p = table / table.sum()
    rows, columns = p.sum(1), p.sum(0)
    entropies = torch.special.entr(rows).sum() + torch.special.entr(columns).sum()
    information = entropies - torch.special.entr(p).sum()
    return (2 * information / entropies).clamp(0, 1).item() if entropies > 0 else 1.0


def adjusted_rand_index(table: Tensor) -> float:
    """Return the fraction of pairs on which both groupings agree, corrected for chance.

    Hubert & Arabie 1985, https://doi.org/10.1007/BF01908075: 1 for equal partitions, 0 on average
    for random ones, whatever the number of categories.
    """

    def pairs(counts: Tensor) -> Tensor:
        return (counts * (counts - 1) / 2).sum()

    together, total = pairs(table), pairs(table.sum())
    rows, columns = pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / total if total else total
    largest = (rows + columns) / 2
    if largest == expected:  # each item by itself, or all in one
        return 1.0
    return ((together - expected) / (largest - expected)).item()


def bootstrap_standard_error(
    statistic: Callable[[Tensor], float], categories: Tensor, classes: Tensor, *, seed: int
) -> float:
    """Return the standard error of a statistic of the contingency table, over drawn items."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(NUM_BOOTSTRAPS):
        i = torch.randint(len(classes), (len(classes),), generator=generator)
        values.append(statistic(contingency_table(categories[i], classes[i])))
    return torch.tensor(values, dtype=torch.float64).std().item()


@torch.no_grad()
def categories_and_classes_of_samples(context: MetricContext) -> tuple[Tensor, Tensor]:
    """Return the categories (n,) of n samples, and the classifier's classes (n,)."""
    s, model, extractor = context.settings, context.model, context.extractor("classifier")
    torch.manual_seed(s.seed)
    categories, classes = [], []
    for i in range(0, s.n, s.batch_size):
        z = model.prior(min(s.batch_size, s.n - i))
        x = context.spec.to_bytes(model.decode(z).cpu())
        categories.append(model.category(z).cpu())
        logits = extractor(x)[1]
        assert logits is not None
        classes.append(logits.argmax(1))
    return torch.cat(categories), torch.cat(classes)


def measure(context: MetricContext) -> list[Row]:
    """Return how the categories of n held-out items agree with their classes.

    Purity, normalized mutual information (NMI) and adjusted Rand index (ARI); and the purity of n
    samples, whose class is the classifier's prediction. The errors of purity are binomial, the
    others are bootstraps over the items.
    """
    s = context.settings
    y = context.dataset.head(s.split, s.n, seed=s.seed).y
    categories = context.model.category(encode_heldout_items(context, len(y)))
    conditions = {"n": len(y), "split": s.split, "seed": s.seed}
    rows = [make_purity_row("code_purity", categories, y, conditions)]
    table = contingency_table(categories, y)
    for name, statistic in (
        ("code_nmi", normalized_mutual_information),
        ("code_ari", adjusted_rand_index),
    ):
        error = bootstrap_standard_error(statistic, categories, y, seed=s.seed)
        rows.append(
            Row(
                name,
                statistic(table),
                "agreement",
                "estimate",
                error,
                better="higher",
                conditions=rows[0].conditions,
            )
        )
    if "sample_purity" in row_names(context):
        categories, classes = categories_and_classes_of_samples(context)
        conditions = context.extractor("classifier").conditions | {"n": s.n, "seed": s.seed}
        rows.append(make_purity_row("sample_purity", categories, classes, conditions))
    return rows


def make_purity_row(
    name: str, categories: Tensor, classes: Tensor, conditions: dict[str, Any]
) -> Row:
    """Return the row of the purity of categories (N,) with respect to classes (N,)."""
    value = cluster_purity(categories, classes)
    return Row(
        name,
        value,
        "share",
        "estimate",
        error=binomial_standard_error(value, len(classes)),
        better="higher",
        conditions=conditions | {"categories": len(categories.unique())},
    )
