"""Every flow against the definitions: inverse, Jacobian, integral of the density."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from genlab.abilities import abilities
from genlab.errors import UserError
from genlab.models.flow.affine import AffineFlow
from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.base_distribution import Logistic, Normal
from genlab.models.flow.elementwise import Affine, Shift, Spline
from genlab.models.flow.flow import Flow
from genlab.models.flow.glow import Glow
from genlab.models.flow.iaf import IAF
from genlab.models.flow.linear import ActNorm, Invertible1x1Conv, Triangular
from genlab.models.flow.maf import MAF
from genlab.models.flow.nice import NICE
from genlab.models.flow.nsf import NSF
from genlab.models.flow.realnvp import RealNVP
from genlab.models.flow.transforms import Chain, Flatten, Inverse, Permute
from genlab.nn.masked import MaskedMLP
from genlab.spec import Batch, DataSpec


@dataclass
class Case:
    model: type[Flow]
    shape: tuple[int, ...]
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join(
            [self.model.__name__, "x".join(map(str, self.shape)), *map(str, self.options.values())]
        )


NETS = {
    NICE: {"hidden": (16,), "activation": "tanh"},
    Glow: {"steps_per_scale": 2, "channels": 4, "hidden": (16,)},
    MAF: {"num_layers": 3, "hidden": (16,), "activation": "tanh"},
    IAF: {"num_layers": 3, "hidden": (16,), "activation": "tanh"},
    NSF: {
        "num_layers": 2,
        "hidden": (16,),
        "activation": "tanh",
        "num_bins": 5,
        "channels": 4,
        "num_blocks": 1,
    },
    AffineFlow: {},
    RealNVP: {"num_couplings": 3, "hidden": (16,), "channels": 4, "num_blocks": 1},
}
PLANE = [*(Case(model, (2,)) for model in NETS), Case(NSF, (2,), {"layer_type": "coupling"})]
CASES = [
    *PLANE,
    *(Case(model, (5,)) for model in NETS if model is not RealNVP),
    Case(NSF, (5,), {"layer_type": "coupling"}),
    *(Case(model, (1, 4, 4)) for model in NETS if model is not RealNVP),
    Case(NSF, (1, 4, 4), {"layer_type": "coupling"}),
    Case(NICE, (3, 3, 3)),
    Case(MAF, (1, 3, 5), {"num_layers": 1}),
    Case(Glow, (3, 8, 4), {"num_scales": 2}),
    Case(Glow, (1, 8, 8)),
    Case(Glow, (1, 8, 8), {"alpha": 0.05}),
    Case(NSF, (3, 8, 4), {"layer_type": "coupling", "num_scales": 2}),
    Case(AffineFlow, (1,)),
]


def each_case(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=str)


def build(case: Case, *, classes: int = 0) -> Flow:
    """Return a float64 flow whose parameters are far from their initial values."""
    torch.manual_seed(0)
    points = len(case.shape) == 1
    spec = DataSpec(
        case.shape,
        kind="points" if points else "image",
        levels=0 if points else 256,
        num_classes=classes,
        dequantized=not points,
    )
    model = case.model(spec, **(NETS[case.model] | case.options), conditional=classes > 0).double()
    # smaller with products of matrices, which lose digits
    scale = 0.05 if any(isinstance(m, Invertible1x1Conv) for m in model.modules()) else 0.2
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn_like(p))
    return model


def random_data(model: Flow, n: int) -> torch.Tensor:
    torch.manual_seed(1)
    if model.spec.kind == "points":
        return torch.randn(n, *model.spec.shape, dtype=torch.float64)
    return 1.9 * torch.rand(n, *model.spec.shape, dtype=torch.float64) - 0.95


@each_case(CASES)
def test_inverse_and_log_det_match_forward_and_autograd(case):
    model = build(case)
    x = random_data(model, 3)
    z, ladj = model.transform(x)
    assert z.shape == (3, model.spec.dim) and (z.flatten() - x.flatten()).abs().max() > 0.1
    torch.testing.assert_close(model.transform.inverse(z), x, atol=1e-8, rtol=1e-8)
    noise = model.prior(3)
    torch.testing.assert_close(
        model.encode(model.transform.inverse(noise)), noise, atol=1e-6, rtol=1e-6
    )
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.encode(v[None])[0], x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(model.spec.dim, model.spec.dim)).logabsdet
        torch.testing.assert_close(ladj[i], expected, atol=1e-8, rtol=1e-8)


@each_case(PLANE)
def test_density_of_each_class_integrates_to_one_and_matches_samples(case):
    """The mean of log p(x|y) over samples is the integral of p log p.

    Without y the density is the mean over classes.
    """
    model = build(case, classes=2)
    axis = torch.linspace(-18, 18, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    by_class = []
    with torch.no_grad():
        for k in (0, 1):
            log_p = model.log_prob(grid, torch.full((len(grid),), k))
            cell = (axis[1] - axis[0]) ** 2
            assert abs((log_p.exp().sum() * cell).item() - 1) < 2e-3
            entropy = -(log_p.exp() * log_p.clamp(min=-1e3)).sum() * cell
            y = torch.full((5_000,), k)
            draws = -model.log_prob(model.sample(5_000, y), y)
            assert abs(draws.mean() - entropy) < 5 * draws.std() / 5_000**0.5 + 2e-3
            by_class.append(log_p)
        assert (by_class[0] - by_class[1]).abs().max() > 0.1
        some = grid[::997]
        expected = torch.stack(by_class)[:, ::997].logsumexp(0) - math.log(2)
        torch.testing.assert_close(model.log_prob(some), expected)


@each_case(
    [
        *PLANE,
        Case(Glow, (1, 8, 8)),
        Case(NSF, (1, 8, 8), {"layer_type": "coupling"}),
        Case(NICE, (1, 4, 4)),
        Case(MAF, (1, 4, 4)),
    ]
)
@pytest.mark.parametrize("classes", [0, 3])
def test_every_parameter_gets_a_gradient_and_abilities_are_those_of_flows(case, classes):
    model = build(case, classes=classes)
    y = torch.arange(6) % 3 if classes else None
    model.loss(Batch(random_data(model, 6), y))["loss"].backward()
    without_gradient = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not without_gradient
    further = {"trajectory", "forward_trajectory", "impute"}
    assert abilities(model) == {"sample", "encode", "decode", "prior", "log_prob"} | further
    assert model.sample(4).shape == (4, *case.shape)


@pytest.mark.parametrize("model", [NICE, RealNVP])
def test_initial_flow_of_couplings_is_the_identity(model):
    flow = model(DataSpec((2,), kind="points", levels=0), **NETS[model]).double()
    x = 3 * torch.randn(50, 2).double()
    z, ladj = flow.transform(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(ladj, torch.zeros(50).double())


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8)])
def test_logit_log_prob_is_the_density_in_logit_space(shape):
    """For x in [−1, 1], log p(x) is log p(logit(u)) plus Σ log dlogit/dx.

    Here u = alpha + (1 − 2 alpha)(x + 1)/2.
    """
    model = build(Case(MAF, shape, {"alpha": 0.01}))
    x = random_data(model, 4)
    u = 0.01 + 0.98 * (x + 1) / 2
    z, ladj = model.transform.transforms[1](torch.logit(u))
    torch.testing.assert_close(model.logit_log_prob(x), model.base.log_prob(z) + ladj)
    slope = (0.49 / (u * (1 - u))).log().flatten(1).sum(1)
    torch.testing.assert_close(model.log_prob(x), model.logit_log_prob(x) + slope)
    with pytest.raises(UserError, match="does not use a logit"):
        build(Case(NICE, shape)).logit_log_prob(x)


# --- transforms and base distributions ------------------------------------------------------------


@pytest.mark.parametrize("bins, bound", [(2, 1.0), (8, 3.0), (30, 5.0)])
def test_spline_is_monotone_and_its_slope_integrates_to_its_values(bins, bound):
    torch.manual_seed(0)
    spline = Spline(bins, bound)
    p = torch.randn(1, spline.num_params).double()
    x = torch.linspace(-1.3 * bound, 1.3 * bound, 50_001).double()
    z, log_slope = spline(x, p.expand(len(x), -1))
    assert (z.diff() > 0).all()
    outside = x.abs() >= bound
    assert torch.equal(z[outside], x[outside]) and (log_slope[outside] == 0).all()
    torch.testing.assert_close(
        z[0] + torch.cumulative_trapezoid(log_slope.exp(), x), z[1:], atol=2e-4, rtol=0
    )
    torch.testing.assert_close(spline.inverse(z, p.expand(len(x), -1)), x, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(spline(x, torch.zeros_like(p).expand(len(x), -1))[0], x)


def test_spline_is_accurate_in_single_precision():
    torch.manual_seed(0)
    spline = Spline(16, 5.0)
    x, p = 3 * torch.randn(20_000), 2 * torch.randn(20_000, spline.num_params)
    z, log_slope = spline(x, p)
    exact_z, exact_slope = spline(x.double(), p.double())
    assert (z - exact_z).abs().max() < 1e-3 and (log_slope - exact_slope).abs().mean() < 1e-4
    p.requires_grad_()
    sum(value.sum() for value in spline(x, p)).backward()
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-11)])
@pytest.mark.parametrize("size_scale", [0, 1, 3])  # of the bins; 0: all equal
@pytest.mark.parametrize("slope_scale", [3, 30])  # of the log-slopes, bounded by 5
def test_spline_inverse_does_not_cancel_at_steep_slopes(dtype, tolerance, size_scale, slope_scale):
    """The quadratic for ξ had errors of up to 10 in a box of 10."""
    torch.manual_seed(0)
    spline, n = Spline(8, 5.0), 20_000
    sizes, slopes = size_scale * torch.randn(n, 16), slope_scale * torch.randn(n, 7)
    p = torch.cat([sizes, slopes], 1).to(dtype)
    z = torch.linspace(-5.2, 5.2, n, dtype=dtype)
    x = spline.inverse(z, p)
    back, log_slope = spline(x, p)
    assert (back - z).abs().max() < tolerance
    exact_slope = spline(x.double(), p.double())[1]
    assert (log_slope - exact_slope).abs().quantile(0.999) < 100 * tolerance
    if size_scale == 0:  # elsewhere z is too flat to determine x
        torch.testing.assert_close(spline.inverse(spline(z, p)[0], p), z, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "map", [Shift(), Affine(), Spline(4, 2.0)], ids=lambda map: type(map).__name__
)
def test_autoregressive_jacobian_is_triangular_and_inverse_swaps_directions(map):
    torch.manual_seed(0)
    order = torch.tensor([2, 0, 3, 1])
    layer = Autoregressive(
        MaskedMLP(4, (20,), map.num_params, order=order, activation="tanh"), map
    ).double()
    torch.nn.init.normal_(layer.net.layers[-1].weight)
    x = torch.randn(3, 4).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], x[0])
    assert (jacobian[order[:, None] < order] == 0).all() and (jacobian.diagonal() > 0).all()
    z, ladj = layer(x)
    back, other = Inverse(layer)(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(other, -ladj)
    torch.testing.assert_close(Inverse(layer).inverse(x), z)


@pytest.mark.parametrize("shape", [(6,), (6, 3, 2)])
def test_invertible_convolution_starts_as_a_rotation_with_the_exact_log_det(shape):
    torch.manual_seed(0)
    conv = Invertible1x1Conv(6).double()
    weight = conv.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6).double(), atol=1e-5, rtol=0)
    with torch.no_grad():
        for p in conv.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(2, *shape).double()
    z, ladj = conv(x)
    torch.testing.assert_close(z, torch.einsum("ij,bj...->bi...", conv.weight, x))
    expected = math.prod(shape[1:]) * torch.linalg.slogdet(conv.weight).logabsdet
    torch.testing.assert_close(ladj, expected.expand(2))


@pytest.mark.parametrize("shape", [(6,), (6, 3, 2)])
def test_actnorm_initializes_to_mean_0_and_std_1_per_channel(shape):
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(40, *shape).double()
    model = ActNorm(6).double()
    with torch.no_grad():
        model.initialize_from_data(x)
        z = model(x)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(6).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(6).double(), atol=1e-5, rtol=0)


def test_each_layer_is_initialized_from_the_output_of_earlier_layers():
    model = build(Case(Glow, (1, 8, 8)))
    x, seen = random_data(model, 64), []
    model.initialize_from_data(x)
    norms = [m for m in model.transform.modules() if isinstance(m, ActNorm)]
    hooks = [
        m.register_forward_hook(
            lambda m, given, out: seen.append(out[0].transpose(0, 1).flatten(1))
        )
        for m in norms
    ]
    with torch.no_grad():
        model.transform(x)
    assert len(seen) == len(norms) == len(hooks) > 3
    for z in seen:
        torch.testing.assert_close(z.mean(1), torch.zeros(len(z)).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(
            z.std(1, correction=0), torch.ones(len(z)).double(), atol=1e-2, rtol=0
        )


def test_affine_flow_is_initialized_to_the_gaussian_of_its_data():
    torch.manual_seed(0)
    covariance = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.5]]).double()
    gaussian = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0, 0.0]).double(), covariance
    )
    model = AffineFlow(DataSpec((3,), kind="points", levels=0)).double()
    model.initialize_from_data(gaussian.sample((400_000,)))
    x = gaussian.sample((1000,))
    assert (model.log_prob(x) - gaussian.log_prob(x)).abs().max() < 0.1 and (
        model.log_prob(x) - gaussian.log_prob(x)
    ).abs().mean() < 0.01
    triangular = Triangular(3).double()
    with torch.no_grad():
        triangular.initialize_from_data(torch.randn(2, 3).double())  # fewer points than dimensions
    assert torch.isfinite(triangular.weight).all()


def test_permute_and_flatten_only_move_values():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    layer = Chain(Flatten((3, 2, 2)), Permute(torch.randperm(12)))
    z, ladj = layer(x)
    assert (
        torch.equal(z.sort(1).values, x.flatten(1))
        and (ladj == 0).all()
        and torch.equal(layer.inverse(z), x)
    )


@pytest.mark.parametrize("base", [Normal, Logistic])
def test_base_distributions_match_their_samples(base):
    torch.manual_seed(0)
    z = torch.linspace(-5, 5, 11).double()[:, None]
    logistic = F.logsigmoid(z[:, 0]) + F.logsigmoid(-z[:, 0])
    expected = torch.distributions.Normal(0, 1).log_prob(z[:, 0]) if base is Normal else logistic
    torch.testing.assert_close(base(1).double().log_prob(z), expected)
    conditional = base(2, num_classes=3).double()
    torch.nn.init.normal_(conditional.loc), torch.nn.init.normal_(conditional.log_scale)
    draws = conditional.sample(100_000, torch.full((100_000,), 2))
    eps = (draws - conditional.loc[2]) * (-conditional.log_scale[2]).exp()
    std = 1.0 if base is Normal else math.pi / math.sqrt(3)
    assert (eps.mean(0).abs() < 0.03).all() and ((eps.std(0) / std - 1).abs() < 0.02).all()
    assert conditional.sample(5).shape == (5, 2)


@pytest.mark.parametrize("model", [m for m in NETS if m is not RealNVP])
def test_unsuitable_data_is_an_error(model):
    with pytest.raises(UserError, match="dataset.dequantize=true"):
        model(DataSpec((1, 8, 8)))
    with pytest.raises(UserError, match="images or points"):
        model(DataSpec((9,), kind="tokens", levels=0))
    with pytest.raises(UserError, match="conditional=false"):
        model(DataSpec((2,), kind="points", levels=0), conditional=True)
    with pytest.raises(UserError, match="model.conditional=true"):
        build(Case(model, (2,))).sample(2, torch.tensor([0, 1]))
    if model is not AffineFlow:
        with pytest.raises(UserError, match="at least two"):
            model(DataSpec((1,), kind="points", levels=0))


@pytest.mark.parametrize(
    "model, shape, options, fix",
    [
        (Glow, (1, 28, 28), {"num_scales": 3}, "model.num_scales=2"),
        (Glow, (1, 7, 7), {}, "dataset.size"),
        (NSF, (1, 6, 6), {"layer_type": "coupling", "num_scales": 2}, "model.num_scales=1"),
        (NSF, (1, 6, 6), {"num_bins": 1}, "at least 2"),
    ],
)
def test_unsuitable_options_are_an_error(model, shape, options, fix):
    with pytest.raises(UserError, match=fix):
        model(DataSpec(shape, dequantized=True), **options)
