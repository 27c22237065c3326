"""DDPM against closed forms: Gaussian data, Bayes' rule, identities of samplers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.networks import mlp, unet
from genlab.models.diffusion.samplers import (
    ancestral,
    ddim,
    ddim_timesteps,
    linspace_timesteps,
    quadratic_timesteps,
)
from genlab.models.diffusion.schedule import NoiseSchedule
from genlab.models.diffusion.vlb import (
    discretized_gaussian_log_prob,
    timestep_strata_bounds,
    vlb,
    vlb_step_coefficients,
    vlb_terms,
)
from genlab.nn.embeddings import fourier_features
from genlab.nn.unet import ResBlock, UNet
from genlab.spec import Batch, DataSpec

T = 1000
POINTS = DataSpec((2,), kind="points", levels=0)
LABELED = DataSpec((2,), kind="points", levels=0, num_classes=3)
NARROW = {
    "channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (),
    "dropout": 0.0,
}
SMALL = {"backbone": partial(unet, **NARROW)}

# schedule, s² of N(0, s²) -> minimum of the ε-loss; bound with β; bound with β̃; variance / s² of
# ancestral sampling with β̃ and with β, and of DDIM with 10, 50, 100 and 1000 steps
TRUTH = {
    ("linear", 1.0): (0.27551, 1.4189, 1.9975, (0.9911, 0.9999, 0.6917, 0.9294, 0.9640, 0.9963)),
    ("linear", 0.25): (0.17305, 0.7269, 1.2957, (0.9845, 1.0030, 0.5599, 0.8928, 0.9447, 0.9940)),
    ("linear", 0.0625): (0.09864, 0.0379, 0.5859, (0.9705, 1.0075, 0.3429, 0.8140, 0.9016, 0.9883)),
    ("cosine", 1.0): (0.49558, 1.4189, 1.9534, (0.9951, 1.0000, 0.8010, 0.9530, 0.9759, 0.9975)),
    ("cosine", 0.25): (0.32765, 0.7264, 1.2558, (0.9920, 1.0017, 0.7519, 0.9411, 0.9697, 0.9968)),
}
each_truth = pytest.mark.parametrize(("name", "s2"), TRUTH)


pytestmark = pytest.mark.usefixtures("float64")


def optimal_denoiser(schedule: NoiseSchedule, s2: float):
    """Return the optimal denoiser E[x_0 | x_t] of N(0, s²), for one time or times (B,)."""

    def denoise(x, t):
        t = torch.as_tensor(t).expand(len(x))
        ab = schedule.table_values_at("alphas_bar", t, x)
        return ab.sqrt() * s2 / (ab * s2 + 1 - ab) * x

    return denoise


def without_variance(denoise):
    """Return a denoiser with the signature that `vlb` requires, without a learned variance."""
    return lambda x, t, row: (denoise(x, t.long()), None)


def relative_variance(sampler, schedule: NoiseSchedule, s2: float, **options) -> float:
    """Return the exact variance of a sampler's output in units of s².

    With a linear denoiser each output is a linear combination of the random numbers, so unit
    vectors replace them.
    """
    drawn = iter(torch.eye(schedule.T + 1))
    levels = schedule.noise_levels(options.pop("times", range(schedule.T)))
    x = sampler(
        optimal_denoiser(schedule, s2),
        next(drawn)[None],
        levels,
        noise=lambda _: next(drawn)[None],
        **options,
    )
    return (x**2).sum().item() / s2


@each_truth
def test_variance_of_gaussian_samples_is_exact(name, s2):
    schedule, given = NoiseSchedule(name, T), TRUTH[name, s2][3]
    found = [relative_variance(ancestral, schedule, s2, variance=v) for v in ("beta_tilde", "beta")]
    found += [
        relative_variance(ddim, schedule, s2, times=ddim_timesteps(T, S))
        for S in (10, 50, 100, 1000)
    ]
    assert found == pytest.approx(given, abs=5.1e-5)


@each_truth
def test_minimum_of_loss_on_a_gaussian_is_exact(name, s2):
    schedule = NoiseSchedule(name, T)
    ab = schedule.alphas_bar
    assert (ab * s2 / (ab * s2 + 1 - ab)).mean().item() == pytest.approx(
        TRUTH[name, s2][0], abs=5.1e-6
    )
    # The same minimum from `q_sample` and `eps_from_x0`: the exact squared error of the optimal ε,
    # averaged over the signs of x_0 and ε.
    t, denoise = torch.arange(T).repeat(4), optimal_denoiser(schedule, s2)
    x0, eps = (
        torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        .double()
        .repeat_interleave(T, 0)
        .T[..., None]
    )
    x0 = x0 * math.sqrt(s2)
    xt = schedule.q_sample(x0, t, eps)
    error = schedule.eps_from_x0(denoise(xt, t), xt, t) - eps
    assert (error**2).mean().item() == pytest.approx(TRUTH[name, s2][0], abs=5.1e-6)


@each_truth
@pytest.mark.parametrize("kind", ["beta", "beta_tilde"])
def test_bound_of_a_gaussian_is_exact(name, s2, kind):
    schedule = NoiseSchedule(name, T)
    s, entropy = math.sqrt(s2), 0.5 * math.log(2 * math.pi * math.e * s2)
    # The bound is quadratic in (x_0, ε), so its mean over their signs is that over the Gaussians.
    x0 = torch.tensor([[s, s, -s, -s]])

    def noise(x):
        return torch.tensor([1.0, -1, 1, -1]).expand_as(x)

    nats = (
        -vlb(
            without_variance(optimal_denoiser(schedule, s2)),
            x0,
            schedule.noise_levels(range(T)),
            variance=kind,
            noise=noise,
        ).item()
        / 4
    )
    assert nats == pytest.approx(TRUTH[name, s2][1 if kind == "beta" else 2], abs=5.1e-5)
    assert nats > entropy - 1e-9  # at s² = 1 with β the bound is tight


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_posterior_follows_bayes_rule(name):
    """q(x_{t−1} | x_t, x_0) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x_0), as densities on a grid."""
    schedule = NoiseSchedule(name, 50)
    beta, ab = schedule.float64_tables["betas"], schedule.float64_tables["alphas_bar"]
    x0, xt = 0.7, -0.4
    for t in (1, 20, 49):
        mean, var = schedule.q_posterior(
            torch.tensor([[x0]]), torch.tensor([[xt]]), torch.tensor([t])
        )
        grid = torch.linspace(-1, 1, 4001) * 12 * var.sqrt().item() + mean.item()
        log_p = -((xt - (1 - beta[t]).sqrt() * grid) ** 2) / (2 * beta[t])
        log_p = log_p - (grid - ab[t - 1].sqrt() * x0) ** 2 / (2 * (1 - ab[t - 1]))
        p = (log_p - log_p.max()).exp()
        p = p / p.sum()
        assert (p * grid).sum().item() == pytest.approx(mean.item(), abs=1e-10)
        assert (p * (grid - mean.item()) ** 2).sum().item() == pytest.approx(var.item(), rel=1e-8)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_targets_convert_back_to_x0_and_eps(name, objective):
    schedule, t = NoiseSchedule(name, T), torch.tensor([0, 10, 500, 990])
    x0, eps = torch.randn(2, 4, 3)
    xt = schedule.q_sample(x0, t, eps)
    found = schedule.x0_from_prediction(
        objective, schedule.training_target(objective, x0, eps, t), xt, t
    )
    torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.eps_from_x0(x0, xt, t), eps, rtol=1e-9, atol=1e-9)


def test_change_of_precision_starts_from_float64():
    schedule = NoiseSchedule("linear", T).float()
    assert schedule.alphas_bar.dtype == torch.float32
    assert torch.equal(schedule.double().alphas_bar, schedule.float64_tables["alphas_bar"])


@pytest.mark.parametrize(
    "times",
    [range(T), linspace_timesteps(T, 37), ddim_timesteps(T, 37), quadratic_timesteps(T, 37)],
)
def test_ddim_with_eta_1_is_ancestral_sampling(times):
    schedule, start = NoiseSchedule("linear", T), torch.randn(5, 3)

    def denoise(x, t):
        return torch.tanh(3 * x + t / T)

    found = []
    for sampler, options in ((ddim, {"eta": 1.0}), (ancestral, {"variance": "beta_tilde"})):
        torch.manual_seed(1)
        found.append(sampler(denoise, start, schedule.noise_levels(times), **options))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 7, 50, T])
def test_timesteps_are_distinct_and_in_range(steps):
    for times in (
        ddim_timesteps(T, steps),
        linspace_timesteps(T, steps),
        quadratic_timesteps(T, steps),
    ):
        assert (
            len(set(times)) == steps and times == sorted(times) and times[0] >= 0 and times[-1] < T
        )
    assert (
        ddim_timesteps(T, steps)[0] == 0
        and linspace_timesteps(T, steps)[-1] == quadratic_timesteps(T, steps)[-1] == T - 1
    )
    borders = timestep_strata_bounds(T, steps)
    assert (
        borders[0] == 1
        and borders[-1] == T
        and borders.diff().min() >= 1
        and len(borders) == min(steps, T - 1) + 1
    )


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.97, 0.007), (-3.0, 0.01), (0.1, 20.0)])
def test_discretized_gaussian_sums_to_one(levels, mean, std):
    x = torch.linspace(-1, 1, levels, requires_grad=True)
    log_p = discretized_gaussian_log_prob(x, torch.tensor(mean), torch.tensor(std**2), levels)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_p.isfinite().all() and torch.autograd.grad(log_p.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discretized_gaussian_has_a_finite_gradient_in_float32(levels):
    """It was infinite for means far from the bin, which ended DiT's training on digits."""
    torch.manual_seed(0)
    x = torch.randint(levels, (5000,)) * 2 / (levels - 1) - 1
    mean, log_variance = torch.randn(5000) * torch.logspace(-3, 2, 5000), torch.rand(5000) * 14 - 12
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [v.to(dtype, copy=True).requires_grad_() for v in (mean, log_variance)]
        log_p = discretized_gaussian_log_prob(x.to(dtype), inputs[0], inputs[1].exp(), levels)
        results.append([log_p, *torch.autograd.grad(log_p.sum(), inputs)])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=3e-4, atol=1e-4)


