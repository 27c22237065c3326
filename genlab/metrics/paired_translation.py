"""Agreement of translations with the true targets: PSNR, SSIM, and LPIPS if available."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.metrics.base import Row, mean_and_error
from genlab.metrics.context import MetricContext
from genlab.metrics.psnr_ssim import MAX_BYTE, SSIM_WINDOW, psnr, resize_bicubic, ssim
from genlab.metrics.reconstruction import scaled_squared_error_per_item
from genlab.spec import Batch, DataSpec

UNITS = {"psnr": "dB", "ssim": "similarity", "lpips": "distance", "squared_error": "pixels²"}
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's weights, which LPIPS uses
MAX_BATCH_SIZE = 250  # targets translated together
MAX_BATCH_VALUES = 2**21  # values of targets translated together
MEAN_ITEMS = 500  # training targets whose mean is a baseline
MIN_LPIPS_SIDE = 32  # pixels per side that AlexNet needs


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    spec = context.spec
    is_applicable = (
        "translate" in context.abilities
        and spec.source is not None
        and context.dataset.paired
        and spec.kind in ("image", "video")
    )
    return applicable_similarity_names(spec) if is_applicable else []


def applicable_similarity_names(spec: DataSpec) -> list[str]:
    """Return the names of the measures that apply to images or videos of a DataSpec."""
    names = ["psnr"]
    if min(spec.shape[-2:]) >= SSIM_WINDOW:
        names.append("ssim")
    if reason_without_lpips(spec) is None:
        names.append("lpips")
    if spec.kind == "video":
        names.append("squared_error")
    return names


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return the similarity of n held-out targets with the translations of their sources.

    The conditions contain the same measures of baselines without a model.
    """
    model, spec, s = context.model, context.spec, context.settings
    batch = context.dataset.head(s.split, s.n, seed=s.seed)
    like = next(model.parameters())
    translations = translate_in_batches(model.translate, batch.cond.to(like), spec).cpu()
    mean_target = context.dataset.head("train", MEAN_ITEMS, seed=s.seed).x.mean(0)
    baselines = {
        name: similarities_per_item(x, batch.x, spec)
        for name, x in make_baseline_translations(batch, spec, mean_target).items()
    }
    rows = []
    for name, values in similarities_per_item(translations, batch.x, spec).items():
        conditions = {"n": len(values), "split": s.split, "seed": s.seed}
        conditions |= {
            baseline: f"{measures[name].mean().item():.4g}"
            for baseline, measures in baselines.items()
        }
        value, error = mean_and_error(values)
        rows.append(
            Row(
                name,
                value,
                UNITS[name],
                error=error,
                better="higher" if name in ("psnr", "ssim") else "lower",
                conditions=conditions,
            )
        )
    return rows


def translate_in_batches(
    translate: Callable[[Tensor], Tensor], source: Tensor, spec: DataSpec
) -> Tensor:
    """Return the translations (N, *spec.shape) of sources (N, …), in batches."""
    batch_size = max(1, min(MAX_BATCH_SIZE, MAX_BATCH_VALUES // spec.dim))
    return map_batched(lambda part: translate(part).float(), source, batch_size=batch_size)


def similarities_per_item(x: Tensor, y: Tensor, spec: DataSpec) -> dict[str, Tensor]:
    """Return each measure (N,) of images or videos x against the truth y (N, *spec.shape).

    They are compared as bytes, in all channels. psnr, ssim and lpips of a video are means over its
    frames. squared_error is summed over a frame's pixels in [0, 1], and averaged over its frames.
    """
    n = len(x)
    frame_shape = spec.shape[-3:]
    x, y = (spec.to_bytes(part.reshape(-1, *frame_shape)) for part in (x, y))  # (N·T, C, H, W)
    measures: dict[str, Callable[[], Tensor]] = {
        # Equal images would have an infinite ratio, and so would the mean. They count as if one
        # value were one level off.
        "psnr": lambda: psnr(x, y, data_range=MAX_BYTE, min_mse=1 / x[0].numel()),
        "ssim": lambda: mean_channel_ssim(x, y),
        "lpips": lambda: lpips(x, y),
        "squared_error": lambda: scaled_squared_error_per_item(
            x.double(), y.double(), scale=MAX_BYTE
        ),
    }
    return {
        name: measures[name]().view(n, -1).mean(1) for name in applicable_similarity_names(spec)
    }


def mean_channel_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the structural similarity (N,) of images (N, C, H, W), as mean over channels."""
    similarity = ssim(x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None])
    return similarity.view(x.shape[:2]).mean(1)


def make_baseline_translations(
    batch: Batch, spec: DataSpec, mean_target: Tensor
) -> dict[str, Tensor]:
    """Return translations without a model, each (N, *spec.shape), that a model should beat.

    Args:
        mean_target: the mean of the training targets (*spec.shape).
    """
    source, target = batch.cond, batch.x
    assert source is not None
    baselines = {"training_mean": mean_target.to(target).expand_as(target)}
    if spec.kind == "video":
        last = source[:, -1:, : target.shape[2]]  # without the channels of actions
        baselines["last_frame"] = last.expand_as(target)
    elif spec.task == "superres":
        height, width = target.shape[-2:]
        enlarged = resize_bicubic(spec.to_bytes(source), (height, width)).to(target)
        baselines["bicubic"] = spec.from_bytes(enlarged)
    elif source.shape == target.shape:
        baselines["source"] = source
    return baselines


# --- LPIPS ----------------------------------------------------------------------------------------


def reason_without_lpips(spec: DataSpec) -> str | None:
    """Return why LPIPS is not available for images of a DataSpec, or None if it is."""
    from importlib.util import find_spec

    if spec.shape[-3] not in (1, 3) or min(spec.shape[-2:]) < MIN_LPIPS_SIDE:
        return f"LPIPS requires gray or RGB images of at least {MIN_LPIPS_SIDE}×{MIN_LPIPS_SIDE}"
    if find_spec("torchmetrics") is None:
        return "LPIPS requires torchmetrics: pip install 'genlab[lpips]'"
    path = alexnet_weights_path()
    if not path.exists():
        return f"LPIPS requires AlexNet's weights; put torchvision's {ALEXNET_FILE} at {path}"
    return None


def alexnet_weights_path() -> Path:
    """Return the path of AlexNet's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE


def lpips(x: Tensor, y: Tensor) -> Tensor:
    """Return the learned perceptual distance (N,) of byte images by AlexNet.

    Zhang et al. 2018, https://arxiv.org/abs/1801.03924.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    # pair by pair, because not every version returns the distances of a batch
    distance = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    distances = []
    for pair in zip(x.split(1), y.split(1), strict=True):
        a, b = (part.float().div(MAX_BYTE / 2).sub(1).expand(-1, 3, -1, -1) for part in pair)
        distances.append(distance(a, b))  # of images in [−1, 1]
        distance.reset()
    return torch.stack(distances).double()
