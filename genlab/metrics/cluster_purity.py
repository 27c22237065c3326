"""Purity of categories that a model learned without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.abilities import AssignsCategories
from genlab.metrics.base import Row, binomial_error
from genlab.metrics.classifier_metrics import has_class_labels
from genlab.metrics.context import MetricContext, to_bytes
from genlab.metrics.disentanglement import encode_heldout


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if not isinstance(context.model, AssignsCategories) or context.spec.num_classes < 2:
        return []
    if has_class_labels(context) and not context.dataset.stacked:
        return ["code_purity", "sample_purity"]
    return ["code_purity"]


def purity(categories: Tensor, classes: Tensor) -> float:
    """Return the fraction of items with the most frequent class (N,) of their category (N,).

    Manning et al. 2008, Introduction to Information Retrieval, section 16.3. By chance it is at
    least the fraction of the largest class, and it grows with the number of categories: it is 1 if
    each item has its own.
    """
    table = torch.zeros(int(categories.max()) + 1, int(classes.max()) + 1, dtype=torch.int64)
    table.index_put_((categories, classes), torch.ones_like(classes), accumulate=True)
    return table.amax(1).sum().item() / len(classes)


@torch.no_grad()
def sample_categories(context: MetricContext) -> tuple[Tensor, Tensor]:
    """Return the categories (n,) of n samples, and the classifier's classes (n,)."""
    s, model, extractor = context.settings, context.model, context.extractor("classifier")
    torch.manual_seed(s.seed)
    categories, classes = [], []
    for i in range(0, s.n, s.batch_size):
        z = model.prior(min(s.batch_size, s.n - i))
        x = to_bytes(model.decode(z).float().cpu(), context.spec.range)
        categories.append(model.category(z).cpu())
        logits = extractor(x)[1]
        assert logits is not None
        classes.append(logits.argmax(1))
    return torch.cat(categories), torch.cat(classes)


def measure(context: MetricContext) -> list[Row]:
    """Return the purity of the categories of n held-out items, and of n samples.

    The class of a sample is the classifier's prediction. The errors are binomial.
    """
    s = context.settings
    y = context.dataset.head(s.split, s.n, seed=s.seed).y
    categories = context.model.category(encode_heldout(context, len(y)))
    conditions = {"n": len(y), "split": s.split, "seed": s.seed}
    rows = [purity_row("code_purity", categories, y, conditions)]
    if "sample_purity" in row_names(context):
        categories, classes = sample_categories(context)
        conditions = context.extractor("classifier").conditions | {"n": s.n, "seed": s.seed}
        rows.append(purity_row("sample_purity", categories, classes, conditions))
    return rows


def purity_row(name: str, categories: Tensor, classes: Tensor, conditions: dict[str, Any]) -> Row:
    """Return the row of the purity of categories (N,) with respect to classes (N,)."""
    value = purity(categories, classes)
    return Row(
        name,
        value,
        "share",
        "estimate",
        error=binomial_error(value, len(classes)),
        better="higher",
        conditions=conditions | {"categories": len(categories.unique())},
    )
