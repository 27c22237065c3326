"""The Inception score: a classifier is certain of each sample, and the classes vary."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genlab.metrics.base import NotMeasurableError, Row
from genlab.metrics.context import MetricContext
from genlab.metrics.features import row_name_in_space

NUM_SPLITS = 10
CLASSIFIER_SPACES = ("classifier", "inception")
ORDER_SEED = 2020  # torch-fidelity's seed of the order of the items, so that the splits are equal


def spaces_with_class_logits(context: MetricContext) -> list[str]:
    """Return the requested spaces that have class logits."""
    return [space for space in context.feature_spaces if space in CLASSIFIER_SPACES]


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    if "sample" not in context.abilities or context.spec.kind != "image":
        return []
    return [
        row_name_in_space("inception_score", space) for space in spaces_with_class_logits(context)
    ]


def inception_score_and_error(logits: Tensor, *, splits: int = NUM_SPLITS) -> tuple[float, float]:
    """Return exp(E KL(p(y|x) ‖ p(y))) of logits (N, K), averaged over splits, and its error.

    Salimans et al. 2016 (https://arxiv.org/abs/1606.03498), section 4; between 1 and K. The items
    are shuffled with a fixed seed, and p(y) is each split's mean, so that a split with few items
    has too low a score. The error is the standard error of the mean over splits; the paper's ± is
    the deviation over the splits, √splits times this error.

    Raises:
        NotMeasurableError: there are fewer items than splits.
    """
    if not 2 <= splits <= len(logits):
        raise NotMeasurableError(
            f"an Inception score over {splits} splits requires at least {max(splits, 2)} items; "
            f"there are {len(logits)}"
        )
    order = torch.from_numpy(np.random.RandomState(ORDER_SEED).permutation(len(logits)))
    log_p = logits[order].double().log_softmax(1)  # log p(y|x) (N, K)
    scores = []
    for part in log_p.tensor_split(split_starts(len(logits), splits)):
        log_marginal = part.logsumexp(0) - np.log(len(part))  # log p(y) (K,)
        # xlogy's convention 0 log 0 = 0: a class with probability 0 has log p = −∞
        kl = (part.exp() * (part - log_marginal)).nan_to_num(0.0).sum(1)  # (n,)
        scores.append(kl.mean().exp())
    score = torch.stack(scores)
    return score.mean().item(), score.std().item() / splits**0.5


def split_starts(n: int, splits: int) -> list[int]:
    """Return the first indices of splits of n items, without the first split's."""
    return [i * n // splits for i in range(1, splits)]


def measure(context: MetricContext) -> list[Row]:
    """Return the score of n samples with each classifier.

    `real_vs_real` is the score of held-out items. The splits of held-out items have as many items
    as those of the samples, because scores depend on the number of items.
    """
    rows = []
    for space in spaces_with_class_logits(context):
        generated, real = context.logits(space, "generated"), context.logits(space, "real")
        splits = min(NUM_SPLITS, max(2, len(generated) // 2))
        value, error = inception_score_and_error(generated, splits=splits)
        real_splits = max(2, round(len(real) * splits / len(generated)))
        real_score, _ = inception_score_and_error(real, splits=real_splits)
        conditions = context.make_conditions(
            space,
            n=len(generated),
            splits=splits,
            real_vs_real=f"{len(real)} held-out items",
        )
        rows.append(
            Row(
                row_name_in_space("inception_score", space),
                value,
                unit="",
                tag="estimate",
                error=error,
                real_vs_real=real_score,
                better="higher",
                conditions=conditions,
            )
        )
    return rows
