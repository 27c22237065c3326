"""PSNR and SSIM of restored images, in the protocol of super-resolution papers.

Only the luminance is compared, unrounded, after `crop` pixels are cut off at each border, where a
restoration has the least information.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genlab.data.image_decoding import DECODE_ERRORS, open_image
from genlab.errors import UserError
from genlab.metrics.base import Row

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTE = 255.0
SSIM_WINDOW = 11  # pixels per side of SSIM's Gaussian window
SSIM_SIGMA = 1.5  # its standard deviation in pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03
SUFFIXES = (".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")


def luminance(x: Tensor) -> Tensor:
    """Return Y of ITU-R BT.601 (N, 1, H, W) float64, 16 … 235, of RGB images (N, 3, H, W).

    The images are 0 … 255; gray images are returned unchanged. It equals MATLAB's rgb2ycbcr before
    rounding.
    """
    x = x.double()
    if x.shape[1] == 1:
        return x
    weights = x.new_tensor([65.481, 128.553, 24.966])
    return 16 + torch.einsum("nchw,c->nhw", x, weights).unsqueeze(1) / 255


def psnr(x: Tensor, y: Tensor, *, data_range: float, min_mse: float | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB of x and y (N, …); infinite if equal.

    Args:
        data_range: the difference between the largest and the smallest possible value.
        min_mse: lower bound of the mean squared error, which keeps the ratio finite.
    """
    mse = (x.double() - y.double()).square().flatten(1).mean(1)
    if min_mse is not None:
        mse = mse.clamp_min(min_mse)
    return 10 * torch.log10(data_range**2 / mse)


def psnr_y(x: Tensor, y: Tensor, *, crop: int = 0) -> Tensor:
    """Return the PSNR (N,) of the luminance in dB, infinite for equal images.

    Args:
        x, y: byte images (N, 3 or 1, H, W), as uint8 or as integers 0 … 255 of another type.
        crop: pixels cut off at each border.

    Raises:
        UserError: the shapes differ or are not images, or nothing is left after the crop.
    """
    x, y = cropped_luminance(x, y, crop)
    return psnr(x, y, data_range=MAX_BYTE)


