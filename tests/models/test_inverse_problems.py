"""Restoration by an unconditional model, where the answer is known: Gaussians, whose denoisers and conditionals are exact."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from genlab.data.degradations import Operator
from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.models.diffusion.inverse_problems import pseudo_inverse
from genlab.models.diffusion.networks import mlp
from genlab.spec import Spec

MODELS = {
    "ddpm": partial(DDPM, schedule="cosine"),
    "edm": partial(EDM),
    "flow_matching": partial(FlowMatching),
}
L = torch.tensor([[0.8, 0.0], [0.55, 0.35]], dtype=torch.float64)
COV = L @ L.T  # correlation 0.84
DRAWS = 20_000


pytestmark = pytest.mark.usefixtures("float64")


def gaussian(name: str, cov: torch.Tensor = COV, **options):
    """Return a model whose denoiser is the best of N(0, cov)."""
    dim = len(cov)
    model = MODELS[name](
        Spec((dim,), kind="points", levels=0), backbone=partial(mlp, hidden=(4,)), **options
    ).eval()

    known = {
        level.t: level
        for steps in (100, 50)
        for s in ("ancestral", "ddim", "heun")
        for level in model.levels(steps, s)
    }

    def answer(x, t, y=None):
        level = known.get(t.item()) or model.level(model.noise_level(t.item()))
        gain = (
            level.alpha
            * cov
            @ torch.linalg.inv(level.alpha**2 * cov + level.sigma**2 * torch.eye(dim))
        )
        return x @ gain.T, None

    model.answer = answer
    return model


@pytest.mark.parametrize(
    ("jump", "resample"), [(1, 10), (10, 20)]
)  # 10 rounds of such leave the mean 0.03 off
@pytest.mark.parametrize("name", MODELS)
def test_inpainting_draws_from_the_exact_conditional(name, jump, resample):
    """Of a Gaussian with one value known: the other is N(ρ x, …); what is known stays."""
    model = gaussian(name)
    torch.manual_seed(0)
    seen = torch.tensor([[0.9, 0.0]]).expand(DRAWS, 2)
    known = torch.tensor([[True, False]]).expand(DRAWS, 2)
    x = model.complete(seen, known, steps=100, resample=resample, jump=jump)
    assert torch.equal(x[:, 0], seen[:, 0])
    mean, var = COV[1, 0] / COV[0, 0] * 0.9, COV[1, 1] - COV[1, 0] ** 2 / COV[0, 0]
    assert x[:, 1].mean().item() == pytest.approx(mean.item(), abs=0.03)
    assert x[:, 1].std().item() == pytest.approx(math.sqrt(var), rel=0.1)
    once = model.complete(seen, known, steps=100, resample=1, jump=jump)
    assert abs(once[:, 1].mean() - mean) > abs(x[:, 1].mean() - mean)  # what the resampling is for


def test_the_pseudo_inverse_is_that_of_the_matrix():
    A = torch.randn(3, 5)
    linear = lambda x: x @ A.T  # noqa: E731
    r = torch.randn(4, 3)
    found = pseudo_inverse(linear, r, like=torch.zeros(4, 5))
    torch.testing.assert_close(found, r @ torch.linalg.pinv(A).T, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_made_smaller_are_undone_to_what_was_seen(dtype):
    """The operator of dataset=superres, in both precisions, of residuals large and small, and of one that is 0."""
    operator = Operator(
        name="downsample", spec=Spec((1, 8, 8)), factor=2, sigma=0.0, mask="box", share=0.5
    ).smooth
    zero = torch.zeros(4, 1, 8, 8, dtype=dtype)
    linear = lambda x: operator(x) - operator(zero)  # noqa: E731
    r = torch.randn(4, 1, 4, 4, dtype=dtype) * torch.tensor(
        [1e-4, 1.0, 1e3, 0.0], dtype=dtype
    ).view(4, 1, 1, 1)
    left = linear(pseudo_inverse(linear, r, like=zero)) - r
    rounding = 1e-4 if dtype == torch.float32 else 1.1e-5
    assert (
        left.flatten(1).norm(dim=1) <= rounding * r.flatten(1).norm(dim=1) + 1e-6
    ).all()  # the operator rounds too


@pytest.mark.parametrize("name", MODELS)
def test_restoration_agrees_with_what_was_seen_and_draws_the_rest(name):
    """Of independent values the mean is seen, of two: their sum is exact, and their difference has the law of the data."""
    s2 = 0.25
    model = gaussian(name, s2 * torch.eye(2))
    operator = lambda x: x.mean(1, keepdim=True) + 0.1  # noqa: E731
    y = torch.full((DRAWS, 1), 0.4)
    x = model.restore(y, operator, steps=100)
    torch.testing.assert_close(operator(x), y, atol=1e-6, rtol=0)
    difference = (x[:, 0] - x[:, 1]) / 2
    assert abs(difference.mean().item()) < 0.02
    assert difference.std().item() == pytest.approx(math.sqrt(s2 / 2), rel=0.06)


def test_an_operator_that_is_not_linear_is_refused():
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
def test_editing_goes_from_the_item_to_the_law_of_the_data(name):
    model, x = gaussian(name), torch.tensor([[1.0, -1.0]]).expand(DRAWS, 2)
    assert torch.equal(model.edit(x, 0.0), x)
    free = model.edit(x, 1.0)
    torch.testing.assert_close(torch.cov(free.T), COV, atol=0.04, rtol=0.06)
    # between the two it is nearer to the item the weaker it is
    distance = [
        (model.edit(x, strength) - x).square().sum(1).mean().item() for strength in (0.2, 0.5, 1.0)
    ]
    assert distance == sorted(distance)
