"""A small classifier of the data's own classes, trained once, whose last hidden layer is a feature space without a download."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.metrics.cache import cached, digest

FEATURES = 64  # dimensions of the space: few enough that 1,000 samples tell a covariance
MOST = 60_000  # training images, at most
IMAGES = 200_000  # seen in training, at most: the time that it takes is bounded
EPOCHS = 60  # at most, of a small set
BATCH = 128
SIZED = 5_000  # training images that tell the size of a feature


class Network(nn.Module):
    """Three convolutions and a hidden layer: images (B, C, H, W) in [0, 1] to features (B, 64) and logits (B, K)."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        stride = 2 if min(shape[1:]) > 12 else 1  # smaller images have no pixel to spare
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 32, 5, stride=stride, padding=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=stride, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def trained(
    x: Tensor, y: Tensor, classes: int, *, images: int = IMAGES, device: torch.device | str = "cpu"
) -> Network:
    """Return a network trained on images x uint8 (N, C, H, W) with labels y (N,), from a fixed seed.

    AdamW with a rate that rises and falls once; the global random state is left as it was.
    """
    with (
        torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []),
        torch.enable_grad(),
    ):
        torch.manual_seed(0)
        network = (
            Network(x.shape[1:], classes).to(device, memory_format=torch.channels_last).train()
        )
        steps = max(1, min(images, EPOCHS * len(x)) // BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps + 1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            index = torch.randint(len(x), (BATCH,), generator=generator)
            logits = network(unit(x[index], device))[1]
            optimizer.zero_grad()
            F.cross_entropy(logits, y[index].to(device)).backward()
            optimizer.step()
            rate.step()
    return network.eval()


def unit(x: Tensor, device: torch.device | str) -> Tensor:
    """Return bytes (B, C, H, W) as floats in [0, 1] on the device."""
    return x.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(
    network: Network, x: Tensor, y: Tensor, *, device: torch.device | str = "cpu"
) -> float:
    """Return the share of images x uint8 (N, C, H, W) whose label y (N,) the network gives."""
    right = [
        network(unit(a, device))[1].argmax(1).cpu() == b
        for a, b in zip(x.split(500), y.split(500), strict=True)
    ]
    return torch.cat(right).double().mean().item()


@torch.no_grad()
def size(network: Network, x: Tensor) -> float:
    """Return the root mean square of a feature of images x uint8 (N, C, H, W)."""
    squares = [network(unit(part, "cpu"))[0].double().square().mean(1) for part in x.split(500)]
    return torch.cat(squares).mean().sqrt().item()


class Classifier:
    """The feature space of a trained network, in which a feature of the training images is 1 in the root mean square.

    So a distance is of one scale whatever the network learned. Its accuracy on the test split is said with every number.
    """

    name = "classifier"

    def __init__(
        self, network: Network, scale: float, accuracy: float, where: str, device: torch.device
    ) -> None:
        self.network = network.to(device).eval()
        self.scale = scale
        self.device = device
        self.accuracy = accuracy
        self.key = digest(*network.state_dict().values(), str(scale))
        self.conditions = {"features": f"classifier {self.key[:6]}, {accuracy:.1%} on {where}"}

    @classmethod
    def of(cls, dataset: Any, device: torch.device) -> Classifier:
        """Return the classifier of a dataset, trained now if it never was for these images; of stacked data, of one channel.

        All images that are not for testing are taken, in an order of their own, so that the share that a run holds out
        for validation does not change the space that it is measured in.
        """
        dataset = getattr(dataset, "single", dataset)
        parts = [
            dataset.shown(split, MOST) for split in ("train", "validation") if dataset.size(split)
        ]
        x, y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])
        names = [digest(image, str(int(label))) for image, label in zip(x, y, strict=True)]
        order = torch.tensor(sorted(range(len(x)), key=names.__getitem__))[:MOST]
        split = "test" if dataset.size("test") else "validation"
        test = dataset.shown(split)

        def make() -> dict[str, Any]:
            began = time.monotonic()
            print(
                f"training the classifier of {dataset.name} {tuple(x.shape[1:])}, once",
                file=sys.stderr,
            )
            network = trained(x[order], y[order], dataset.spec.classes, device=device)
            right = accuracy(network, test.x, test.y, device=device)
            print(f"{right:.2%} of {split}, {time.monotonic() - began:.0f} s", file=sys.stderr)
            return {
                "network": network.cpu().state_dict(),
                "accuracy": right,
                "scale": size(network.cpu(), x[order][:SIZED]),
            }

        made = cached("classifier", digest("2", *sorted(names), str(IMAGES)), make)
        with torch.device("meta"):  # draws no weights, and so leaves the random state
            network = Network(x.shape[1:], dataset.spec.classes)
        network.load_state_dict(made["network"], assign=True)
        return cls(network, made["scale"], made["accuracy"], f"{dataset.name} {split}", device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 64) and logits (B, K) of images uint8 (B, C, H, W)."""
        features, logits = self.network(unit(x, self.device))
        return (features / self.scale).float().cpu(), logits.float().cpu()
