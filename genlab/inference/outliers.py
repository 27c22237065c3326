"""Outliers of a table without classes: row scores, a threshold, column contributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genlab.console import track
from genlab.data.dataset import SPLITS
from genlab.inference.likelihood_scores import Score, score_items
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch

NUM_CANDIDATES = 200  # values of a column that take the place of a row's own


@dataclass(frozen=True)
class RankedRows:
    """The rows of a table, the strangest first.

    Attributes:
        x: (N, D).
        scores: (N,).
        splits: the split of each row.
        rows: where each row is in the table's file; its number in its split for other data.
        threshold: rows with a lower score are outliers.
        contributions: (K, D) of the first K rows, in the unit of the score.
    """

    x: Tensor
    scores: Tensor
    splits: list[str]
    rows: list[int]
    threshold: float
    contributions: Tensor

    @property
    def num_outliers(self) -> int:
        """The number of rows below the threshold."""
        return int((self.scores < self.threshold).sum())


def rank_rows_by_score(
    run: LoadedRun, score: Score, *, outlier_fraction: float, shown: int, batch_size: int, seed: int
) -> RankedRows:
    """Return the rows of a run's table by score, with the contributions of the first ones.

    Args:
        outlier_fraction: of the training rows that are below the threshold.
        shown: rows with contributions.
    """
    dataset = run.dataset
    parts, splits, rows = [], list[str](), list[int]()
    for split in SPLITS:
        if not (size := dataset.size(split)):
            continue
        index = dataset.head_indices(split, seed=seed)
        parts.append(dataset.head(split, seed=seed).x)
        splits += [split] * size
        rows += dataset.file_row_numbers(split, index) or index.tolist()
    x = torch.cat(parts)
    torch.manual_seed(seed)
    scores = score_items(run, score, Batch(x), batch_size=batch_size)
    of_training = torch.tensor([split == "train" for split in splits])
    threshold = torch.quantile(scores[of_training], outlier_fraction).item()
    order = scores.argsort()
    first = order[:shown]
    contributions = column_contributions(
        run, score, x[first], candidate_values(x[of_training]), batch_size=batch_size, seed=seed
    )
    return RankedRows(
        x[order],
        scores[order],
        [splits[i] for i in order],
        [rows[i] for i in order],
        threshold,
        contributions,
    )


def candidate_values(x: Tensor) -> Tensor:
    """Return values (NUM_CANDIDATES, D) of each column: its quantiles over rows x (N, D)."""
    levels = np.linspace(0, 1, NUM_CANDIDATES)
    return torch.from_numpy(np.nanquantile(x.double().numpy(), levels, axis=0)).to(x)


@torch.no_grad()
def column_contributions(
    run: LoadedRun, score: Score, x: Tensor, candidates: Tensor, *, batch_size: int, seed: int
) -> Tensor:
    """Return how much each column lowers the score of rows x (N, D), as (N, D) ≥ 0.

    It is max_v score(x with x_j = v) − score(x): what the score would gain if the column had its
    best value given the others. For a Gaussian density it is half of the squared distance from the
    conditional mean in units of the conditional standard deviation. A missing cell adds nothing.

    Args:
        candidates: values v (K, D) of each column.
        seed: every score of a row uses the same random numbers, if any.
    """
    gains = []
    for row in track(x, "contributions of columns", unit="rows"):
        changed = row.repeat(x.shape[1], len(candidates), 1)  # (D, K, D)
        for j in range(x.shape[1]):
            changed[j, :, j] = candidates[:, j]
        everything = torch.cat([row[None], changed.flatten(0, 1)])
        run.device.seed(seed)
        scores = score_items(run, score, Batch(everything), batch_size=batch_size)
        best = scores[1:].view(x.shape[1], -1).amax(1)
        gain = (best - scores[0]).clamp(min=0)
        gains.append(torch.where(row.isnan(), 0.0, gain))
    return torch.stack(gains)
