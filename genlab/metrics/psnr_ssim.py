"""How near restored images are to the true ones, pair by pair, in the protocol of the papers on super-resolution.

The luminance alone is compared, unrounded, with `crop` pixels cut off at each border, where a restoration knows the least.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.data import image_decoding
from genlab.errors import UserError
from genlab.metrics import Row

if TYPE_CHECKING:
    from PIL import Image

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
K1, K2 = 0.01, 0.03
SUFFIXES = (".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")


def luminance(x: Tensor) -> Tensor:
    """Return Y of ITU-R BT.601 (N, 1, H, W) float64, 16 … 235, of RGB images (N, 3, H, W), 0 … 255; grey stays as it is.

    As MATLAB's rgb2ycbcr before it rounds.
    """
    x = x.double()
    if x.shape[1] == 1:
        return x
    return (
        16
        + torch.einsum("nchw,c->nhw", x, x.new_tensor([65.481, 128.553, 24.966])).unsqueeze(1) / 255
    )


def psnr(x: Tensor, y: Tensor, *, crop: int = 0) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) of the luminance, in dB; inf for equal images.

    Args:
        x, y: byte images (N, 3 or 1, H, W), as uint8 or as whole numbers 0 … 255 of another type.
        crop: pixels cut off at each border.

    Raises:
        UserError: the shapes differ or are no images, or nothing is left after the crop.
    """
    x, y = compared(x, y, crop)
    return 10 * torch.log10(PEAK**2 / (x - y).square().mean((1, 2, 3)))


def ssim(x: Tensor, y: Tensor, *, crop: int = 0) -> Tensor:
    """Return the structural similarity (N,) of the luminance, −1 … 1, 1 for equal images.

    Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861), equation 13 averaged over the places where the window of
    11 × 11, a Gaussian of σ = 1.5, lies inside the image. Arguments and errors as `psnr`.
    """
    x, y = compared(x, y, crop, least=WINDOW)
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    w = torch.exp(-at.square() / (2 * SIGMA**2)).to(x.device)
    w = w / w.sum()

    def mean(
        image: Tensor,
    ) -> Tensor:  # Σ_i w_i x_i around each place; the window is a product of two lines
        rows = torch.nn.functional.conv2d(image, w.view(1, 1, -1, 1))
        return torch.nn.functional.conv2d(rows, w.view(1, 1, 1, -1))

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2
    cov = mean(x * y) - mu_x * mu_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    similar = (
        (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    )  # eq. 13
    return similar.mean((1, 2, 3))


def compared(x: Tensor, y: Tensor, crop: int, *, least: int = 1) -> tuple[Tensor, Tensor]:
    """Return the cropped luminance of both (N, 1, H', W'), of which a side must have `least` pixels."""
    if x.shape != y.shape or x.dim() != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"images {tuple(x.shape)} and {tuple(y.shape)} must have one shape (N, 3 or 1, H, W)"
        )
    height, width = x.shape[-2:]
    if crop < 0 or min(height, width) - 2 * crop < least:
        raise UserError(
            f"crop={crop} leaves less than {least}×{least} pixels of images of {width}×{height}"
        )
    inner = (..., slice(crop, height - crop), slice(crop, width - crop))
    return luminance(x)[inner], luminance(y)[inner]


def bicubic(x: Tensor, size: float | tuple[int, int]) -> Tensor:
    """Return images (N, C, H, W) uint8 resized by a factor, or to (height, width), as MATLAB's imresize does by default.

    The cubic kernel is that of Keys 1981 with a = −0.5; a smaller image takes it widened, so that it is antialiased. A
    factor gives sides rounded up. The result is rounded to bytes.
    """
    sides = tuple(x.shape[-2:])
    # a factor such as 1/3 must not make ⌈9 · 0.333…⌉ one pixel too many by rounding
    size = (
        size if isinstance(size, tuple) else tuple(math.ceil(side * size - 1e-9) for side in sides)
    )
    resized = torch.nn.functional.interpolate(x.double(), size=size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


# --- folders ----------------------------------------------------------------------------------------------------------


def measure_folders(restored: Path, truth: Path, *, crop: int) -> list[Row]:
    """Return PSNR in dB and SSIM of the images of two folders, paired by file name without its suffix.

    Each is the mean over the pairs, with its standard error (that of the choice of images). A pair is compared in grey
    where both files are grey, else by its luminance.

    Raises:
        UserError: a folder has no images, an image has no partner, another size than it, or cannot be read.
    """
    ours, theirs = by_stem(Path(restored)), by_stem(Path(truth))
    for have, lack, where in ((ours, theirs, truth), (theirs, ours, restored)):
        if alone := [path for stem, path in have.items() if stem not in lack]:
            more = f", and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise UserError(f"{alone[0]} has no partner of its name in {where}{more}")
    ratios, likenesses = [], []
    for stem, path in ours.items():
        x, y = read_pair(path, theirs[stem])
        try:
            ratios.append(psnr(x, y, crop=crop))
            likenesses.append(ssim(x, y, crop=crop))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    conditions = {"luminance": "BT.601", "crop": crop, "images": len(ours)}
    return [
        Row(
            name,
            values.mean().item(),
            unit,
            "exact",
            standard_error(values),
            None,
            "higher",
            conditions,
        )
        for name, unit, values in (
            ("psnr", "dB", torch.cat(ratios)),
            ("ssim", "similarity", torch.cat(likenesses)),
        )
    ]


def by_stem(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by name without suffix, in their order."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise UserError(f"{path} and {found[path.stem]} have one name: which is meant?")
            found[path.stem] = path
    if not found:
        raise UserError(
            f"{folder} has no image; looked for {' '.join(f'*{suffix}' for suffix in SUFFIXES)}"
        )
    return found


def read_pair(*paths: Path) -> list[Tensor]:
    """Return two images of one size, (1, C, H, W) uint8 each: C = 1 where both are grey, else 3."""
    import numpy as np

    images = [opened(path) for path in paths]
    if images[0].size != images[1].size:
        sizes = " and ".join(
            f"{path} ({image.width}×{image.height})"
            for path, image in zip(paths, images, strict=True)
        )
        raise UserError(f"{sizes} differ in size; cut or resize one to the other first")
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    arrays = [
        np.array(image.convert(mode)).reshape(image.height, image.width, -1) for image in images
    ]
    return [torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0) for array in arrays]


def opened(path: Path) -> Image.Image:
    """Return an image, decoded; one that is no plain 8-bit grey or colour is refused, since to make it so is to change it."""
    try:
        with image_decoding.opened(path) as image:
            image.load()
    except image_decoding.BROKEN as error:
        raise UserError(f"unreadable image {path}: {' '.join(str(error).split())}") from error
    if image.mode not in ("L", "RGB", "P"):
        raise UserError(f"{path} is of Pillow's mode {image.mode}; save it as 8-bit grey or RGB")
    return image


def standard_error(values: Tensor) -> float | None:
    """Return the standard error of the mean of values (N,); None of one value, or where one is infinite."""
    if len(values) < 2 or not values.isfinite().all():
        return None
    return values.std().item() / math.sqrt(len(values))
