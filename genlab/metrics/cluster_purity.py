"""Whether the categories that a model found by itself are the classes that people have for the data."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.classifier_metrics import binomial, fits, stacked
from genlab.metrics.context import Subject, to_bytes
from genlab.metrics.disentanglement import codes


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    found = callable(getattr(subject.model, "category", None)) and subject.spec.classes > 1
    return (
        ["code_purity", *(["sample_purity"] if fits(subject) and not stacked(subject) else [])]
        if found
        else []
    )


def purity(categories: Tensor, classes: Tensor) -> float:
    """Return the share of items whose class (N,) is the most frequent one of their category (N,).

    Manning et al. 2008, Introduction to Information Retrieval, section 16.3. By chance it is the largest class's share
    at least, and it grows with the number of categories: 1 where each item has its own.
    """
    table = torch.zeros(int(categories.max()) + 1, int(classes.max()) + 1, dtype=torch.int64)
    table.index_put_((categories, classes), torch.ones_like(classes), accumulate=True)
    return table.amax(1).sum().item() / len(classes)


@torch.no_grad()
def drawn(subject: Subject) -> tuple[Tensor, Tensor]:
    """Return the categories (n,) that n samples were drawn of, and the classes (n,) that the classifier gives them."""
    s, model, extractor = subject.settings, subject.model, subject.extractor("classifier")
    torch.manual_seed(s.seed)
    categories, classes = [], []
    for i in range(0, s.n, s.batch_size):
        z = model.prior(min(s.batch_size, s.n - i))
        x = to_bytes(model.decode(z).float().cpu(), subject.spec.range)
        categories.append(model.category(z).cpu())
        classes.append(extractor(x)[1].argmax(1))
    return torch.cat(categories), torch.cat(classes)


def measure(subject: Subject) -> list[Row]:
    """Return the purity of the categories that n held-out items are put into, and of those that n samples were drawn of.

    The class of a sample is what the classifier says. Binomial errors.
    """
    s = subject.settings
    y = subject.dataset.take(s.split, s.n, seed=s.seed).y
    found = subject.model.category(codes(subject, len(y)))
    pairs = {"code_purity": (found, y, {"n": len(y), "split": s.split, "seed": s.seed})}
    if "sample_purity" in rows(subject):
        pairs["sample_purity"] = (
            *drawn(subject),
            subject.extractor("classifier").conditions | {"n": s.n, "seed": s.seed},
        )
    numbers = []
    for name, (categories, classes, said) in pairs.items():
        share, said = purity(categories, classes), said | {"categories": len(categories.unique())}
        numbers.append(
            Row(
                name,
                share,
                "share",
                "estimate",
                binomial(share, len(classes)),
                None,
                "higher",
                said,
            )
        )
    return numbers