@pytest.mark.parametrize("terms", [1, 10])
def test_bound_from_few_terms_is_unbiased(terms):
    schedule = NoiseSchedule("linear", 100)
    x0 = torch.full((40_000, 1), 0.6)
    denoise = without_variance(optimal_denoiser(schedule, 0.25))
    path = schedule.noise_levels(range(100))
    full = vlb(denoise, x0[:4000], path)
    few = vlb(denoise, x0, path, num_terms=terms)
    error = (full.var() / len(full) + few.var() / len(few)).sqrt()
    assert abs(few.mean() - full.mean()) < 4 * error


@pytest.mark.parametrize(
    "spec", [DataSpec((1, 5, 5), levels=2), DataSpec((1, 5, 5), dequantized=True), POINTS]
)
def test_elbo_is_finite_and_differentiable(spec):
    model = DDPM(spec, timesteps=20, **(SMALL if spec.kind == "image" else {})).eval()
    x = torch.rand(3, *spec.shape).round() * 2 - 1
    x.requires_grad_(not spec.is_discrete)
    nats = model.elbo(x)
    assert nats.shape == (3,) and nats.isfinite().all()
    if spec.is_discrete:
        assert (nats < 0).all()  # the logarithm of a probability
    assert model.elbo(x, num_terms=4).shape == (3,)
    assert (
        torch.autograd.grad(nats.sum(), next(model.network.parameters()), allow_unused=True)[0]
        is not None
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 13), (1, 8, 8), (2, 1, 5)])
@pytest.mark.parametrize("classes", [0, 3])
def test_unet_shapes(shape, classes):
    net = UNet(
        shape,
        channels=8,
        channel_mult=(1, 2, 2),
        num_blocks=1,
        attention_sides=(7, 4),
        num_classes=classes,
    )
    x, t = torch.randn(2, *shape), torch.tensor([0, 999])
    y = torch.tensor([0, 2]) if classes else None
    assert net(x, t, y).abs().max() == 0  # the last convolution starts at zero
    torch.nn.init.normal_(net.last.weight)
    net.eval()
    out = net(x, t, y)
    assert out.shape == x.shape
    torch.testing.assert_close(
        net(x[1:], t[1:], y[1:] if classes else None), out[1:]
    )  # items are independent
    layout = net.to(memory_format=torch.channels_last)(
        x.to(memory_format=torch.channels_last), t, y
    )
    torch.testing.assert_close(layout, out)


