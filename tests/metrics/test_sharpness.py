"""Sharpness: white noise has 1, blurred noise its closed form, and contrast does not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from genlab.metrics.sharpness import sharpness_per_image

LAPLACIAN = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
KERNELS = {
    "noise": np.ones((1, 1)),
    "box": np.full((3, 3), 1 / 9),
    "pair": np.array([[0.5, 0.5]]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_filtered_noise_has_its_closed_form(name):
    """‖Δ ∗ k‖² / (20 ‖k‖²) of white noise that is filtered by k."""
    kernel = KERNELS[name]
    exact = (convolve2d(LAPLACIAN, kernel) ** 2).sum() / (20 * (kernel**2).sum())
    noise = torch.randn(30, 1, 80, 80, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.from_numpy(kernel)[None, None]
    values = sharpness_per_image(torch.nn.functional.conv2d(noise, weight))
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - exact) < 4 * error + 2e-3
    assert (exact == 1) == (name == "noise")


def test_brightness_and_contrast_do_not_matter_and_constant_images_have_none():
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(sharpness_per_image(x), sharpness_per_image(5 * x - 2))
    assert sharpness_per_image(torch.ones(2, 1, 5, 5)).isnan().all()
