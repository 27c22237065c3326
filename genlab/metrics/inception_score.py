"""The Inception score: whether a classifier is sure of each sample, and its classes differ from sample to sample."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.metrics.features import named

SPLITS = 10
TELL_CLASSES = ("classifier", "inception")
ORDER = (
    2020  # the seed of the order of the items: torch-fidelity's, so that the splits are the same
)


def spaces(subject: Subject) -> list[str]:
    """Return the spaces asked for that tell classes."""
    return [space for space in subject.spaces if space in TELL_CLASSES]


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = "sample" in subject.abilities and subject.spec.kind == "image"
    return [named("inception_score", space) for space in spaces(subject)] if fits else []


def inception_score(logits: Tensor, *, splits: int = SPLITS) -> tuple[float, float]:
    """Return exp(E KL(p(y|x) ‖ p(y))) of class logits (N, K), the mean over splits, and that mean's standard error.

    Salimans et al. 2016 (https://arxiv.org/abs/1606.03498), section 4; between 1 and K. The items are shuffled, always
    alike, and p(y) is each split's own mean, so that a split of few items scores too low. The paper's ± is
    the deviation over the splits, √splits times this error.

    Raises:
        UserError: there are fewer items than splits.
    """
    if not 2 <= splits <= len(logits):
        needed = f"an Inception score over {splits} splits needs {max(splits, 2)} items or more"
        raise UserError(f"{needed}; there are {len(logits)}")
    order = torch.from_numpy(np.random.RandomState(ORDER).permutation(len(logits)))
    log_p = logits[order].double().log_softmax(1)  # log p(y|x) (N, K)
    scores = []
    for part in log_p.tensor_split(bounds(len(logits), splits)):
        log_marginal = part.logsumexp(0) - np.log(len(part))  # log p(y) (K,)
        # xlogy's convention 0 log 0 = 0: a class that is ruled out has log p = −∞
        kl = (part.exp() * (part - log_marginal)).nan_to_num(0.0).sum(1)  # (n,)
        scores.append(kl.mean().exp())
    score = torch.stack(scores)
    return score.mean().item(), score.std().item() / splits**0.5


def bounds(n: int, splits: int) -> list[int]:
    """Return where splits of n items begin, the first left out."""
    return [i * n // splits for i in range(1, splits)]


def measure(subject: Subject) -> list[Row]:
    """Return the score of n samples with each network that tells classes; `floor` is the score of held-out items.

    A score is better when it is higher and is of one set only: what no model is asked to beat is what real items score,
    in splits of as many items, without which the two would not compare.
    """
    found = []
    for space in spaces(subject):
        drawn, real = subject.logits(space, "drawn"), subject.logits(space, "real")
        splits = min(SPLITS, max(2, len(drawn) // 2))
        value, error = inception_score(drawn, splits=splits)
        floor, _ = inception_score(real, splits=max(2, round(len(real) * splits / len(drawn))))
        conditions = subject.conditions(
            space, n=len(drawn), splits=splits, floor=f"{len(real)} held-out items"
        )
        found.append(
            Row(
                named("inception_score", space),
                value,
                "",
                "estimate",
                error,
                floor,
                "higher",
                conditions,
            )
        )
    return found