@pytest.mark.parametrize(
    ("side", "requested", "expected"),
    [
        (28, [7], [7]),
        (32, [16, 8], [16, 8]),
        (32, [31], [16]),
        (30, [8], [8]),
        (8, [16, 8], [8]),
        (32, [7], [8]),
        (64, [7], [16]),
        (30, [7], [8]),
        (32, [16, 1], [16, 8]),
    ],
)
def test_attention_is_at_requested_next_smaller_or_smallest_maps(side, requested, expected):
    shape, small_net = (1, side, side), {"channels": 8, "channel_mult": (1, 2, 2), "num_blocks": 1}
    net, seen = unet(shape, **small_net, attention_resolutions=requested), []
    for stages in net.down:
        for stage in stages:
            stage.attention.register_forward_hook(
                lambda m, x, _: seen.append((type(m).__name__, x[0].shape[-1]))
            )
    net(torch.zeros(1, *shape), torch.tensor([0]))
    assert [size for name, size in seen if name == "SelfAttention2d"] == expected


def test_networks_have_the_parameter_counts_of_the_papers():
    assert sum(p.numel() for p in DDPM(DataSpec((3, 32, 32))).parameters()) == 35_746_307
    with torch.device("meta"):  # improved DDPM, as the authors' code builds it
        network = unet(
            (3, 32, 32),
            num_blocks=3,
            attention_resolutions=(16, 8),
            num_heads=4,
            scale_shift_norm=True,
            outputs=6,
        )
    assert sum(p.numel() for p in network.parameters()) == 52_546_438


