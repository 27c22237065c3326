"""Features whose distance a model may descend: what SRGAN's content loss is measured in (Ledig et al. 2017, section 2.2.1).

https://arxiv.org/abs/1609.04802
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.metrics.cache import folder
from genlab.metrics.features.classifier import Classifier

VGG19 = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # 548 MB
MEAN, SPREAD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of the images that VGG19 was trained on
SMALLEST = 16  # pixels a side that VGG19's fifth block needs


class Content:
    """Images (B, C, H, W) in [0, 1] to feature maps (B, F, h, w), of a network loaded when first asked.

    `network` is VGG19's φ5,4 over 12.75, as the paper has it, or the second convolution of genlab's own classifier of
    `data`; "auto" takes VGG19 where its weights are on disk and the images are of 16 pixels at least. Which it is, is said.

    Raises:
        UserError: VGG19's weights cannot be had, or there is no labelled `data` to train a classifier on.
    """

    def __init__(
        self, *, network: Literal["auto", "vgg19", "classifier"] = "auto", data: Any = None
    ) -> None:
        self.network, self.data = network, data
        self.maps: nn.Module | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.maps is None:
            self.maps, said = self.chosen(min(x.shape[-2:]), x.device)
            print(f"content loss: {said}", file=sys.stderr)
        return self.maps(x)

    def __deepcopy__(self, memo: dict) -> Content:
        return self  # nothing in it changes

    def chosen(self, side: int, device: torch.device) -> tuple[nn.Module, str]:
        """Return the network, and what it is in words."""
        found = weights()
        if self.network == "vgg19" or (self.network == "auto" and found and side >= SMALLEST):
            return VGG(found or download()).to(device), "features φ5,4 of VGG19"
        if self.data is None or self.data.spec.classes < 2:
            raise UserError("the content loss needs VGG19's weights or labelled images to train a classifier on; set "
                            "model.content.network=vgg19 (a download of 548 MB), or model.content=null for pixels")  # fmt: skip
        classifier = Classifier.of(self.data, device)
        why = (
            ""
            if self.network == "classifier"
            else "; for VGG19's set model.content.network=vgg19, a download of 548 MB"
        )
        return Shallow(
            classifier
        ), f"features of genlab's own {classifier.conditions['features']}{why}"


class VGG(nn.Module):
    """VGG19 up to the activation of the fourth convolution before its fifth pooling, over 12.75."""

    def __init__(self, path: Path) -> None:
        from torchvision.models import vgg19

        super().__init__()
        with torch.device("meta"):  # draws no weights, and so leaves the random state
            features = vgg19().features[:36]
        state = torch.load(path, map_location="cpu", weights_only=True)
        own = {
            k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")
        }
        features.load_state_dict({k: own[k] for k in features.state_dict()}, assign=True)
        for layer in features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.features = features.eval().requires_grad_(False)
        for name, values in (("mean", MEAN), ("spread", SPREAD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features((coloured(x, 3) - self.mean) / self.spread) / 12.75


class Shallow(nn.Module):
    """A classifier up to the activation of its second convolution."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.features = classifier.network.body[:6].requires_grad_(False)
        self.channels = self.features[0].in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.features(coloured(x, self.channels))


def coloured(x: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) with as many channels: grey ones repeated, colours averaged to grey."""
    if x.shape[1] == channels:
        return x
    return x.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def weights() -> Path | None:
    """Return the file of VGG19's weights in the cache's folder, or in torch's own, if there is one."""
    name = VGG19.rsplit("/", 1)[-1]
    known = (folder() / "vgg19" / name, Path(torch.hub.get_dir()) / "checkpoints" / name)
    return next((path for path in known if path.exists()), None)


def download() -> Path:
    """Return the file of VGG19's weights after downloading it.

    Raises:
        UserError: the download failed.
    """
    path = folder() / "vgg19" / VGG19.rsplit("/", 1)[-1]
    print(f"downloading {path.name} (548 MB) to {path.parent}, once", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(VGG19, str(path), "dcbb9e9d", progress=False)
    except (OSError, RuntimeError) as error:  # no network; or not the file whose hash the name says
        raise UserError(f"model.content.network=vgg19: the download failed ({error}); fetch {VGG19} where there is a "
                        f"network and put it at {path}, or set model.content.network=classifier") from None  # fmt: skip
    return path
