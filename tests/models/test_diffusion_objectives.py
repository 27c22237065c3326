"""Paths, objectives and samplers against closed forms of Gaussians and a mixture."""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers.kinds import first_of_each_kind

from genlab.errors import UserError
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.models.diffusion.networks import dit, mlp, unet
from genlab.models.diffusion.ode_likelihood import ode_log_prob
from genlab.models.diffusion.samplers import (
    SAMPLERS,
    ddim,
    euler,
    heun,
    normal_std_ratio,
    shift_levels,
)
from genlab.models.diffusion.schedule import CLEAN, NoiseSchedule
from genlab.models.diffusion.vlb import eps_mse, vlb
from genlab.spec import Batch, DataSpec

POINTS = DataSpec((2,), kind="points", levels=0)
LABELED = DataSpec((2,), kind="points", levels=0, num_classes=3)
IMAGES = DataSpec((1, 8, 8), num_classes=3)
TINY = partial(
    unet, channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,), dropout=0.0
)
MODELS = {
    "ddpm": partial(DDPM, timesteps=50),
    "learned": partial(DDPM, timesteps=50, variance="learned", noise_schedule="cosine"),
    "zero_snr": partial(
        DDPM, timesteps=50, zero_terminal_snr=True, objective="v", noise_schedule="sigmoid"
    ),
    "min_snr": partial(DDPM, timesteps=50, objective="v", min_snr_gamma=5.0),
    "edm": partial(EDM),
    "flow_matching": partial(FlowMatching),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))


pytestmark = pytest.mark.usefixtures("float64")


class Mixture:
    """A mixture of Gaussians in one dimension with equal weights and standard deviations."""

    def __init__(self, means: tuple[float, ...] = (-0.9, 0.1, 0.8), s: float = 0.2) -> None:
        self.means, self.s = torch.tensor(means), s

    def denoiser(self, level_of):
        """Return E[x_0 | x] as a function of x (B, 1) and t."""

        def denoise(x, t):
            a, sigma = level_of(t)
            var = a**2 * self.s**2 + sigma**2
            logits = -((x - a * self.means) ** 2) / (2 * var)  # (B, K)
            inner = self.means + a * self.s**2 / var * (x - a * self.means)
            return (logits.softmax(1) * inner).sum(1, keepdim=True)

        return denoise

    def log_prob(self, x, a=1.0, sigma=0.0):
        var = a**2 * self.s**2 + sigma**2
        p = -((x - a * self.means) ** 2) / (2 * var) - 0.5 * math.log(2 * math.pi * var)
        return p.logsumexp(1) - math.log(len(self.means))

    def cdf(self, x):
        return torch.special.ndtr((x - self.means) / self.s).mean(1)


def path(name):
    """Return a path: noise_levels(steps), (α, σ) of a time, straight_path and prior_std."""
    if name == "flow":
        model = FlowMatching(POINTS)
        return model.noise_levels, lambda t: (1 - t, t), True, 1.0
    if name == "edm":
        return EDM(POINTS).noise_levels, lambda t: (1.0, t), False, 80.0
    schedule = NoiseSchedule("cosine", 4096)
    table = (
        schedule.float64_tables["sqrt_ab"].tolist(),
        schedule.float64_tables["sqrt_1_ab"].tolist(),
    )
    model = DDPM(POINTS, timesteps=4096, noise_schedule="cosine")
    return (
        partial(model.noise_levels, sampler="ancestral"),
        lambda t: (table[0][int(t)], table[1][int(t)]),
        True,
        1.0,
    )


# Heun and Euler on EDM's levels: standard deviation of samples of N(0, s²) relative to s, by steps
GAINS = {
    ("heun", 0.25): {5: 2.516, 9: 1.278, 18: 1.0553, 36: 1.0122},
    ("heun", 1.0): {5: 1.907, 9: 1.231, 18: 1.0448, 36: 1.0100},
    ("euler", 0.25): {18: 0.846},
    ("euler", 1.0): {18: 0.860},
}


@pytest.mark.parametrize(("sampler", "s2"), GAINS, ids=str)
def test_edm_samples_of_a_gaussian_have_the_known_error(sampler, s2):
    def denoise(x, t):
        return s2 / (s2 + t**2) * x

    for steps, gain in GAINS[sampler, s2].items():
        x = SAMPLERS[sampler].function(
            denoise, torch.full((1, 1), math.sqrt(s2 + 80.0**2)), EDM(POINTS).noise_levels(steps)
        )
        assert x.item() / math.sqrt(s2) == pytest.approx(gain, abs=6e-4 if gain < 2 else 6e-3)


