"""The feature space of published FID, KID and Inception scores, by torch-fidelity."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.metrics.cache import content_hash
from genlab.system import user_cache_folder
from genlab.untrusted.files import open_regular_file

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

BATCH_SIZE = 50  # images of 299 × 299 at once: 0.6 GB
# torch-fidelity's layers for FID and KID, and for the Inception score
LAYERS = ["2048", "logits_unbiased"]


class Inception:
    """The pooled features and class logits of the Inception network of 2015.

    They are the same numbers as torch-fidelity's.

    Raises:
        UserError: torch-fidelity is missing; its weights can be neither found nor downloaded; or
            the images have neither one channel nor three.
    """

    name = "inception"

    def __init__(self, dataset: Any, device: torch.device) -> None:
        channels = dataset.spec.shape[0]
        if channels not in (1, 3):
            raise UserError(
                "features=inception requires gray or RGB images; those of "
                f"{dataset.name} have {channels} channels"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        except ImportError as error:
            raise UserError(
                f"features=inception requires torch-fidelity ({error}): "
                "pip install 'genlab[inception]'"
            ) from None
        self.network = load_inception_network(find_or_download_weights(URL_INCEPTION_V3)).to(device)
        self.device = device
        self.key = content_hash(*self.network.state_dict().values())
        self.conditions: dict[str, Any] = {"features": f"inception {self.key[:6]}"}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 2048) and logits without bias (B, 1008) of images uint8.

        The images are (B, 1 or 3, H, W).
        """
        parts = [
            self.network(part.to(self.device).expand(-1, 3, -1, -1)) for part in x.split(BATCH_SIZE)
        ]
        features, logits = (torch.cat(layer).cpu() for layer in zip(*parts, strict=True))
        return features, logits


def find_or_download_weights(url: str) -> Path:
    """Return the file of a URL in the cache folder or torch's, downloaded if it is in neither.

    Raises:
        UserError: it cannot be downloaded; the message says where to put it.
    """
    name = url.rsplit("/", 1)[-1]
    path = user_cache_folder() / "inception" / name
    for candidate in (path, Path(torch.hub.get_dir()) / "checkpoints" / name):
        if candidate.exists():
            return candidate
    print(f"downloading {name} (91 MB) to {path.parent}, once", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:  # no network, or another hash than in the file's name
        reason = " ".join(str(error).split())
        raise UserError(
            f"features=inception: the download failed ({reason}); fetch {url} where there is a "
            f"network and put it at {path}"
        ) from None
    return path


def load_inception_network(path: Path) -> FeatureExtractorInceptionV3:
    """Return torch-fidelity's network with the weights of a file.

    Raises:
        UserError: the file does not have these weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity's own loading would run code from the file
        with open_regular_file(path) as file:
            torch.load(file, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3(
            "inception", LAYERS, feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # a truncated file can make the readers raise anything
        raise UserError(
            f"features=inception: {path} does not have torch-fidelity's Inception weights "
            f"({type(error).__name__}); delete it, and it is downloaded again"
        ) from None
