"""The feature space of published FID, KID and Inception scores: torch-fidelity's network with its own weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics.cache import digest, folder

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

BATCH = 50  # images of 299 × 299 at once: 0.6 GB
LAYERS = [
    "2048",
    "logits_unbiased",
]  # torch-fidelity's own of FID and KID, and of the Inception score


class Inception:
    """The pooled features and class logits of the Inception network of 2015, the same numbers as torch-fidelity's.

    Raises:
        UserError: torch-fidelity is missing; its weights can be neither found nor downloaded; or the images have
            neither one channel nor three.
    """

    name = "inception"

    def __init__(self, dataset: Any, device: torch.device) -> None:
        if dataset.spec.shape[0] not in (1, 3):
            has = f"those of {dataset.name} have {dataset.spec.shape[0]} channels"
            raise UserError(f"features=inception needs grey or RGB images; {has}")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        except ImportError as error:
            needs = f"features=inception needs torch-fidelity ({error})"
            raise UserError(f"{needs}: pip install 'genlab[inception]'") from None
        self.network = load(weights(URL_INCEPTION_V3)).to(device)
        self.device = device
        self.key = digest(*self.network.state_dict().values())
        self.conditions = {"features": f"inception {self.key[:6]}"}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 2048) and logits without their bias (B, 1008) of images uint8 (B, 1 or 3, H, W)."""
        parts = [
            self.network(part.to(self.device).expand(-1, 3, -1, -1)) for part in x.split(BATCH)
        ]
        features, logits = (torch.cat(layer).cpu() for layer in zip(*parts, strict=True))
        return features, logits


def weights(url: str) -> Path:
    """Return the file of a URL in the cache's folder, or in torch's own; downloaded if it is in neither.

    Raises:
        UserError: it can't be downloaded; says where to put it.
    """
    name = url.rsplit("/", 1)[-1]
    path = folder() / "inception" / name
    for known in (path, Path(torch.hub.get_dir()) / "checkpoints" / name):
        if known.exists():
            return known
    print(f"downloading {name} (91 MB) to {path.parent}, once", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:  # no network; or not the file whose hash the name says
        why = " ".join(str(error).split())
        there = f"fetch {url} where there is a network and put it at {path}"
        raise UserError(f"features=inception: the download failed ({why}); {there}") from None
    return path


def load(path: Path) -> FeatureExtractorInceptionV3:
    """Return torch-fidelity's network with the weights of a file.

    Raises:
        UserError: the file does not hold these weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        torch.load(
            path, map_location="cpu", weights_only=True
        )  # torch-fidelity itself would run what a file holds
        return FeatureExtractorInceptionV3(
            "inception", LAYERS, feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # whatever a file cut short makes the readers raise
        said = f"{path} does not hold torch-fidelity's Inception weights ({type(error).__name__})"
        raise UserError(
            f"features=inception: {said}; delete it, and it is downloaded anew"
        ) from None
