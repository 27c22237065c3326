"""Differentiable perceptual features, for SRGAN's content loss.

Ledig et al. 2017, section 2.2.1: https://arxiv.org/abs/1609.04802
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.metrics.features.classifier import Classifier
from genlab.system import user_cache_folder
from genlab.untrusted.files import open_regular_file

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # 548 MB
# of the images that VGG19 was trained on
CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)
MIN_SIDE = 16  # pixels per side that VGG19's fifth block needs
FEATURE_SCALE = 12.75  # the paper's rescaling of VGG19's features


class PerceptualFeatures:
    """Maps images (B, C, H, W) in [0, 1] to feature maps (B, F, h, w).

    The network is chosen and loaded on first use; the choice is printed.

    Args:
        network: "vgg19": VGG19's φ5,4 over 12.75, as in the paper. "classifier": the second
            convolution of genlab's classifier of `data`. "auto": VGG19 if its weights are on disk
            and the images have at least 16 pixels per side, else the classifier.
        data: the labeled dataset of the classifier.

    Raises:
        UserError: VGG19's weights are not available, or `data` is missing or unlabeled.
    """

    def __init__(
        self, *, network: Literal["auto", "vgg19", "classifier"] = "auto", data: Any = None
    ) -> None:
        self.network, self.data = network, data
        self.features: nn.Module | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.features is None:
            self.features, description = self.load_network_and_description(
                min(x.shape[-2:]), x.device
            )
            print(f"content loss: {description}", file=sys.stderr)
        return self.features(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> PerceptualFeatures:
        return self  # nothing in it changes

    def load_network_and_description(
        self, side: int, device: torch.device
    ) -> tuple[nn.Module, str]:
        """Return the network for images with this side, and its description."""
        weights = find_vgg19_weights()
        if self.network == "vgg19" or (self.network == "auto" and weights and side >= MIN_SIDE):
            features = VGGFeatures(weights or download_vgg19_weights())
            return features.to(device), "features φ5,4 of VGG19"
        if self.data is None or self.data.spec.num_classes < 2:
            raise UserError(
                "the content loss requires VGG19's weights, or labeled images to train a "
                "classifier on; set model.content_features.network=vgg19 (a download of 548 MB), "
                "or model.content_features=null for pixels"
            )
        classifier = Classifier.load_or_train_for_dataset(self.data, device)
        hint = (
            ""
            if self.network == "classifier"
            else "; for VGG19's set model.content_features.network=vgg19, a download of 548 MB"
        )
        description = f"features of genlab's {classifier.conditions['features']}{hint}"
        return ClassifierFeatures(classifier), description


class VGGFeatures(nn.Module):
    """VGG19 up to the activation of φ5,4, over 12.75.

    φ5,4 is the fourth convolution before the fifth pooling.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        from torchvision.models import vgg19

        super().__init__()
        with torch.device("meta"):  # does not draw weights, which would change the random state
            features = vgg19().features[:36]
        with open_regular_file(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        prefix = "features."
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        features.load_state_dict({k: weights[k] for k in features.state_dict()}, assign=True)
        for layer in features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.features = features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(CHANNEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(CHANNEL_STD).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features((match_num_channels(x, 3) - self.mean) / self.std) / FEATURE_SCALE


class ClassifierFeatures(nn.Module):
    """A classifier up to the activation of its second convolution."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        first = classifier.network.body[0]
        assert isinstance(first, nn.Conv2d)
        self.features = classifier.network.body[:6].requires_grad_(False)
        self.channels = first.in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.features(match_num_channels(x, self.channels))


def match_num_channels(x: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) with `channels` channels: gray repeated, or colors averaged."""
    if x.shape[1] == channels:
        return x
    return x.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def find_vgg19_weights() -> Path | None:
    """Return the file of VGG19's weights in the cache folder or torch's, or None."""
    name = VGG19_URL.rsplit("/", 1)[-1]
    candidates = (
        user_cache_folder() / "vgg19" / name,
        Path(torch.hub.get_dir()) / "checkpoints" / name,
    )
    return next((path for path in candidates if path.exists()), None)


def download_vgg19_weights() -> Path:
    """Return the file of VGG19's weights after downloading it.

    Raises:
        UserError: the download failed.
    """
    path = user_cache_folder() / "vgg19" / VGG19_URL.rsplit("/", 1)[-1]
    print(f"downloading {path.name} (548 MB) to {path.parent}, once", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(VGG19_URL, str(path), "dcbb9e9d", progress=False)
    except (OSError, RuntimeError) as error:  # no network, or another hash than in the file's name
        raise UserError(
            f"model.content_features.network=vgg19: the download failed ({error}); fetch "
            f"{VGG19_URL} where there is a network and put it at {path}, or set "
            "model.content_features.network=classifier"
        ) from None
    return path
