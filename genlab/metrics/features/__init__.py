"""Named feature spaces: what a distance between two sets of images is measured in, and is part of its number.

An extractor is made of a dataset and a device; called on images uint8 (B, C, H, W) it returns features (B, D) float32 and,
where it tells classes, their logits (B, K). `key` names its exact weights, `conditions` is said with every number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from genlab.errors import UserError, did_you_mean

# The names that these have in Inception's space, and only there.
OWN_NAMES = {"frechet": "fid", "kernel_distance": "kid", "inception_score": "inception_score"}


class Extractor(Protocol):
    """Maps images to features."""

    name: str
    key: str
    conditions: dict[str, Any]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]: ...


class Pixels:
    """The values themselves, as they are: pixels over 255 of images, coordinates of points."""

    key = "pixels"

    def __init__(self, dataset: Any, device: torch.device) -> None:
        self.name = "pixels" if dataset.spec.kind == "image" else "coordinates"
        self.conditions = {"features": self.name}

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        return (
            x.flatten(1).float() / 255 if x.dtype == torch.uint8 else x.flatten(1).float()
        ), None


def spaces() -> dict[str, Callable[[Any, torch.device], Extractor]]:
    """Return what makes each extractor, by name."""
    from genlab.metrics.features.classifier import Classifier
    from genlab.metrics.features.inception import Inception

    return {
        "classifier": Classifier.of,
        "pixels": Pixels,
        "coordinates": Pixels,
        "inception": Inception,
    }


def default(dataset: Any) -> str:
    """Return the space that suits a dataset: its own classifier's where it has labels, else its values."""
    if dataset.spec.kind != "image":
        return "coordinates"
    stacked = getattr(dataset, "stacked", False)  # its classifier sees one channel
    return "classifier" if dataset.spec.classes > 1 and not stacked else "pixels"


def check(name: str, dataset: Any) -> str:
    """Return the name of a feature space that a dataset has.

    Raises:
        UserError: there is no such space, or it does not suit the data.
    """
    known = list(spaces())
    if name not in known:
        raise UserError(
            f"features={name}: no such space{did_you_mean(name, known)}; there are {', '.join(known)}"
        )
    if (dataset.spec.kind == "image") == (name == "coordinates"):
        raise UserError(
            f"features={name} does not suit {dataset.name}, whose items are {dataset.spec.kind}s"
        )
    if name == "classifier" and getattr(dataset, "stacked", False):
        raise UserError(
            f"features=classifier sees one channel, and {dataset.name} has several; try features=pixels or inception"
        )
    if name == "classifier" and dataset.spec.classes < 2:
        raise UserError(
            f"features=classifier needs labels, and {dataset.name} has none; try features=pixels or inception"
        )
    return name


def named(metric: str, space: str) -> str:
    """Return the name of a metric's number in a feature space: another space is another number."""
    return (
        OWN_NAMES.get(metric, f"{metric}_inception")
        if space == "inception"
        else f"{metric}_{space}"
    )