@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.0), (2, 0.400), (10, 0.8616), (50, 0.9708)])
def test_flow_matching_samples_of_a_gaussian_have_the_known_error(steps, ratio):
    s2 = 0.25

    def denoise(x, t):
        return (1 - t) * s2 / ((1 - t) ** 2 * s2 + t**2) * x

    x = euler(
        denoise, torch.ones(1, 1), FlowMatching(POINTS).noise_levels(steps), straight_path=True
    )
    assert x.item() / math.sqrt(s2) == pytest.approx(ratio, abs=5.1e-5)


def pair_with_paths(cases: list[tuple]) -> list[tuple]:
    """Return each case with each path; the first of each case have different paths."""
    names = ("edm", "flow", "ddpm")
    return [(names[(first + at) % 3], *case) for first in range(3) for at, case in enumerate(cases)]


@pytest.mark.parametrize(
    ("name", "sampler", "order"),
    first_of_each_kind(
        pair_with_paths([("euler", 1), ("ddim", 1), ("heun", 2), ("dpm_solver", 2)]),
        lambda case: case[1],
    ),
)
def test_samplers_converge_at_their_order(name, sampler, order):
    """The error at the end of a trajectory of a mixture's ODE falls as steps^−order."""
    levels, level_of, straight, prior_std = path(name)
    denoise = Mixture().denoiser(level_of)
    start = prior_std * torch.tensor([[-1.3], [-0.4], [0.3], [1.1]])
    how = {"straight_path": straight} if sampler in ("euler", "heun") else {}

    def follow(steps):
        return SAMPLERS[sampler].function(denoise, start, levels(steps), **how)

    # evenly spaced t is uneven in λ at the ends, so DPM-Solver++ reaches its order with more steps
    fine = 8 if (name, sampler) == ("flow", "dpm_solver") else 1
    exact = heun(denoise, start, levels(4096 * min(fine, 4)), straight_path=straight)
    errors = [(follow(steps * fine) - exact).abs().max().item() for steps in (128, 256, 512)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(found - order) < 0.35 for found in slopes), (errors, slopes)


@pytest.mark.parametrize(
    ("make", "s2", "share"),
    [
        (DDPM, 0.01, 0.3),
        (DDPM, 0.25, 0.65),
        (DDPM, 1.0, 0.96),
        (FlowMatching, 0.01, 0.5),
    ],
)
def test_quadratic_timesteps_reduce_the_error_of_ddim(make, s2, share):
    """On a Gaussian, the standard deviation from few steps is closer to the true one.

    The gain is larger for narrower data.
    """
    model = make(POINTS)

    def log_error(steps: int, spacing: str) -> float:
        levels = model.noise_levels(steps, "ddim", spacing)
        table = {at.t: at for at in levels[:-1]}
        assert len(table) == steps

        def denoise(x, t):
            alpha, sigma = table[t].alpha, table[t].sigma
            return alpha * s2 / (alpha**2 * s2 + sigma**2) * x

        start = (levels[0].alpha ** 2 * s2 + levels[0].sigma ** 2) ** 0.5
        return abs(math.log(ddim(denoise, torch.full((1, 1), start), levels).item() / s2**0.5))

    assert log_error(100, "quadratic") < share * log_error(100, "uniform")
    assert log_error(1000, "quadratic") < 0.02


@pytest.mark.parametrize(
    ("make", "sampler"), [(EDM, "ddim"), (DDPM, "heun"), (FlowMatching, "euler")]
)
def test_quadratic_timesteps_need_ddim_and_evenly_spaced_times(make, sampler):
    with pytest.raises(UserError, match=r"sampler\.timestep_spacing"):
        make(POINTS).sample(2, sampler=sampler, steps=4, timestep_spacing="quadratic")


