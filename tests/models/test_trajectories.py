"""Trajectories: the states that samplers report, and those of the processes from data on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.kinds import first_of_each_kind
from helpers.recipes import QUICK_FIRST, build_training_objects, model_class, small_overrides

from genlab.abilities import TrajectoryState, abilities
from genlab.config.recipes import list_recipes
from genlab.models.autoregressive.likelihoods import make_likelihood
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.edm import EDM
from genlab.models.diffusion.flow_matching import FlowMatching
from genlab.models.diffusion.samplers import SAMPLERS, transition_coefficients
from genlab.models.flow.glow import Glow
from genlab.models.flow.maf import MAF
from genlab.models.flow.nice import NICE
from genlab.models.flow.nsf import NSF
from genlab.models.flow.realnvp import RealNVP
from genlab.spec import DataSpec

PLANE = DataSpec((2,), kind="points", levels=0)
IMAGES = DataSpec((1, 8, 8), range=(0.0, 1.0), levels=17, dequantized=True)
ABLE = {
    verb: [r.name for r in list_recipes() if verb in r.abilities()]
    for verb in ("trajectory", "forward_trajectory")
}


def recorded(run, *args, **options) -> list[TrajectoryState]:
    """Return copies of the states that a trajectory reports."""
    states: list[TrajectoryState] = []

    def keep(state: TrajectoryState) -> None:
        known = None if state.known is None else state.known.clone()
        states.append(replace(state, x=state.x.clone(), known=known))

    run(keep, *args, **options)
    return states


# --- every recipe ---------------------------------------------------------------------------------


def cases() -> list[tuple[str, str | None]]:
    """Return each recipe with a trajectory, with each of its samplers or None."""
    recipes = {r.name: r.model for r in list_recipes()}
    return [
        (name, sampler)
        for name in QUICK_FIRST
        if name in ABLE["trajectory"]
        for sampler in recipes[name].samplers or (None,)
    ]


def is_quick_kind(case: tuple[str, str | None]) -> tuple[str, str | None]:
    return model_class(case[0]).split(".")[2], case[1]


@pytest.mark.parametrize(("recipe", "sampler"), first_of_each_kind(cases(), is_quick_kind))
def test_a_trajectory_ends_in_the_samples_of_the_same_seed(recipe, sampler):
    _, _, trainer = build_training_objects(*small_overrides(recipe))
    model = trainer.eval_model()
    options = {} if sampler is None else {"sampler": sampler}
    if model.step_by_step:
        options["steps"] = 4
    torch.manual_seed(5)
    samples = model.sample(3, **options)
    torch.manual_seed(5)
    states = recorded(model.trajectory, 3, **options)
    assert torch.equal(states[-1].x, samples)
    after = torch.rand(2)
    torch.manual_seed(5)
    model.sample(3, **options)
    assert torch.equal(torch.rand(2), after), "a report must not draw random numbers"
    assert len(states) > 1 and all(state.x.shape == samples.shape for state in states)
    times = [state.time for state in states]
    assert times in (sorted(times), sorted(times, reverse=True)) and len({*times}) == len(times)
    for state in states:
        if state.next_probs is not None:
            torch.testing.assert_close(state.next_probs.sum(1), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "recipe",
    first_of_each_kind(
        [name for name in QUICK_FIRST if name in ABLE["forward_trajectory"]],
        lambda name: model_class(name).split(".")[2],
    ),
)
def test_a_forward_trajectory_starts_at_the_items(recipe):
    _, dataset, trainer = build_training_objects(*small_overrides(recipe))
    model, x = trainer.eval_model(), dataset.head("validation", 3).x
    states = recorded(model.forward_trajectory, x, **({"steps": 4} if model.step_by_step else {}))
    assert len(states) > 1 and all(torch.isfinite(state.x).all() for state in states)
    if "codec" not in dict(model.named_children()):  # latent diffusion starts at reconstructions
        torch.testing.assert_close(states[0].x, x)


def test_trajectories_are_found():
    families = {model_class(name).split(".")[2] for name in ABLE["trajectory"]}
    assert families == {"autoregressive", "boltzmann", "diffusion", "flow", "gan"}
    assert {"progan", "rbm", "gpt_text", "ldm", "text2image"} <= {*ABLE["trajectory"]}
    assert {*ABLE["forward_trajectory"]} < {*ABLE["trajectory"]}


# --- diffusion ------------------------------------------------------------------------------------

PATHS = {
    "ddpm": lambda: DDPM(PLANE, timesteps=50),
    "cosine": lambda: DDPM(PLANE, timesteps=50, noise_schedule="cosine"),
    "terminal": lambda: DDPM(PLANE, timesteps=50, zero_terminal_snr=True, objective="v"),
    "edm": lambda: EDM(PLANE),
    "flow_matching": lambda: FlowMatching(PLANE),
}


@pytest.mark.parametrize("name", PATHS)
def test_forward_process_has_the_mean_and_variance_of_the_schedule(name, float64):
    model, n = PATHS[name](), 20_000
    x0 = torch.tensor([3.0, -1.0]).expand(n, 2)
    states = recorded(model.forward_trajectory, x0)
    levels = {model.trajectory_state(level, x0).time: level for level in path_levels(model)}
    assert [s.time for s in states] == sorted(levels) and torch.equal(states[0].x, x0)
    for state in states[1:]:
        level = levels[state.time]
        error = level.sigma * math.sqrt(1 / n)
        torch.testing.assert_close(state.x.mean(0), level.alpha * x0[0], atol=5 * error, rtol=0)
        variance = state.x.var(0)
        torch.testing.assert_close(
            variance, torch.full_like(variance, level.sigma**2), rtol=5 * math.sqrt(2 / n), atol=0
        )
        assert state.numbers["SNR"] == pytest.approx((level.alpha / level.sigma) ** 2, abs=1e-12)
        if "ᾱ" in state.numbers:
            assert state.numbers["ᾱ"] == pytest.approx(1 - level.sigma**2, abs=1e-12)
    if name == "ddpm":  # ᾱ_t = ∏ (1 − β_s), eq. 4 of the paper
        betas = torch.linspace(1e-4 * 20, 0.02 * 20, 50)
        alphas_bar = [s.numbers["ᾱ"] for s in states[1:]]
        torch.testing.assert_close(torch.tensor(alphas_bar), torch.cumprod(1 - betas, 0))


def path_levels(model):
    """Return the levels of the forward process, which has as many steps as the path."""
    return model.noise_levels(model.max_steps or 100, "ancestral")


@pytest.mark.parametrize("name", PATHS)
def test_steps_of_the_forward_process_add_up_to_the_closed_form(name):
    # q(x_t | x_s) of all steps: the product of the scales is α, and the variances sum to σ²
    alpha, variance = 1.0, 0.0
    levels = path_levels(PATHS[name]())
    for now, then in zip(levels[-2::-1], levels[:0:-1], strict=True):
        scale, beta, _ = transition_coefficients(now, then)
        alpha, variance = scale * alpha, scale**2 * variance + beta
        assert alpha == pytest.approx(now.alpha, rel=1e-12, abs=1e-15)
        assert variance == pytest.approx(now.sigma**2, rel=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reported_states_and_guesses_are_those_of_the_denoiser(sampler, float64):
    # data at one point a: the denoiser is a everywhere, so x_t = α a + σ ε at every level
    class Point(EDM):
        def predict_x0(self, x, t, y=None):
            return torch.full_like(x, 2.0), None

    model = Point(PLANE)
    states = recorded(model.trajectory, 4, sampler=sampler, steps=6)
    assert len(states) == 7 and [s.time for s in states][-1] == 0
    for state in states[:-1]:
        assert (state.guess == 2).all()
    torch.testing.assert_close(states[-1].x, torch.full((4, 2), 2.0))
    if sampler in ("ddim", "euler", "heun", "dpm_solver"):  # ε stays the same
        noises = [(state.x - 2) / state.time for state in states[:-1]]
        for noise in noises[1:]:
            torch.testing.assert_close(noise, noises[0])


def test_a_trajectory_starts_at_given_noise():
    model, start = FlowMatching(PLANE), torch.randn(5, 2)
    states = recorded(model.trajectory, 5, start=start, steps=3)
    assert torch.equal(states[0].x, start)


# --- flows ----------------------------------------------------------------------------------------

FLOWS = {
    "realnvp": lambda: RealNVP(PLANE, num_couplings=4, hidden=(8,)),
    "maf": lambda: MAF(PLANE, num_layers=3, hidden=(8,)),
    "nice": lambda: NICE(PLANE, num_couplings=3, hidden=(8,)),
    "realnvp_images": lambda: RealNVP(IMAGES, channels=4, num_blocks=1, num_scales=2),
    "glow_images": lambda: Glow(IMAGES, steps_per_scale=2, num_scales=2, channels=4, alpha=0.05),
    "nsf_images": lambda: NSF(
        IMAGES, layer_type="coupling", num_layers=1, num_scales=2, channels=4, num_blocks=1
    ),
    "maf_images": lambda: MAF(IMAGES, num_layers=2, hidden=(16,), alpha=0.05),
}


def build_flow(name: str):
    """Return a flow whose steps are not the identity."""
    model = FLOWS[name]()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x = torch.rand(6, *model.spec.shape) if model.spec.kind == "image" else torch.randn(6, 2)
    return model, x


@pytest.mark.parametrize("name", FLOWS)
def test_steps_of_a_flow_invert_and_their_log_dets_sum_to_log_prob(name, float64):
    model, x = build_flow(name)
    forward = recorded(model.forward_trajectory, x)
    num_steps = model.transform.num_steps
    assert [s.time for s in forward] == list(range(num_steps, -1, -1))
    z = model.encode(x)
    log_p = model.base.log_prob(z) + forward[-1].numbers["log|det|"]
    torch.testing.assert_close(log_p, model.log_prob(x))

    back = recorded(model.trajectory, len(x), start=z)
    assert [s.time for s in back] == list(range(num_steps + 1))
    torch.testing.assert_close(back[-1].numbers["log p"], model.log_prob(x), rtol=1e-6, atol=1e-6)
    for there, here in zip(reversed(forward), back, strict=True):
        torch.testing.assert_close(here.x, there.x, rtol=1e-6, atol=1e-6)
        parts = here.numbers["log|det|"] + there.numbers["log|det|"]
        torch.testing.assert_close(parts, forward[-1].numbers["log|det|"], rtol=1e-6, atol=1e-6)
    if model.spec.kind == "points":
        torch.testing.assert_close(back[0].x, z)


@pytest.mark.parametrize("name", ["realnvp_images", "glow_images", "nsf_images"])
def test_values_of_a_multiscale_flow_stay_at_their_pixels(name, float64):
    # moved back without a change, the values of a code are those of the image, each once
    model, _ = build_flow(name)
    z = torch.arange(64.0).expand(2, 64)
    placed = model.transform.move_back(z)
    assert placed.shape == (2, 1, 8, 8)
    assert torch.equal(placed.flatten(1).sort(1).values, z)


# --- autoregressive -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "mixture"])
@pytest.mark.parametrize("channels", [1, 3])
def test_level_probs_are_those_of_log_prob(name, channels, float64):
    if name == "bernoulli":
        spec = DataSpec((channels, 1, 1), levels=2, range=(0.0, 1.0))
    else:
        spec = DataSpec((channels, 1, 1), levels=6)
    likelihood = make_likelihood(name, spec, num_components=3)
    params = torch.randn(4, likelihood.num_params)
    probs = likelihood.level_probs(params)
    assert probs.shape == (4, spec.levels)
    torch.testing.assert_close(probs.sum(1), torch.ones(4))
    if channels == 1 or not likelihood.is_joint:
        values = likelihood.levels_to_values(torch.arange(spec.levels), params)
        for k, value in enumerate(values):
            x = value.expand(4, 1) if likelihood.is_joint else value.expand(4)
            log_p = likelihood.log_prob(params, x)
            torch.testing.assert_close(probs[:, k].log(), log_p)


@pytest.mark.parametrize(
    "recipe",
    ["made", "pixelcnn", "gpt_pixels", pytest.param("gpt_text", marks=pytest.mark.slow)],
)
def test_known_values_are_kept_and_grow_by_one_draw(recipe):
    _, _, trainer = build_training_objects(*small_overrides(recipe))
    model = trainer.eval_model()
    states = recorded(model.trajectory, 2)
    assert len(states) == states[-1].time + 1 and states[-1].known is None
    for number, state in enumerate(states[:-1]):
        assert (state.known.flatten(1).sum(1) == number).all()
        final = states[-1].x
        assert torch.equal(state.x[state.known], final[state.known])


def test_the_orders_of_made_are_merged():
    overrides = ("model.num_masks=3", "model.order_agnostic=true")
    _, _, trainer = build_training_objects(*small_overrides("made"), *overrides)
    model = trainer.eval_model()
    torch.manual_seed(1)
    states = recorded(model.trajectory, 6)
    assert len({tuple(row.tolist()) for row in states[3].known.flatten(1)}) > 1
    assert all(torch.equal(s.x[s.known], states[-1].x[s.known]) for s in states[:-1])


# --- GANs and Gibbs chains ------------------------------------------------------------------------


def test_progressive_gan_reports_each_resolution():
    _, _, trainer = build_training_objects(*small_overrides("progan"))
    model = trainer.eval_model()
    z = model.prior(2)
    for level, expected in ((0.0, 1), (1.0, 2)):
        model.set_growth_level(level)
        states = recorded(model.trajectory, 2, start=z)
        assert len(states) == expected and torch.equal(states[-1].x, model.decode(z))
    model.set_growth_level(0.0)  # the image at 4×4 is the one that G made at that level
    assert torch.equal(states[0].x, model.decode(z))


@pytest.mark.parametrize(
    "recipe",
    ["rbm", "dbm", "dbn", *(pytest.param(r, marks=pytest.mark.slow) for r in ("bm", "grbm"))],
)
def test_gibbs_chains_start_at_the_items_and_report_each_step(recipe):
    _, dataset, trainer = build_training_objects(*small_overrides(recipe))
    model, x = trainer.eval_model(), dataset.head("validation", 2).x
    torch.manual_seed(3)
    states = recorded(model.forward_trajectory, x, steps=5)
    torch.manual_seed(3)
    last = model.gibbs_chain(x, 5)
    assert [state.time for state in states] == list(range(6))
    assert torch.equal(states[0].x, x)
    assert torch.equal(states[-1].x, last) or recipe == "dbn"  # it shows the means of the pixels
    assert "trajectory" in abilities(model)
