"""Inverse problems of Gaussians, whose denoisers and conditional distributions are exact."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.kinds import first_of_each_kind

from genlab.data.degradations import Operator
from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.models.diffusion.inverse_problems import apply_pseudo_inverse
from genlab.models.diffusion.networks import mlp
from genlab.spec import DataSpec

MODELS = {
    "ddpm": partial(DDPM, noise_schedule="cosine"),
    "edm": partial(EDM),
    "flow_matching": partial(FlowMatching),
}
L = torch.tensor([[0.8, 0.0], [0.55, 0.35]], dtype=torch.float64)
COV = L @ L.T  # correlation 0.84
DRAWS = 20_000


pytestmark = pytest.mark.usefixtures("float64")


def gaussian(name: str, cov: torch.Tensor = COV, **options):
    """Return a model with the optimal denoiser of N(0, cov)."""
    dim = len(cov)
    model = MODELS[name](
        DataSpec((dim,), kind="points", levels=0), backbone=partial(mlp, hidden=(4,)), **options
    ).eval()

    known = {
        level.t: level
        for steps in (100, 50)
        for s in ("ancestral", "ddim", "heun")
        for level in model.noise_levels(steps, s)
    }

    def predict_x0(x, t, y=None):
        level = known.get(t.item()) or model.nearest_noise_level(model.noise_to_signal(t.item()))
        gain = (
            level.alpha
            * cov
            @ torch.linalg.inv(level.alpha**2 * cov + level.sigma**2 * torch.eye(dim))
        )
        return x @ gain.T, None

    model.predict_x0 = predict_x0
    return model


# with (10, 10) the mean would be off by 0.03
INPAINTING_CASES = [(name, *how) for how in ((1, 10), (10, 20)) for name in MODELS]


@pytest.mark.parametrize(
    ("name", "jump", "resample"), first_of_each_kind(INPAINTING_CASES, lambda case: "inpainting")
)
def test_inpainting_draws_from_the_exact_conditional(name, jump, resample):
    """If one value of a Gaussian is known, the other is N(ρ x, …); known values stay."""
    model = gaussian(name)
    torch.manual_seed(0)
    observed = torch.tensor([[0.9, 0.0]]).expand(DRAWS, 2)
    known = torch.tensor([[True, False]]).expand(DRAWS, 2)
    x = model.inpaint(observed, known, steps=100, resample=resample, jump=jump)
    assert torch.equal(x[:, 0], observed[:, 0])
    mean, var = COV[1, 0] / COV[0, 0] * 0.9, COV[1, 1] - COV[1, 0] ** 2 / COV[0, 0]
    assert x[:, 1].mean().item() == pytest.approx(mean.item(), abs=0.03)
    assert x[:, 1].std().item() == pytest.approx(math.sqrt(var), rel=0.1)
    once = model.inpaint(observed, known, steps=100, resample=1, jump=jump)
    assert abs(once[:, 1].mean() - mean) > abs(x[:, 1].mean() - mean)  # the reason for resampling


def test_pseudo_inverse_equals_that_of_the_matrix():
    A = torch.randn(3, 5)

    def linear(x):
        return x @ A.T

    r = torch.randn(4, 3)
    found = apply_pseudo_inverse(linear, r, like=torch.zeros(4, 5))
    torch.testing.assert_close(found, r @ torch.linalg.pinv(A).T, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_inverse_of_downsampling_reproduces_the_observation(dtype):
    """The operator of dataset=superres in both precisions, with large, small, zero residuals."""
    operator = Operator(
        name="downsample", spec=DataSpec((1, 8, 8)), factor=2, sigma=0.0, mask="box", mask_ratio=0.5
    ).apply_unrounded
    zero = torch.zeros(4, 1, 8, 8, dtype=dtype)

    def linear(x):
        return operator(x) - operator(zero)

    r = torch.randn(4, 1, 4, 4, dtype=dtype) * torch.tensor(
        [1e-4, 1.0, 1e3, 0.0], dtype=dtype
    ).view(4, 1, 1, 1)
    left = linear(apply_pseudo_inverse(linear, r, like=zero)) - r
    rounding = 1e-4 if dtype == torch.float32 else 1.1e-5
    assert (
        left.flatten(1).norm(dim=1) <= rounding * r.flatten(1).norm(dim=1) + 1e-6
    ).all()  # the operator rounds too


@pytest.mark.parametrize("name", MODELS)
def test_restoration_agrees_with_the_observation_and_draws_the_rest(name):
    """The observation is the mean of two independent values.

    Their sum is exact, and their difference has the distribution of the data.
    """
    s2 = 0.25
    model = gaussian(name, s2 * torch.eye(2))

    def operator(x):
        return x.mean(1, keepdim=True) + 0.1

    y = torch.full((DRAWS, 1), 0.4)
    x = model.restore(y, operator, steps=100)
    torch.testing.assert_close(operator(x), y, atol=1e-6, rtol=0)
    difference = (x[:, 0] - x[:, 1]) / 2
    assert abs(difference.mean().item()) < 0.02
    assert difference.std().item() == pytest.approx(math.sqrt(s2 / 2), rel=0.06)


def test_nonlinear_operator_is_an_error():
    model = gaussian("edm")
    with pytest.raises(UserError, match="linear"):
        model.restore(torch.zeros(2, 2), lambda x: x**2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_denoising_gives_the_posterior_mean(name, sigma):
    x = torch.randn(5, 2)
    exact = x @ torch.linalg.inv(COV + sigma**2 * torch.eye(2)) @ COV
    torch.testing.assert_close(gaussian(name).denoise(x, sigma=sigma), exact, rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_editing_interpolates_from_the_item_to_the_data(name):
    model, x = gaussian(name), torch.tensor([[1.0, -1.0]]).expand(DRAWS, 2)
    assert torch.equal(model.edit(x, 0.0), x)
    resampled = model.edit(x, 1.0)
    torch.testing.assert_close(torch.cov(resampled.T), COV, atol=0.04, rtol=0.06)
    # between the two, weaker edits are closer to the item
    distance = [
        (model.edit(x, strength) - x).square().sum(1).mean().item() for strength in (0.2, 0.5, 1.0)
    ]
    assert distance == sorted(distance)
