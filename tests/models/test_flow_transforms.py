"""RealNVP against the definitions: inverse, Jacobian by autograd, integral of the density."""

from __future__ import annotations

import math

import pytest
import torch

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.flow.realnvp import RealNVP
from genlab.models.flow.transforms import Chain, Logit, MultiScale, Squeeze
from genlab.spec import Batch, DataSpec

SMALL = {"num_couplings": 3, "hidden": (16,), "channels": 4, "num_blocks": 1}
CASES = [  # shape, options
    ((2,), {}),
    ((2,), {"num_couplings": 8, "hidden": (8, 8), "activation": "tanh"}),
    ((5,), {}),
    ((1, 4, 4), {}),
    ((1, 8, 8), {}),
    ((3, 8, 8), {"num_scales": 1, "num_blocks": 0}),
    ((3, 5, 7), {}),
    ((1, 28, 28), {}),
    ((3, 28, 28), {"num_scales": 2}),
    ((3, 32, 32), {}),
]


def make_spec(shape: tuple[int, ...], **changes) -> DataSpec:
    if len(shape) == 1:
        return DataSpec(shape, kind="points", levels=0, **changes)
    return DataSpec(shape, **({"dequantized": True} | changes))


def build(shape: tuple[int, ...], options: dict | None = None, **changes) -> RealNVP:
    """Return a float64 flow whose parameters are far from their initial values."""
    torch.manual_seed(0)
    model = RealNVP(make_spec(shape, **changes), **(SMALL | (options or {}))).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def random_data(model: RealNVP, n: int) -> torch.Tensor:
    torch.manual_seed(1)
    if model.spec.kind == "points":
        return torch.randn(n, *model.spec.shape, dtype=torch.float64)
    low, high = model.spec.range
    return low + (high - low) * torch.rand(n, *model.spec.shape, dtype=torch.float64)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape, options", CASES)
def test_inverse_reverses_forward(shape, options, train):
    model = build(shape, options).train(train)
    x = random_data(model, 3)
    z = model.encode(x)
    assert z.shape == (3, model.spec.dim) and (z.flatten() - x.flatten()).abs().max() > 0.1
    torch.testing.assert_close(model.transform.inverse(z), x, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(model.decode(z), x, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shape, options", [case for case in CASES if math.prod(case[0]) <= 200])
def test_log_det_matches_autograd(shape, options):
    model = build(shape, options)
    x = random_data(model, 2)
    _, ladj = model.transform(x)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.encode(v[None])[0], x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(model.spec.dim, model.spec.dim)).logabsdet
        torch.testing.assert_close(ladj[i], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"num_couplings": 4, "hidden": (8, 8), "activation": "tanh"}]
)
def test_density_integrates_to_one(options):
    model = build((2,), options)
    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = model.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-3


def test_samples_match_the_density():
    """The mean log-density of samples is minus the entropy."""
    model = build((2,))
    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    with torch.no_grad():
        log_p = model.log_prob(torch.cartesian_prod(axis, axis))
        entropy = -(log_p.exp() * log_p).sum() * (axis[1] - axis[0]) ** 2
        draws = -model.log_prob(model.sample(50_000))
    assert abs(draws.mean() - entropy) < 4 * draws.std() / 50_000**0.5


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_image_density_scales_with_the_data_range(value_range):
    """If the range is r times as wide, the density of an image is r**-D times as large."""
    unit = build((1, 4, 4), range=(0.0, 1.0))
    model = build((1, 4, 4), range=value_range)
    u = random_data(unit, 3)
    low, high = value_range
    expected = unit.log_prob(u) - 16 * math.log(high - low)
    torch.testing.assert_close(
        model.log_prob(low + (high - low) * u), expected, atol=1e-9, rtol=1e-9
    )
    assert low <= model.sample(20).min() and model.sample(20).max() <= high


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
def test_multi_scale_only_permutes_values(shape):
    """If the scales change no values, z is a permutation of x and the log-determinant is 0."""
    x = torch.randperm(math.prod(shape)).double().view(1, *shape)
    transform = MultiScale([Squeeze(), Squeeze(), Chain()], shape)
    z, ladj = transform(x)
    assert z[0].sort().values.tolist() == x.flatten().sort().values.tolist() and ladj.item() == 0
    torch.testing.assert_close(transform.inverse(z), x, atol=0, rtol=0)


def test_logit_is_zero_in_the_middle_and_finite_at_the_margins():
    z, ladj = Logit(0.05, (0.0, 1.0))(torch.tensor([[0.5], [0.0], [1.0]]).double())
    torch.testing.assert_close(
        z[:, 0], torch.tensor([0.0, math.log(0.05 / 0.95), math.log(0.95 / 0.05)]).double()
    )
    torch.testing.assert_close(ladj[1].item(), math.log(0.9 / (0.05 * 0.95)))


@pytest.mark.parametrize("shape, options", [((2,), {}), ((1, 8, 8), {})])
def test_every_parameter_gets_a_gradient_and_codes_round_trip(shape, options):
    model = build(shape, options)
    model.loss(Batch(random_data(model, 4)))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    fresh = RealNVP(make_spec(shape), **SMALL)
    z = fresh.prior(5)
    torch.testing.assert_close(fresh.encode(fresh.transform.inverse(z)), z, atol=1e-4, rtol=1e-4)
    further = {"trajectory", "forward_trajectory", "impute"}
    assert abilities(fresh) == {"sample", "encode", "decode", "prior", "log_prob"} | further


@pytest.mark.parametrize(
    "spec, options, fix",
    [
        (DataSpec((1, 8, 8)), {}, "dataset.dequantize=true"),
        (DataSpec((1, 8, 8), levels=2), {}, "dataset.binarize=none"),
        (DataSpec((1, 28, 28), dequantized=True), {"num_scales": 4}, "model.num_scales=3"),
        (DataSpec((1,), kind="points", levels=0), {}, "at least two"),
        (DataSpec((9,), kind="tokens", levels=0), {}, "images or points"),
    ],
)
def test_unsuitable_data_is_an_error(spec, options, fix):
    with pytest.raises(UserError, match=fix):
        RealNVP(spec, **options)


def test_labels_for_an_unconditional_flow_are_an_error():
    with pytest.raises(UserError, match="labels were given"):
        RealNVP(make_spec((2,)), **SMALL).sample(2, torch.tensor([0, 1]))