@pytest.mark.parametrize("name", ["edm", "flow", "ddpm"])
def test_time_shift_multiplies_the_noise_of_each_level(name):
    """The first level stays, a flow's times follow eq. 23, and many steps reach the same end."""
    levels, level_of, straight, prior_std = path(name)
    model = {
        "edm": EDM,
        "flow": FlowMatching,
        "ddpm": partial(DDPM, timesteps=4096, noise_schedule="cosine"),
    }[name](POINTS)
    grid = levels(8)
    shifted = list(shift_levels(grid, 3.0, model.nearest_noise_level))
    assert shifted[0] == grid[0] and shifted[-1] == CLEAN and len(shifted) == len(grid)
    noise = [at.sigma / at.alpha if at.alpha else math.inf for at in shifted]
    assert all(a >= b for a, b in pairwise(noise))
    for at, found in zip(grid[1:-1], noise[1:-1], strict=True):
        assert found == pytest.approx(min(3 * at.sigma / at.alpha, noise[0]), rel=0.01)
    if name == "flow":
        assert [at.t for at in shifted[:-1]] == pytest.approx(
            [3 * at.t / (1 + 2 * at.t) for at in grid[:-1]]
        )
    denoise, start = Mixture().denoiser(level_of), prior_std * torch.tensor([[-1.3], [0.3]])
    ends = [
        euler(
            denoise,
            start,
            levels(1024),
            straight_path=straight,
            time_shift=k,
            nearest_noise_level=model.nearest_noise_level,
        )
        for k in (1.0, 2.0)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=0.01)


