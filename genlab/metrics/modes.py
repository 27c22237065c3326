"""Modes of a known mixture: how many a model found, and how many of its samples lie near one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.metrics import Row, Settings

NEAR = 3.0  # standard deviations within which a sample is of high quality


def rows(model: Any, dataset: Any) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    known = getattr(dataset, "centers", None) is not None
    return ["modes", "high_quality"] if known and "sample" in abilities(model) else []


def count_modes(x: Tensor, centers: Tensor, std: float) -> tuple[int, float]:
    """Return how many of `centers` (M, D) have a sample of x (N, D) within 3 std, and the share of x that is that near.

    The measures of Srivastava et al. 2017 (https://arxiv.org/abs/1705.07761) and Lin et al. 2018 (PacGAN).
    """
    distance, nearest = torch.cdist(x.double(), centers.double()).min(1)
    near = distance <= NEAR * std
    return int(nearest[near].unique().numel()), near.double().mean().item()


@torch.no_grad()
def measure(model: Any, dataset: Any, settings: Settings) -> list[Row]:
    """Return the modes found by n samples, and the share of high quality with its binomial standard error."""
    torch.manual_seed(settings.seed)
    x = model.sample(settings.n).cpu()
    centers = torch.as_tensor(dataset.centers)
    modes, share = count_modes(x, centers, dataset.std)
    conditions = {"n": settings.n, "seed": settings.seed, "within": f"{NEAR:g} sd"}
    error = math.sqrt(share * (1 - share) / settings.n)
    return [
        Row("modes", float(modes), f"of {len(centers)}", "estimate", None, True, conditions),
        Row("high_quality", share, "share", "estimate", error, True, conditions),
    ]
