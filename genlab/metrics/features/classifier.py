"""A small classifier of a dataset's classes, whose last hidden layer is a feature space.

It is trained once per dataset and needs no download.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.console import track
from genlab.metrics.base import NotMeasurableError
from genlab.metrics.cache import content_hash, load_cached_or_compute

NUM_FEATURES = 64  # few enough that 1,000 samples determine a covariance
MAX_TRAIN_ITEMS = 60_000
MAX_IMAGES_SEEN = 200_000  # in training, which bounds its time
MAX_EPOCHS = 60  # for a small dataset
BATCH_SIZE = 128
EVAL_BATCH_SIZE = 500
SCALE_ITEMS = 5_000  # training images that the scale of the features is computed from
CACHE_VERSION = "2"


class ClassifierNetwork(nn.Module):
    """Three convolutions and a hidden layer.

    Images (B, C, H, W) in [0, 1] give features (B, 64) and logits (B, K).
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        stride = 2 if min(shape[1:]) > 12 else 1  # smaller images cannot be reduced
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 32, 5, stride=stride, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=stride, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(1024, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def train_classifier(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    images: int = MAX_IMAGES_SEEN,
    device: torch.device | str = "cpu",
) -> ClassifierNetwork:
    """Return a network trained on images x uint8 (N, C, H, W) with labels y (N,), fixed seed.

    AdamW with a one-cycle learning rate. The global random state is not changed.

    Args:
        images: the largest number of images to train on, repeated ones included.
    """
    with (
        torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []),
        torch.enable_grad(),
    ):
        torch.manual_seed(0)
        network = ClassifierNetwork(x.shape[1:], num_classes)
        network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # a stub without memory_format
        steps = max(1, min(images, MAX_EPOCHS * len(x)) // BATCH_SIZE)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=4e-3, total_steps=steps + 1
        )
        generator = torch.Generator().manual_seed(0)
        for _ in track(range(steps), "training the classifier", unit="steps"):
            index = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
            logits = network(to_unit_range(x[index], device))[1]
            optimizer.zero_grad()
            F.cross_entropy(logits, y[index].to(device)).backward()
            optimizer.step()
            scheduler.step()
    return network.eval()


def to_unit_range(x: Tensor, device: torch.device | str) -> Tensor:
    """Return bytes (B, C, H, W) as floats in [0, 1] on the device."""
    return x.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def classifier_accuracy(
    network: ClassifierNetwork, x: Tensor, y: Tensor, *, device: torch.device | str = "cpu"
) -> float:
    """Return the accuracy of the network on images x uint8 (N, C, H, W) with labels y (N,)."""
    correct = [
        network(to_unit_range(images, device))[1].argmax(1).cpu() == labels
        for images, labels in zip(x.split(EVAL_BATCH_SIZE), y.split(EVAL_BATCH_SIZE), strict=True)
    ]
    return torch.cat(correct).double().mean().item()


@torch.no_grad()
def feature_rms(network: ClassifierNetwork, x: Tensor) -> float:
    """Return the root mean square of the features of images x uint8 (N, C, H, W)."""
    squares = [
        network(to_unit_range(part, "cpu"))[0].double().square().mean(1)
        for part in x.split(EVAL_BATCH_SIZE)
    ]
    return torch.cat(squares).mean().sqrt().item()


class Classifier:
    """The feature space of a trained network, scaled to a root mean square of 1.

    The scale makes distances comparable whatever the network learned. It is measured on training
    images. The accuracy on the test split is shown with every number.
    """

    name = "classifier"

    def __init__(
        self,
        network: ClassifierNetwork,
        scale: float,
        accuracy: float,
        where: str,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).eval()
        self.scale = scale
        self.device = device
        self.accuracy = accuracy
        self.key = content_hash(*network.state_dict().values(), str(scale))
        self.conditions: dict[str, Any] = {
            "features": f"classifier {self.key[:6]}, {accuracy:.1%} on {where}"
        }

    @classmethod
    def load_or_train_for_dataset(cls, dataset: Any, device: torch.device) -> Classifier:
        """Return the classifier of a dataset, trained now unless the cache has it.

        For stacked data it is a classifier of one channel. It is trained on all images that are not
        for testing, in an order by content, so that the fraction that a run holds out for
        validation does not change the feature space.
        """
        dataset = dataset.classifier_dataset
        if not (dataset.size("test") or dataset.size("validation")):
            raise NotMeasurableError(
                f"the classifier's accuracy is measured on held-out items, but {dataset.name} has "
                "none"
            )
        parts = [
            dataset.head_as_uint8_images(split, MAX_TRAIN_ITEMS)
            for split in ("train", "validation")
            if dataset.size(split)
        ]
        x, y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])
        hashes = [
            content_hash(image, str(int(label)))
            for image, label in track(zip(x, y, strict=True), "hashing images", len(x))
        ]
        order = torch.tensor(sorted(range(len(x)), key=hashes.__getitem__))[:MAX_TRAIN_ITEMS]
        split = "test" if dataset.size("test") else "validation"
        test = dataset.head_as_uint8_images(split)

        def train() -> dict[str, Any]:
            start = time.monotonic()
            print(
                f"training the classifier of {dataset.name} {tuple(x.shape[1:])}, once",
                file=sys.stderr,
            )
            network = train_classifier(x[order], y[order], dataset.spec.num_classes, device=device)
            test_accuracy = classifier_accuracy(network, test.x, test.y, device=device)
            seconds = time.monotonic() - start
            print(f"{test_accuracy:.2%} of {split}, {seconds:.0f} s", file=sys.stderr)
            return {
                "network": network.cpu().state_dict(),
                "accuracy": test_accuracy,
                "scale": feature_rms(network.cpu(), x[order][:SCALE_ITEMS]),
            }

        key = content_hash(CACHE_VERSION, *sorted(hashes), str(MAX_IMAGES_SEEN))
        state = load_cached_or_compute("classifier", key, train)
        with torch.device("meta"):  # does not draw weights, which would change the random state
            network = ClassifierNetwork(x.shape[1:], dataset.spec.num_classes)
        network.load_state_dict(state["network"], assign=True)
        where = f"{dataset.name} {split}"
        return cls(network, state["scale"], state["accuracy"], where, device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 64) and logits (B, K) of images uint8 (B, C, H, W)."""
        features, logits = self.network(to_unit_range(x, self.device))
        return (features / self.scale).float().cpu(), logits.float().cpu()