def test_scale_shift_norm_follows_its_formula():
    """norm(h)·(1 + scale) + shift, with scale and shift from the time (Nichol & Dhariwal 2021)."""
    torch.manual_seed(0)
    block = ResBlock(4, 8, 6, 0.0, scale_shift_norm=True).double()
    x, e = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 5, 5), (2, 6)))
    scale, shift = block.embed(e)[:, :, None, None].split(8, 1)
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, e), block.skip(x) + block.conv2(F.silu(h)))


@pytest.mark.parametrize(("rescale", "expected"), [(True, [0, 250, 999.75]), (False, None)])
def test_rescaled_timesteps_do_not_depend_on_t_max(rescale, expected):
    """With `rescale_timesteps` the network receives 1000·t/T, in training and in sampling."""
    model = DDPM(DataSpec((2,), kind="points", levels=0), timesteps=4000, rescale_timesteps=rescale)
    times = torch.tensor([0, 1000, 3999])
    seen = []
    model.network.register_forward_pre_hook(lambda _, x: seen.append(x[1]))
    model.predict_x0(torch.zeros(3, 2), times.float())
    model.predict_target_and_variance(torch.zeros(3, 2), times, None)
    for t in seen:
        assert t.tolist() == (expected or times.tolist())


@pytest.mark.parametrize(("count", "angles"), [(0, []), (3, [0.5, 1.0, 2.0, -0.25, -0.5, -1.0])])
def test_fourier_features_of_a_point(count, angles):
    x = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    expected = torch.tensor(
        [[0.5, -0.25, *map(math.sin, angles), *map(math.cos, angles)]], dtype=torch.float64
    )
    torch.testing.assert_close(fourier_features(x, count), expected, rtol=0, atol=1e-15)
    network = mlp((2,), hidden=(8,), num_frequencies=count)
    assert network.layers[0].in_features == expected.shape[1]