def ssim(x: Tensor, y: Tensor, *, crop: int = 0) -> Tensor:
    """Return the structural similarity (N,) of the luminance, −1 … 1, 1 for equal images.

    Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861), equation 13, averaged over all
    positions where the 11 × 11 window, a Gaussian with σ = 1.5, is inside the image. Arguments and
    errors as for `psnr_y`.
    """
    x, y = cropped_luminance(x, y, crop, min_side=SSIM_WINDOW)
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    w = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2)).to(x.device)
    w = w / w.sum()

    def local_mean(image: Tensor) -> Tensor:
        """Return Σ_i w_i x_i around each position; the window is separable."""
        rows = torch.nn.functional.conv2d(image, w.view(1, 1, -1, 1))
        return torch.nn.functional.conv2d(rows, w.view(1, 1, 1, -1))

    mu_x, mu_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mu_x**2, local_mean(y * y) - mu_y**2
    cov = local_mean(x * y) - mu_x * mu_y
    c1, c2 = (SSIM_K1 * MAX_BYTE) ** 2, (SSIM_K2 * MAX_BYTE) ** 2
    similarity = (
        (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    )  # eq. 13
    return similarity.mean((1, 2, 3))


def cropped_luminance(
    x: Tensor, y: Tensor, crop: int, *, min_side: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the cropped luminance of both (N, 1, H', W').

    Raises:
        UserError: the shapes differ or are not images, or a side has fewer than `min_side` pixels.
    """
    if x.shape != y.shape or x.dim() != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"images {tuple(x.shape)} and {tuple(y.shape)} must have the same shape "
            "(N, 3 or 1, H, W)"
        )
    height, width = x.shape[-2:]
    if crop < 0 or min(height, width) - 2 * crop < min_side:
        raise UserError(
            f"crop={crop} leaves less than {min_side}×{min_side} pixels of images of "
            f"{width}×{height}"
        )
    inner = (..., slice(crop, height - crop), slice(crop, width - crop))
    return luminance(x)[inner], luminance(y)[inner]


def resize_bicubic(x: Tensor, size: float | tuple[int, int]) -> Tensor:
    """Return images (N, C, H, W) uint8 resized as MATLAB's imresize does by default.

    The cubic kernel is that of Keys 1981 with a = −0.5; it is widened when the image shrinks, so
    that the result is antialiased. The result is rounded to bytes.

    Args:
        size: (height, width), or a factor, whose sides are rounded up.
    """
    if not isinstance(size, tuple):
        # a factor such as 1/3 must not make ⌈9 · 0.333…⌉ one pixel too many by rounding
        height, width = (math.ceil(side * size - 1e-9) for side in x.shape[-2:])
        size = (height, width)
    resized = torch.nn.functional.interpolate(x.double(), size=size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


# --- folders --------------------------------------------------------------------------------------


def measure_psnr_and_ssim_of_folders(restored: Path, truth: Path, *, crop: int) -> list[Row]:
    """Return the mean PSNR and SSIM of the images of two folders.

    They are paired by file name without suffix. The standard error is that of the choice of images.
    A pair is compared in gray if both files are gray, else by its luminance.

    Raises:
        UserError: a folder does not contain images, or an image is unreadable, without partner, or
            of another size than its partner.
    """
    restored_files, true_files = (
        find_images_by_stem(Path(restored)),
        find_images_by_stem(Path(truth)),
    )
    for files, others, folder in (
        (restored_files, true_files, truth),
        (true_files, restored_files, restored),
    ):
        if unpaired := [path for stem, path in files.items() if stem not in others]:
            more = f", and {len(unpaired) - 1} more" if len(unpaired) > 1 else ""
            raise UserError(
                f"{unpaired[0]} does not have a partner of the same name in {folder}{more}"
            )
    ratios, similarities = [], []
    for stem, path in restored_files.items():
        x, y = read_image_pair(path, true_files[stem])
        try:
            ratios.append(psnr_y(x, y, crop=crop))
            similarities.append(ssim(x, y, crop=crop))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    conditions = {"luminance": "BT.601", "crop": crop, "images": len(restored_files)}
    return [
        Row(
            name,
            values.mean().item(),
            unit,
            error=standard_error_of_mean(values),
            better="higher",
            conditions=conditions,
        )
        for name, unit, values in (
            ("psnr", "dB", torch.cat(ratios)),
            ("ssim", "similarity", torch.cat(similarities)),
        )
    ]


def find_images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by name without suffix, sorted.

    Raises:
        UserError: there are none, or two have the same name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in images:
                raise UserError(
                    f"{path} and {images[path.stem]} have the same name; remove one of them"
                )
            images[path.stem] = path
    if not images:
        patterns = " ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise UserError(f"{folder} does not contain images; looked for {patterns}")
    return images


def read_image_pair(*paths: Path) -> list[Tensor]:
    """Return two images of the same size, (1, C, H, W) uint8 each.

    C is 1 if both are gray, else 3.
    """
    import numpy as np

    images = [load_8bit_image(path) for path in paths]
    if images[0].size != images[1].size:
        sizes = " and ".join(
            f"{path} ({image.width}×{image.height})"
            for path, image in zip(paths, images, strict=True)
        )
        raise UserError(f"{sizes} differ in size; crop or resize one of them first")
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    arrays = [
        np.array(image.convert(mode)).reshape(image.height, image.width, -1) for image in images
    ]
    return [torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0) for array in arrays]


def load_8bit_image(path: Path) -> Image.Image:
    """Return a decoded image in 8-bit gray or color; a conversion would change it.

    Raises:
        UserError: it has another mode, or is unreadable.
    """
    try:
        with open_image(path) as image:
            image.load()
    except DECODE_ERRORS as error:
        raise UserError(f"unreadable image {path}: {' '.join(str(error).split())}") from error
    if image.mode not in ("L", "RGB", "P"):
        raise UserError(f"{path} has Pillow's mode {image.mode}; save it as 8-bit gray or RGB")
    return image


def standard_error_of_mean(values: Tensor) -> float | None:
    """Return the standard error of the mean of values (N,).

    It is None for a single value, or if one is infinite.
    """
    if len(values) < 2 or not values.isfinite().all():
        return None
    return values.std().item() / math.sqrt(len(values))
