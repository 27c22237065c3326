"""Feature spaces, by name: distances between image sets are measured in one of them.

The space is part of a number's name and conditions. An extractor is built from a dataset and a
device. Called on images uint8 (B, C, H, W), or points float32 (B, D), it returns features (B, D)
float32 and, if it is a classifier, the class logits (B, K).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from genlab.errors import UserError, did_you_mean
from genlab.metrics.features.classifier import Classifier
from genlab.metrics.features.inception import Inception

# The names of metrics in Inception's space, and only there.
INCEPTION_NAMES = {"frechet": "fid", "kid": "kid", "inception_score": "inception_score"}


class Extractor(Protocol):
    """Maps images to features.

    Attributes:
        key: identifies its exact weights.
        conditions: are shown with every number in this space.
    """

    name: str
    key: str
    conditions: dict[str, Any]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]: ...


class Pixels:
    """The values themselves: pixels over 255 of images, coordinates of points."""

    key = "pixels"

    def __init__(self, dataset: Any, device: torch.device) -> None:
        self.name = "pixels" if dataset.spec.kind == "image" else "coordinates"
        self.conditions: dict[str, Any] = {"features": self.name}

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        features = x.flatten(1).float()
        return features / 255 if x.dtype == torch.uint8 else features, None


EXTRACTORS: dict[str, Callable[[Any, torch.device], Extractor]] = {
    "classifier": Classifier.load_or_train_for_dataset,
    "pixels": Pixels,
    "coordinates": Pixels,
    "inception": Inception,
}


def default_feature_space(dataset: Any) -> str:
    """Return the default space of a dataset: a classifier's if it has labels, else values."""
    if dataset.spec.kind != "image":
        return "coordinates"
    # the classifier of a stacked dataset is for one channel, and each states its held-out accuracy
    has_heldout = dataset.size("test") or dataset.size("validation")
    is_classified = dataset.spec.num_classes > 1 and not dataset.stacked and has_heldout
    return "classifier" if is_classified else "pixels"


def validate_feature_space(name: str, dataset: Any) -> str:
    """Return the name of a feature space after checking that it suits a dataset.

    Raises:
        UserError: the space does not exist, or does not suit the data.
    """
    if name not in EXTRACTORS:
        raise UserError(
            f"features={name}: no such space{did_you_mean(name, EXTRACTORS)}; "
            f"spaces: {', '.join(EXTRACTORS)}"
        )
    if (dataset.spec.kind == "image") == (name == "coordinates"):
        raise UserError(
            f"features={name} does not suit {dataset.name}, whose items are {dataset.spec.kind}s"
        )
    if name == "classifier" and dataset.stacked:
        raise UserError(
            f"features=classifier is for one channel, but {dataset.name} has several; "
            "try features=pixels or inception"
        )
    if name == "classifier" and dataset.spec.num_classes < 2:
        raise UserError(
            f"features=classifier requires labels, but {dataset.name} has none; "
            "try features=pixels or inception"
        )
    return name


def row_name_in_space(metric: str, space: str) -> str:
    """Return the name of a metric's row in a feature space."""
    if space == "inception":
        return INCEPTION_NAMES.get(metric, f"{metric}_inception")
    return f"{metric}_{space}"