def test_every_parameter_gets_a_gradient():
    spec = DataSpec((1, 6, 6), num_classes=3)
    model = DDPM(
        spec,
        timesteps=20,
        conditional=True,
        backbone=partial(unet, **NARROW | {"attention_resolutions": (6,)}),
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    losses = model.loss(Batch(torch.randn(64, 1, 6, 6), torch.arange(64) % 3))
    losses["loss"].backward()
    assert losses["loss"].shape == ()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_loss_of_a_zero_network(objective):
    """A zero network has the loss E[target²]: 1, E[x_0²], or the mean of ᾱ + (1 − ᾱ) E[x_0²]."""
    model = DDPM(POINTS, objective=objective, backbone=partial(mlp, hidden=(4,)))
    torch.nn.init.zeros_(model.network.last.weight), torch.nn.init.zeros_(model.network.last.bias)
    ab = model.schedule.alphas_bar.mean().item()
    expected = {"eps": 1.0, "x0": 0.25, "v": ab + (1 - ab) * 0.25}[objective]
    with torch.no_grad():
        found = model.loss(Batch(torch.full((200_000, 2), 0.5)))["loss"].item()
    assert found == pytest.approx(expected, rel=0.01)


def test_guidance_interpolates_predictions():
    model = DDPM(LABELED, timesteps=10, conditional=True, backbone=partial(mlp, hidden=(16, 16)))
    x, t, y = torch.randn(4, 2), torch.tensor([6]), torch.tensor([0, 1, 2, 2])
    at = {g: model.make_denoiser(y, g)(x, 6) for g in (0.0, 0.5, 1.0, 3.0)}
    torch.testing.assert_close(at[1.0], model.predict_x0_clipped(x, t, y))
    torch.testing.assert_close(at[0.0], model.predict_x0_clipped(x, t, None))
    assert not torch.allclose(at[0.0], at[1.0])
    for g in (0.5, 3.0):  # a prediction is linear in the guided ε
        torch.testing.assert_close(at[g], at[0.0] + g * (at[1.0] - at[0.0]))


@pytest.mark.parametrize(
    "options",
    [{}, {"steps": 3}, {"sampler": "ddim", "steps": 4, "eta": 0.5}, {"variance": "beta_tilde"}],
)
@pytest.mark.parametrize("conditional", [False, True])
def test_samples_have_shape_dtype_and_range(options, conditional):
    spec = DataSpec((1, 5, 5), num_classes=3)
    model = DDPM(spec, timesteps=8, conditional=conditional, **SMALL)
    if conditional:
        options = options | {"guidance": 2.0}
        assert model.sample(2, torch.tensor([0, 2]), **options).shape == (2, 1, 5, 5)
    x = model.sample(3, **options)
    assert (
        x.shape == (3, 1, 5, 5)
        and x.dtype == torch.float64
        and x.abs().max() <= 1
        and not x.requires_grad
    )


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: DDPM(DataSpec((1, 8, 8), range=(0, 1))), r"dataset.range=\[-1,1\]"),
        (lambda: DDPM(DataSpec((9,), kind="tokens", vocab=5)), "not tokens"),
        (lambda: DDPM(POINTS, conditional=True), "conditional=false"),
        (lambda: DDPM(POINTS).sample(2, torch.tensor([0, 1])), "conditional=true"),
        (lambda: DDPM(POINTS).sample(2, guidance=2.0), "conditional=true"),
        (
            lambda: DDPM(LABELED, conditional=True, label_dropout=0.0).sample(2, guidance=2.0),
            "label_dropout",
        ),
        (
            lambda: DDPM(LABELED, conditional=True, label_dropout=0.0).elbo(torch.zeros(2, 2)),
            "label_dropout",
        ),
        (
            lambda: DDPM(LABELED, conditional=True, label_dropout=0.0).eps_mse(torch.zeros(2, 2)),
            "label_dropout",
        ),
        (
            lambda: DDPM(LABELED, conditional=True, label_dropout=0.0).encode(torch.zeros(2, 2)),
            "label_dropout",
        ),
        (lambda: DDPM(POINTS).sample(2, dynamic_threshold=0.9), "sampler.dynamic_threshold"),
        (
            lambda: DDPM(POINTS, objective="v", zero_terminal_snr=True, min_snr_gamma=5.0),
            "model.min_snr_gamma",
        ),
        (lambda: DDPM(POINTS).sample(2, sampler="dimm"), "did you mean 'ddim'"),
        (lambda: DDPM(POINTS).sample(2, steps=1001), "1…1000"),
        (lambda: DDPM(POINTS).sample(2, eta=1.0), "sampler=ddim"),
        (lambda: DDPM(POINTS).sample(2, sampler="ddim", variance="beta"), "sampler=ancestral"),
    ],
)
def test_error_names_the_fix(act, words):
    with pytest.raises(UserError, match=words):
        act()


