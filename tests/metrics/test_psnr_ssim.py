"""PSNR, SSIM and bicubic resizing against known errors, torchmetrics, and papers on Set5."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.errors import UserError
from genlab.metrics.psnr_ssim import (
    luminance,
    measure_psnr_and_ssim_of_folders,
    psnr_y,
    read_image_pair,
    resize_bicubic,
    ssim,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("rgb", "y"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81.481),
        ((0, 255, 0), 144.553),
        ((0, 0, 255), 40.966),
    ],
)
def test_luminance(rgb, y):
    pixel = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    assert luminance(pixel).item() == pytest.approx(y, abs=1e-3)


def test_psnr_and_ssim_of_equal_images():
    x = noise(2, 3, 16, 16)
    assert psnr_y(x, x).tolist() == [math.inf] * 2
    torch.testing.assert_close(ssim(x, x), torch.ones(2).double(), rtol=0, atol=1e-12)


def test_psnr_of_a_known_error():
    """A shift of RGB by d shifts the luminance by d · 219/255, and gray by d.

    Pixels outside of the crop do not count.
    """
    x = noise(1, 3, 20, 24) // 2
    shifted = x + 17
    assert psnr_y(x, shifted).item() == pytest.approx(20 * math.log10(255 / (17 * 219 / 255)))
    assert psnr_y(x[:, :1], shifted[:, :1]).item() == pytest.approx(20 * math.log10(255 / 17))
    edged = x.clone()
    edged[..., :3] = 0
    edged[..., -3:, :] = 0
    assert psnr_y(x, edged, crop=3).item() == math.inf and psnr_y(x, edged, crop=2).item() < 40
    spot = x[:, :1].clone()
    spot[0, 0, 10, 10] += 100
    assert psnr_y(x[:, :1], spot, crop=4).item() == pytest.approx(
        10 * math.log10(255**2 * (12 * 16) / 100**2)
    )


def test_ssim_of_constant_images_is_the_luminance_term():
    """Between constants all variances are 0: (2ab + C1) / (a² + b² + C1)."""
    a, b, c1 = 100, 140, (0.01 * 255) ** 2
    x = torch.full((1, 1, 12, 12), a, dtype=torch.uint8)
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert ssim(x, torch.full_like(x, b)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("crop", [0, 3])
def test_ssim_and_psnr_equal_torchmetrics(crop):
    image = pytest.importorskip("torchmetrics.functional.image")
    x = resize_bicubic(noise(3, 3, 12, 15), 3)
    y = (x.int() + noise(3, 3, 36, 45, seed=1).int() // 8 - 16).clamp(0, 255).to(torch.uint8)
    a, b = (luminance(t)[..., crop : 36 - crop, crop : 45 - crop] for t in (x, y))
    options = dict(sigma=1.5, data_range=255.0, reduction="none", return_full_image=True)
    _, places = image.structural_similarity_index_measure(
        b, a, **options
    )  # it also counts windows across the border
    inside = places[..., 5:-5, 5:-5].mean((1, 2, 3)).double()
    torch.testing.assert_close(ssim(x, y, crop=crop), inside, rtol=0, atol=1e-9)
    theirs = image.peak_signal_noise_ratio(b, a, data_range=255.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr_y(x, y, crop=crop), theirs.double(), rtol=0, atol=1e-4)


def test_bicubic_is_keys_cubic_kernel():
    """Doubling has four weights: the kernel with a = −1/2 at 1/4, 3/4, 5/4 and 7/4."""
    x = torch.zeros(1, 1, 1, 9, dtype=torch.uint8)
    x[..., 4] = 128

    def near(t: float) -> float:
        return 1.5 * t**3 - 2.5 * t**2 + 1

    def far(t: float) -> float:
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2

    weights = [far(1.75), far(1.25), near(0.75), near(0.25)]
    wanted = [max(0, round(128 * w)) for w in weights + weights[::-1]]
    assert resize_bicubic(x, (1, 18)).flatten().tolist()[5:13] == wanted
    assert resize_bicubic(noise(1, 3, 10, 9), 1 / 3).shape == (1, 3, 4, 3)
    assert (resize_bicubic(torch.full((1, 1, 9, 9), 200, dtype=torch.uint8), 0.4) == 200).all()


def test_invalid_images_are_refused():
    x = noise(1, 3, 16, 16)
    for call, words in [
        (lambda: psnr_y(x, x[..., :8]), "must have the same shape"),
        (lambda: psnr_y(x[:, :2], x[:, :2]), "3 or 1"),
        (lambda: psnr_y(x, x, crop=8), "crop=8 leaves"),
        (lambda: ssim(x, x, crop=3), "crop=3 leaves less than 11×11 pixels of images of 16×16"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


# --- folders --------------------------------------------------------------------------------------


def test_folders_are_paired_by_name(tmp_path):
    """The suffix does not matter; the error is that of the mean over the images."""
    values = []
    for i, name in enumerate(("a", "b", "c")):
        x = noise(20, 22, 3, seed=i).numpy() // 2
        y = x + np.uint8(4 * (i + 1))
        write(tmp_path / "truth" / f"{name}.png", x)
        write(tmp_path / "restored" / f"{name}.{'bmp' if i else 'png'}", y)
        values.append(20 * math.log10(255 / (4 * (i + 1) * 219 / 255)))
    ratio, similarity = measure_psnr_and_ssim_of_folders(
        tmp_path / "restored", tmp_path / "truth", crop=2
    )
    assert (ratio.name, ratio.unit, ratio.better) == ("psnr", "dB", "higher")
    assert ratio.value == pytest.approx(np.mean(values))
    assert ratio.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert similarity.name == "ssim" and 0.9 < similarity.value < 1 and similarity.error > 0
    assert ratio.conditions == {"luminance": "BT.601", "crop": 2, "images": 3}


def test_gray_files_are_compared_in_gray(tmp_path):
    write(tmp_path / "x" / "a.png", np.full((12, 12), 100, dtype=np.uint8))
    write(tmp_path / "y" / "a.png", np.full((12, 12), 110, dtype=np.uint8))
    assert measure_psnr_and_ssim_of_folders(tmp_path / "x", tmp_path / "y", crop=0)[
        0
    ].value == pytest.approx(20 * math.log10(25.5))
    write(tmp_path / "y" / "a.png", np.full((12, 12, 3), 110, dtype=np.uint8))
    (row, _) = measure_psnr_and_ssim_of_folders(tmp_path / "x", tmp_path / "y", crop=0)
    assert row.value == pytest.approx(20 * math.log10(25.5 * 255 / 219)) and row.error is None


def test_folders_that_do_not_pair_are_refused(tmp_path):
    small, large = np.zeros((12, 12, 3), np.uint8), np.zeros((12, 14, 3), np.uint8)
    write(tmp_path / "one" / "a.png", small)
    write(tmp_path / "two" / "a.png", small)
    write(tmp_path / "two" / "b.png", small)
    write(tmp_path / "large" / "a.png", large)
    write(tmp_path / "twice" / "a.png", small)
    write(tmp_path / "twice" / "a.bmp", small)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes((tmp_path / "one" / "a.png").read_bytes()[:40])
    (tmp_path / "empty").mkdir()
    write(tmp_path / "clear" / "a.png", np.zeros((12, 12, 4), np.uint8))
    for restored, truth, crop, words in [
        ("one", "two", 0, "two/b.png does not have a partner"),
        ("two", "one", 0, "two/b.png does not have a partner"),
        ("one", "large", 0, r"one/a.png \(12×12\) and .*large/a.png \(14×12\) differ in size"),
        ("one", "twice", 0, "twice/a.*have the same name"),
        ("broken", "one", 0, "unreadable image .*broken/a.png"),
        ("clear", "one", 0, "clear/a.png has Pillow's mode RGBA"),
        ("empty", "one", 0, "empty does not contain images"),
        ("none", "one", 0, "none: no such folder"),
        ("one", "one", 4, "one/a.png: crop=4 leaves"),
    ]:
        with pytest.raises(UserError, match=words):
            measure_psnr_and_ssim_of_folders(tmp_path / restored, tmp_path / truth, crop=crop)


# --- published numbers ----------------------------------------------------------------------------


def test_bicubic_on_set5_equals_published_numbers(tmp_path):
    """×4: 28.43 dB and 0.8113; downsampling without antialiasing gives 27.69 instead."""
    folder = Path(os.environ.get("GENLAB_DATA") or ".", "SR", "Set5")
    if not folder.exists():
        pytest.skip("needs SR/Set5 in the folder that GENLAB_DATA names")
    ratios, similarities, aliased_ratios = [], [], []
    for path in sorted(folder.glob("*.png")):
        x = read_image_pair(path, path)[0]
        x = x[..., : x.shape[-2] // 4 * 4, : x.shape[-1] // 4 * 4]
        y = resize_bicubic(resize_bicubic(x, 1 / 4), 4)
        ratios.append(psnr_y(x, y, crop=4))
        similarities.append(ssim(x, y, crop=4))
        aliased = torch.nn.functional.interpolate(x.double(), scale_factor=1 / 4, mode="bicubic")
        # no antialiasing on the way down, and the kernel with a = −0.75 on the way up
        up = torch.nn.functional.interpolate(
            aliased.round().clamp(0, 255), scale_factor=4, mode="bicubic"
        )
        aliased_ratios.append(psnr_y(x, up.round().clamp(0, 255), crop=4))
    assert len(ratios) == 5
    assert torch.cat(ratios).mean().item() == pytest.approx(28.43, abs=0.02)
    assert torch.cat(similarities).mean().item() == pytest.approx(0.8113, abs=0.001)
    assert torch.cat(aliased_ratios).mean().item() == pytest.approx(27.69, abs=0.02)