SOME = {"noise_sigma_interval": (0.2, 3.0)}
NOISY = {
    "heun": (
        {"churn_gamma": 0.0},
        {"churn_gamma": 0.03},
        {"churn_gamma": 0.4},
        {"churn_gamma": 0.4, **SOME},
    ),
    "dpm_solver": ({"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0}, {"eta": 1.0, **SOME}),
    "ddim": ({"eta": 1.0, **SOME},),
}


@pytest.mark.parametrize("name", ["edm", "flow", "ddpm"])
@pytest.mark.parametrize(
    ("sampler", "how"),
    [(sampler, how) for sampler, options in NOISY.items() for how in options],
    ids=str,
)
def test_added_noise_preserves_the_distribution(name, sampler, how):
    """The variance of samples of a Gaussian is exact.

    With a linear denoiser a sample is a linear combination of the noises, here unit vectors.
    """
    steps, s2 = 400, 0.25
    levels, level_of, straight, prior_std = path(name)
    grid = levels(steps)
    drawn = iter(torch.eye(steps + 1))

    def denoise(x, t):
        a, sigma = level_of(t)
        return a * s2 / (a**2 * s2 + sigma**2) * x

    model = {
        "edm": EDM,
        "flow": FlowMatching,
        "ddpm": partial(DDPM, timesteps=4096, noise_schedule="cosine"),
    }[name](POINTS)
    extra = (
        {"straight_path": straight, "nearest_noise_level": model.nearest_noise_level}
        if sampler == "heun"
        else {}
    )
    x = SAMPLERS[sampler].function(
        denoise,
        prior_std * next(drawn)[None],
        grid,
        noise=lambda _: next(drawn)[None],
        **how,
        **extra,
    )
    assert (x**2).sum().item() / s2 == pytest.approx(
        1, abs=0.03 if sampler == "ddim" else 0.02
    )  # ddim is of first order
    noises = steps - len(list(drawn))
    if "noise_sigma_interval" in how:
        assert noises == sum(0.2 < at.sigma / at.alpha <= 3 for at in grid if at.alpha) > 0
    else:
        assert (noises == 0) == (not any(how.values())), (
            "noise is drawn if and only if an option requests it"
        )


@pytest.mark.parametrize(("sampler", "share"), [("heun", 0.4), ("dpm_solver", 0.25)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_karras_levels_reduce_the_error_of_few_steps(schedule, sampler, share):
    """On narrow data, Karras's levels have a fraction of the error of evenly spaced times."""
    model = DDPM(POINTS, noise_schedule=schedule)
    alpha, sigma = (model.schedule.float64_tables[key].tolist() for key in ("sqrt_ab", "sqrt_1_ab"))
    denoise = Mixture(s=0.05).denoiser(lambda t: (alpha[int(t)], sigma[int(t)]))
    start = torch.linspace(-2, 2, 21)[:, None]
    how = {} if sampler == "dpm_solver" else {"straight_path": True}
    exact = heun(denoise, start, model.noise_levels(1000, "heun"), straight_path=True)
    errors = {
        levels: (
            SAMPLERS[sampler].function(denoise, start, model.noise_levels(15, levels), **how)
            - exact
        )
        .square()
        .mean()
        .sqrt()
        for levels in ("heun", "ancestral")
    }
    assert errors["heun"] < share * errors["ancestral"]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "spec",
    [POINTS, DataSpec((4, 8, 8), levels=0, range=(-math.inf, math.inf))],
    ids=["points", "codes"],
)
def test_small_error_of_eps_gives_small_error_of_samples(spec, schedule, sampler):
    """Without clipping, an error of ε must not become a huge x_0 where there is little signal."""
    torch.manual_seed(0)
    model = DDPM(
        spec,
        noise_schedule=schedule,
        objective="eps",
        backbone=partial(unet, channels=8) if spec.kind == "image" else None,
    )
    mixture = Mixture(s=0.05)
    alpha, sigma = (model.schedule.float64_tables[key].tolist() for key in ("sqrt_ab", "sqrt_1_ab"))
    optimal = mixture.denoiser(lambda t: (alpha[int(t)], sigma[int(t)]))

    def denoise(x, t):  # ε is wrong by 0.02
        return optimal(x, t) + 0.02 * sigma[int(t)] / alpha[int(t)]

    how = {} if sampler == "dpm_solver" else {"straight_path": model.straight_path}
    x = SAMPLERS[sampler].function(
        denoise, torch.randn(2000, 1), model.noise_levels(15, sampler), **how
    )
    assert x.abs().max() < 1.5 and abs(x.mean() - mixture.means.mean()) < 0.1


@pytest.mark.parametrize(
    ("T", "steps"), [(1, 1), (5, 5), (10, 7), (1000, 2), (1000, 15), (1000, 1000)]
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_karras_levels_have_the_requested_number_and_both_ends(T, steps, zero_snr):
    model = DDPM(POINTS, timesteps=T, objective="v", zero_terminal_snr=zero_snr and T > 1)
    times = [level.t for level in model.noise_levels(steps, "heun")[:-1]]
    assert len(times) == steps and times[0] == T - 1 and (steps == 1 or times[-1] == 0)
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("name", ["edm", "flow", "ddpm"])
def test_euler_is_ddim_without_noise(name):
    levels, level_of, straight, prior_std = path(name)
    denoise, start = Mixture().denoiser(level_of), prior_std * torch.randn(5, 1)
    found = euler(denoise, start, levels(20), straight_path=straight)
    torch.testing.assert_close(
        found, SAMPLERS["ddim"].function(denoise, start, levels(20)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    ("name", "sampler"),
    first_of_each_kind(
        pair_with_paths([("ancestral",), ("ddim",), ("euler",), ("heun",), ("dpm_solver",)]),
        lambda case: case[1],
    ),
)
def test_samples_have_the_distribution_of_the_data(name, sampler):
    """Kolmogorov–Smirnov distance of 20,000 samples from the mixture's distribution function."""
    levels, level_of, straight, prior_std = path(name)
    mixture, how = Mixture(), {"straight_path": straight} if sampler in ("euler", "heun") else {}
    how |= {"eta": 0.7} if sampler == "ddim" else {}
    x = SAMPLERS[sampler].function(
        mixture.denoiser(level_of), prior_std * torch.randn(20_000, 1), levels(500), **how
    )
    u = mixture.cdf(x.sort(0).values)
    distance = (u - (torch.arange(len(u)) + 0.5) / len(u)).abs().max().item()
    assert distance < 1.95 / math.sqrt(len(u)) + 0.006  # p = 0.001, plus the error of 500 steps


@pytest.mark.parametrize("name", ["edm", "flow", "ddpm"])
def test_ode_density_is_exact(name):
    levels, level_of, _, prior_std = path(name)
    mixture, x = Mixture(), torch.linspace(-1.8, 1.3, 7)[:, None]
    up = levels(400)[-2::-1]
    found = ode_log_prob(mixture.denoiser(level_of), x, up, prior_std=prior_std)
    torch.testing.assert_close(found, mixture.log_prob(x), atol=0.004, rtol=0)


@pytest.mark.parametrize("name", ["edm", "flow", "ddpm"])
def test_bound_is_slightly_below_the_density(name):
    """For a Gaussian, with a linear optimal denoiser, the bound is quadratic in (x_0, ε).

    So the mean over their signs is exact.
    """
    levels, level_of, _, prior_std = path(name)
    s2, path_ = 0.25, levels(1000)

    def denoise(x, t, row):
        a, sigma = map(torch.tensor, zip(*map(level_of, t.tolist()), strict=True))
        return (a * s2 / (a**2 * s2 + sigma**2))[:, None] * x, None

    x0, noise = (
        torch.full((4, 1), s2**0.5),
        lambda x: torch.tensor([1.0, -1.0]).repeat(len(x) // 2)[:, None],
    )
    nats = -vlb(denoise, x0, path_, prior_std=prior_std, noise=noise).mean()
    entropy = 0.5 * math.log(2 * math.pi * math.e * s2)
    assert entropy - 1e-3 < nats < entropy + 0.05


@pytest.mark.parametrize("name", ["edm", "flow", "ddpm"])
def test_eps_mse_of_a_gaussian_is_exact(name):
    """ε given x_t has the variance α²s²/(α²s² + σ²), whose mean over levels is the error."""
    levels, level_of, *_ = path(name)
    s2, path_ = 0.25, levels(1000)

    def denoise(x, t, row):
        a, sigma = map(torch.tensor, zip(*map(level_of, t.tolist()), strict=True))
        return (a * s2 / (a**2 * s2 + sigma**2))[:, None] * x

    x0, noise = (
        torch.full((4, 1), s2**0.5),
        lambda x: torch.tensor([1.0, -1.0]).repeat(len(x) // 2)[:, None],
    )
    exact = [a**2 * s2 / (a**2 * s2 + sigma**2) for _, a, sigma in path_[:-1]]
    torch.testing.assert_close(
        eps_mse(denoise, x0, path_, noise=noise).mean().item(), sum(exact) / len(exact)
    )
    x0 = x0[:2].repeat(2000, 1)
    few = eps_mse(denoise, x0, path_, num_terms=7, noise=noise).view(-1, 2).mean(1)
    assert (
        few.std() > 0
        and abs(few.mean() - sum(exact) / len(exact)) < 4 * few.std() / len(few) ** 0.5
    )


def test_hutchinson_estimate_is_unbiased():
    """For a Gaussian with correlated values the mean over signs is the exact divergence."""
    L = torch.tensor([[0.6, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.5]])
    cov = L @ L.T

    def denoise(x, t):
        return x @ torch.linalg.solve(cov + t**2 * torch.eye(3), cov)

    x, up = torch.randn(1, 3) @ L.T, EDM(POINTS).noise_levels(60)[-2::-1]
    one = ode_log_prob(denoise, x.expand(20_000, 3), up, prior_std=80.0, num_probes=1)
    all_probes = ode_log_prob(denoise, x, up, prior_std=80.0, num_probes=3)
    assert one.std() > 1e-3
    assert abs(one.mean() - all_probes.item()) < 4 * one.std() / math.sqrt(len(one))
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), cov).log_prob(x)
    torch.testing.assert_close(all_probes, exact, atol=0.02, rtol=0)


@each_model
def test_encode_and_decode_are_exact_on_a_gaussian(make):
    """With the optimal denoiser of N(0, s²) the ODE is linear: the code of x is x/s."""
    s2, options = 0.25, {"timesteps": 1000} if make.func is DDPM else {}
    model = make(POINTS, backbone=partial(mlp, hidden=(4,)), **options)
    levels = {level.t: level for level in model.noise_levels(200, "heun")}

    def predict_x0(x, t, y=None):
        level = levels[t.item()]
        return level.alpha * s2 / (level.alpha**2 * s2 + level.sigma**2) * x, None

    model.predict_x0 = predict_x0
    x = torch.randn(6, 2) * s2**0.5
    z = model.encode(x, steps=200)
    torch.testing.assert_close(z, x / s2**0.5, atol=0, rtol=0.02)
    torch.testing.assert_close(model.decode(z, steps=200), x, atol=0, rtol=0.003)
    assert model.prior(3).shape == (3, 2)


@each_model
@pytest.mark.parametrize(
    "backbone", [TINY, partial(dit, width=16, num_layers=2, num_heads=2)], ids=["unet", "dit"]
)
def test_every_sampler_works_with_every_path_and_network(make, backbone):
    model = make(IMAGES, backbone=backbone, conditional=True).eval()
    y = torch.tensor([0, 2])
    for sampler in model.samplers:
        x = model.sample(
            2,
            y,
            sampler=sampler,
            steps=4,
            guidance=3.0,
            guidance_interval=(0.1, 5.0),
            dynamic_threshold=0.95,
        )
        assert x.shape == (2, 1, 8, 8) and x.isfinite().all() and x.abs().max() <= 1
    losses = model.loss(Batch(torch.rand(4, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 1])))
    assert losses["loss"].shape == () and losses["loss"].isfinite()
    assert model.ode_log_prob(torch.zeros(2, 1, 8, 8), y, steps=4).shape == (2,)


@each_model
def test_guidance_acts_inside_its_interval_only(make):
    model = make(LABELED, backbone=partial(mlp, hidden=(16, 16)), conditional=True)
    x, y, t = torch.randn(4, 2), torch.tensor([0, 1, 2, 2]), model.noise_levels(5)[2].t
    at = {g: model.make_denoiser(y, g)(x, t) for g in (0.0, 1.0, 3.0)}
    time = torch.full((1,), t)
    torch.testing.assert_close(at[1.0], model.predict_x0_clipped(x, time, y))
    torch.testing.assert_close(at[0.0], model.predict_x0_clipped(x, time, None))
    torch.testing.assert_close(at[3.0], at[0.0] + 3 * (at[1.0] - at[0.0]))
    level = model.noise_to_signal(t)
    torch.testing.assert_close(
        model.make_denoiser(y, 3.0, guidance_interval=(level / 2, level))(x, t), at[3.0]
    )
    torch.testing.assert_close(
        model.make_denoiser(y, 3.0, guidance_interval=(level, 2 * level))(x, t), at[1.0]
    )


def test_dynamic_thresholding_scales_into_the_range():
    model = DDPM(IMAGES, backbone=TINY)
    wild = torch.randn(2, 1, 8, 8) * torch.tensor([0.1, 3.0]).view(2, 1, 1, 1)
    model.predict_x0 = lambda x, t, y=None: (wild, None)
    found = model.make_denoiser(dynamic_threshold=0.9)(wild, 3)
    torch.testing.assert_close(found[0], wild[0])  # within the range, so unchanged
    s = wild[1].abs().quantile(0.9)
    torch.testing.assert_close(found[1], wild[1].clamp(-s, s) / s)


@pytest.mark.parametrize("s", [0.002, 0.05, 0.5, 3.0, 80.0])
def test_edm_preconditioning_has_unit_variance(s):
    """Input and target of the network have variance 1 at every noise level (table 1).

    This holds for data of variance σ_data².
    """
    model = EDM(POINTS, sigma_data=0.5)
    x0, eps, sigma = 0.5 * torch.randn(400_000, 1), torch.randn(400_000, 1), torch.tensor([s])
    c_skip, c_out, c_in, _ = model.preconditioning_coefficients(sigma, x0)
    x = x0 + s * eps
    assert (c_in * x).std().item() == pytest.approx(1, abs=0.005)
    assert ((x0 - c_skip * x) / c_out).std().item() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_edm_passes_c_noise_on_as_the_time(scale):
    """The network receives ln(σ)/4 (table 1), times `c_noise_scale`."""
    model, seen = EDM(POINTS, c_noise_scale=scale), []
    model.network.register_forward_pre_hook(lambda _, x: seen.append(x[1]))
    model.predict_x0(torch.zeros(2, 2), torch.tensor([0.5, 80.0]))
    torch.testing.assert_close(seen[0], scale * torch.tensor([0.5, 80.0]).log() / 4)


def test_learned_variance_is_between_its_bounds():
    schedule, t = NoiseSchedule("cosine", 100), torch.arange(1, 100)
    low, high = (schedule.float64_tables[key][1:].log() for key in ("beta_tilde", "betas"))
    for v, expected in ((0.0, low), (1.0, high), (0.5, (low + high) / 2)):
        torch.testing.assert_close(
            schedule.learned_log_variance(torch.full((99, 1), v), t)[:, 0], expected
        )
    model = DDPM(IMAGES, variance="learned", timesteps=20, backbone=TINY)
    _, v = model.predict_target_and_variance(
        torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 19]), None
    )
    torch.testing.assert_close(v, torch.full_like(v, 0.5))  # a zero network starts in the middle
    model.loss(Batch(torch.rand(8, 1, 8, 8) * 2 - 1))["vlb"].backward()
    eps_grad, v_grad = model.network.last.weight.grad.chunk(2)
    assert v_grad.any() and not eps_grad.any()  # only the variance learns from the bound


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_min_snr_gamma_weights_the_error_of_x0(objective):
    """For any prediction, the weighted error is min(SNR, γ)·|x̂_0 − x_0|²."""
    model = DDPM(POINTS, objective=objective, min_snr_gamma=5.0)
    schedule, t = model.schedule, torch.tensor([3, 100, 500, 900])
    x0, eps, guess = torch.randn(3, 4, 2)
    xt = schedule.q_sample(x0, t, eps)
    error = (guess - schedule.training_target(objective, x0, eps, t)).square().mean(1)
    x0_error = (schedule.x0_from_prediction(objective, guess, xt, t) - x0).square().mean(1)
    torch.testing.assert_close(
        model.loss_weight(t) * error, schedule.snr(t).clamp(max=5.0) * x0_error
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_zero_terminal_snr(name):
    plain, zero = (
        NoiseSchedule(name, 100).float64_tables["alphas_bar"],
        NoiseSchedule(name, 100, zero_terminal_snr=True).float64_tables["alphas_bar"],
    )
    assert zero[-1].item() == pytest.approx(0, abs=1e-15) and plain[-1] > 0
    assert zero[0].item() == pytest.approx(plain[0].item(), rel=1e-12)
    assert (zero.diff() < 0).all() and (plain.diff() < 0).all()
    with pytest.raises(UserError, match="model.objective=v"):
        DDPM(POINTS, zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: FlowMatching(POINTS).sample(2, eta=1.0), "sampler=dpm_solver, ddim"),
        (lambda: EDM(POINTS, sigma_min=90.0), "sigma_max"),
        (lambda: EDM(POINTS, backbone=dit), "backbone=mlp"),
        (lambda: EDM(IMAGES, backbone=partial(dit, patch_size=3)), "patch"),
        (lambda: EDM(IMAGES, backbone=partial(dit, width=30)), "num_heads"),
    ],
)
def test_error_names_the_fix(act, words):
    with pytest.raises(UserError, match=words):
        act()


# --- few steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [6, 18])
@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_ancestral_sampling_in_few_steps_has_the_deviation_of_normal_data(kind, steps, capsys):
    """With the exact denoiser of N(0, s²); β alone makes it 1.4 times as large in 18 EDM steps."""
    model = EDM(POINTS, sigma_data=0.5) if kind == "edm" else FlowMatching(POINTS)
    model.double()
    std = model.data_std

    def predict_x0(x, t, y=None):
        ratio = model.noise_to_signal(float(t))
        alpha = 1.0 if kind == "edm" else 1 / (1 + ratio)
        sigma = ratio if kind == "edm" else 1 - alpha
        return alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * x, None

    model.predict_x0 = predict_x0
    torch.manual_seed(0)
    x = model.sample(20_000, sampler="ancestral", steps=steps)
    assert x.std().item() == pytest.approx(std, rel=0.04)
    assert "inaccurate" not in capsys.readouterr().err
    x = model.sample(20_000, sampler="ancestral", steps=steps, variance="beta")
    error = capsys.readouterr().err
    assert ("is inaccurate: even samples" in error) == (kind == "edm")
    if kind == "edm":
        stated = float(re.search(r"would have ([\d.]+) times", error)[1])
        assert stated == pytest.approx(x.std().item() / std, rel=0.03) and stated > 1.3
    model.sample(2, sampler="ancestral", steps=steps, variance="beta")
    assert not capsys.readouterr().err, "it is said once"


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("heun", {}), ("heun", {"churn_gamma": 0.3}), ("ddim", {"eta": 0.6}), ("euler", {}),
     ("dpm_solver", {"eta": 1.0})],
)  # fmt: skip
def test_deviation_of_samples_of_normal_data_is_predicted(sampler, options):
    """`normal_std_ratio` equals what drawing many samples gives, for each sampler."""
    model = EDM(POINTS, sigma_data=0.7).double()
    levels = model.noise_levels(9, sampler)
    integrate = model.make_sampler(sampler, **options)

    def denoise(x, t):
        return 0.49 / (0.49 + t**2) * x

    torch.manual_seed(1)
    x = integrate(denoise, 80 * torch.randn(40_000, dtype=torch.float64), levels)
    ratio = normal_std_ratio(
        integrate,
        levels,
        model.nearest_noise_level,
        data_std=0.7,
        prior_std=80.0,
        adds_noise=sampler != "euler",
    )
    assert x.std().item() / 0.7 == pytest.approx(ratio, rel=0.02)