@each_truth
@pytest.mark.parametrize("kind", ["beta", "beta_tilde"])
def test_terms_of_the_bound_of_a_gaussian_are_exact(name, s2, kind):
    """L_T, each L_{t−1} and L_0 equal their closed forms, and sum to the bound."""
    schedule, s = NoiseSchedule(name, T), math.sqrt(s2)
    x0 = torch.tensor([[s, s, -s, -s]])
    path = schedule.noise_levels(range(T))

    def noise(x):
        return torch.tensor([1.0, -1, 1, -1]).expand_as(x)

    denoise = without_variance(optimal_denoiser(schedule, s2))
    options = {"variance": kind, "noise": noise}
    terms = vlb_terms(denoise, x0, path, **options)
    assert torch.equal(-vlb(denoise, x0, path, **options), terms.total)
    assert terms.total.item() == pytest.approx(
        (terms.prior + terms.reconstruction + terms.steps.sum()).item(), rel=1e-14
    )
    table = vlb_step_coefficients(path)
    alpha2, sigma2 = table["alpha"] ** 2, table["sigma"] ** 2
    posterior_variance = s2 * sigma2 / (alpha2 * s2 + sigma2)  # Var(x_0 | x_t) = E (x_0 − x̂_0)²
    variance = table["beta" if kind == "beta" else "clipped"]
    ratio = table["beta_tilde"] / variance
    error = table["weight"] ** 2 * posterior_variance / variance
    steps = 0.5 * (ratio - 1 - ratio.log() + error)
    assert torch.allclose(terms.steps[0] / 4, steps[1:], rtol=1e-9, atol=1e-14)
    last = 0.5 * ((2 * math.pi * variance[0]).log() + posterior_variance[0] / variance[0])
    assert terms.reconstruction.item() / 4 == pytest.approx(last.item(), rel=1e-9)
    a2, v = alpha2[-1].item(), sigma2[-1].item()
    assert terms.prior.item() / 4 == pytest.approx(0.5 * (a2 * s2 + v - 1 - math.log(v)), abs=1e-12)


def test_bound_terms_of_a_model_sum_to_its_bound():
    model = DDPM(POINTS, timesteps=30).eval()
    x = torch.randn(5, 2)
    for num_terms in (None, 7):
        torch.manual_seed(0)
        bound = model.elbo(x, num_terms=num_terms)
        torch.manual_seed(0)
        terms = model.bound_terms(x, num_terms=num_terms)
        assert torch.equal(-bound, terms.total)
        assert (
            terms.steps.shape == (5, num_terms or 29)
            and len(terms.borders) == terms.steps.shape[1] + 1
        )
        assert terms.borders[0] == 1 and terms.borders[-1] == 30
