"""How near what a translator makes of held-out sources is to the truth: PSNR, SSIM, and LPIPS where its weights are."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor, nn

from genlab.metrics import Row
from genlab.metrics.context import Subject, to_bytes
from genlab.metrics.psnr_ssim import PEAK, WINDOW, bicubic, ssim
from genlab.spec import Batch, Spec

UNITS = {"psnr": "dB", "ssim": "similarity", "lpips": "distance", "squared_error": "pixels²"}
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's weights, on which LPIPS stands
VALUES = 2**21  # of targets that are made together
USUAL = 500  # training targets of which the mean is taken
LEAST = 32  # pixels a side that AlexNet needs


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    spec = subject.spec
    fits = "translate" in subject.abilities and spec.source is not None and subject.dataset.paired
    if not fits or spec.kind not in ("image", "video"):
        return []
    return names(spec)


def names(spec: Spec) -> list[str]:
    """Return the measures that fit images or films of a Spec."""
    fits = {"psnr": True, "ssim": min(spec.shape[-2:]) >= WINDOW, "lpips": why_no_lpips(spec) is None,
            "squared_error": spec.kind == "video"}  # fmt: skip
    return [name for name, fit in fits.items() if fit]


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return the agreement of n held-out targets with what the model makes of their sources; beside it what guessing gives."""
    model, spec, s = subject.model, subject.spec, subject.settings
    batch = subject.dataset.take(s.split, s.n, seed=s.seed)
    like = next(model.parameters())
    found = agreement(translated(model.translate, batch.cond.to(like), spec).cpu(), batch.x, spec)
    usual = subject.dataset.take("train", USUAL, seed=s.seed).x.mean(0)
    guessed = {
        name: agreement(guess, batch.x, spec) for name, guess in guesses(batch, spec, usual).items()
    }
    out = []
    for name, values in found.items():
        conditions = {"n": len(values), "split": s.split, "seed": s.seed}
        conditions |= {
            guess: f"{other[name].mean().item():.4g}" for guess, other in guessed.items()
        }
        error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else None
        better = "higher" if name in ("psnr", "ssim") else "lower"
        out.append(
            Row(name, values.mean().item(), UNITS[name], "exact", error, None, better, conditions)
        )
    return out


@torch.no_grad()
def translated(translate: Callable[[Tensor], Tensor], source: Tensor, spec: Spec) -> Tensor:
    """Return what becomes (N, *spec.shape) of sources (N, …), as many at a time as memory may be expected to hold."""
    return torch.cat(
        [translate(part).float() for part in source.split(max(1, min(250, VALUES // spec.dim)))]
    )


def both_ways(model: nn.Module | type[nn.Module]) -> bool:
    """Return whether a model that translates, or its class, learnt the way back too: `translate(x, backward=True)`."""
    return "backward" in signature(model.translate).parameters


def agreement(x: Tensor, y: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Return each measure (N,) of images or films x against the true y (N, *spec.shape), compared as bytes in all channels.

    psnr, ssim and lpips of a film are means over its frames; squared_error is summed over a frame's pixels in [0, 1], and
    averaged over its frames.
    """
    n = len(x)
    x, y = (
        to_bytes(part.reshape(-1, *spec.shape[-3:]), spec.range) for part in (x, y)
    )  # (N·T, C, H, W)
    each = (x.double() - y.double()).square()
    measures = {
        # of equal images it were infinite, and no mean could be had: they count as if one value were one level off
        "psnr": lambda: (
            10 * torch.log10(PEAK**2 / each.mean((1, 2, 3)).clamp_min(1 / each[0].numel()))
        ),
        "ssim": lambda: (
            ssim(x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None]).view(x.shape[:2]).mean(1)
        ),
        "lpips": lambda: lpips(x, y),
        "squared_error": lambda: each.sum((1, 2, 3)) / PEAK**2,
    }
    return {name: measures[name]().view(n, -1).mean(1) for name in names(spec)}


def guesses(batch: Batch, spec: Spec, usual: Tensor) -> dict[str, Tensor]:
    """Return what is made of sources with no model, each (N, *spec.shape): what a translator has to be better than.

    Args:
        usual: the mean of the training targets (*spec.shape).
    """
    source, target = batch.cond, batch.x
    found = {"training_mean": usual.to(target).expand_as(target)}
    if spec.kind == "video":
        found["last_frame"] = source[:, -1:].expand_as(target)
    elif spec.task == "superres":
        low, high = spec.range
        larger = bicubic(to_bytes(source, spec.range), tuple(target.shape[-2:])).to(target)
        found["bicubic"] = larger / PEAK * (high - low) + low
    elif source.shape == target.shape:
        found["source"] = source
    return found


# --- LPIPS ------------------------------------------------------------------------------------------------------------


def why_no_lpips(spec: Spec) -> str | None:
    """Return why LPIPS cannot be had for images of a Spec, or None if it can."""
    from importlib.util import find_spec

    if spec.shape[-3] not in (1, 3) or min(spec.shape[-2:]) < LEAST:
        return f"LPIPS needs grey or RGB images of {LEAST}×{LEAST} at least"
    if find_spec("torchmetrics") is None:
        return "LPIPS needs torchmetrics: pip install torchmetrics torchvision"
    if not weights().exists():
        return f"LPIPS needs AlexNet's weights; put torchvision's {ALEXNET} at {weights()}"
    return None


def weights() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET


def lpips(x: Tensor, y: Tensor) -> Tensor:
    """Return the learned perceptual distance (N,) of byte images by AlexNet: Zhang et al. 2018, https://arxiv.org/abs/1801.03924."""
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net="alex").eval()
    unit = [part.float().div(PEAK / 2).sub(1).expand(-1, 3, -1, -1) for part in (x, y)]
    return torch.cat(
        [network(a, b).flatten() for a, b in zip(unit[0].split(50), unit[1].split(50), strict=True)]
    ).double()
