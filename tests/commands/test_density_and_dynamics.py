"""genlab density and genlab dynamics: integrals, divergences and the value of the GAN's game."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from genlab.abilities import abilities
from genlab.builders import entrypoints
from genlab.commands.density import density
from genlab.commands.dynamics import dynamics
from genlab.errors import UserError
from genlab.inference.density_grids import Grid
from genlab.inference.divergences import (
    cell_probabilities_on_curve,
    game_value,
    js_divergence,
    optimal_discriminator,
)
from genlab.models.classical.gmm import GMM
from genlab.models.classical.pca import PCA
from genlab.models.gan.gan import GAN
from genlab.spec import DataSpec

SMALL_DATA = ("dataset.n=400", "dataset.num_heldout=200")
LINE, PLANE = ("dataset=gaussian_1d", *SMALL_DATA), ("dataset=ring", *SMALL_DATA)
# A generator without hidden layers, so that G(z) is normal.
LINEAR_GAN = (
    "model=gan",
    "model.noise=normal",
    "model.hidden=[]",
    "model.discriminator_hidden=[8]",
)


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


# --- genlab density -------------------------------------------------------------------------------

DENSITIES = [  # options of the model, the data, options of the command, error of the integral
    (("model=affine",), LINE, {"cells": 400}, 1e-5),
    (("model=flow_points",), LINE, {"cells": 400}, 2e-3),
    (("model=gmm", "model.num_components=8"), PLANE, {"cells": 200}, 1e-4),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            (("model=gmm", "model.num_components=3"), LINE, {"cells": 2000}, 1e-5),
            (("model=grbm", "model.hidden=4"), LINE, {"cells": 400}, 1e-4),
            (("model=realnvp_points", "model.num_couplings=2"), PLANE, {"cells": 200}, 1e-4),
            (("model=affine",), PLANE, {"cells": 200}, 1e-4),
            (("model=nsf",), PLANE, {"cells": 200}, 2e-3),
            (("model=maf_points",), PLANE, {"cells": 200}, 2e-3),
            (("model=iaf",), PLANE, {"cells": 200}, 2e-3),
            (("model=nice",), PLANE, {"cells": 200}, 2e-3),
            (("model=pca", "model.latent=1"), PLANE, {"cells": 200}, 1e-4),
            (("model=grbm", "model.hidden=4"), PLANE, {"cells": 200}, 1e-3),
        ]
    ),
]


@pytest.mark.parametrize(("model", "data", "options", "tolerance"), DENSITIES)
def test_density_integrates_to_one(model, data, options, tolerance, train_run, tmp_path):
    """The integral over a wide range is 1, and the record has the truth beside it."""
    run = load(train_run(*model, *data))
    record = density(run, range=(-9, 9), **options, n=50, output_dir=str(tmp_path))
    assert record["integral"] == pytest.approx(1, abs=tolerance)
    assert record["integral_of_truth"] == pytest.approx(1, abs=1e-4)
    assert 0 <= record["total_variation"] <= 1 + tolerance
    assert record["kl_to_truth"] > -tolerance
    with np.load(next(tmp_path.glob("*.npz"))) as arrays:
        log_p, truth = arrays["log_prob"], arrays["truth_density"]
        x = torch.cartesian_prod(*(torch.tensor(arrays[f"x{i + 1}"]) for i in range(run.spec.dim)))
    assert truth == pytest.approx(
        run.dataset.log_prob(x.view(-1, run.spec.dim)).exp().view(truth.shape).numpy()
    )
    if "log_prob" in abilities(run.model):
        with torch.no_grad():
            expected = run.model.log_prob(x.float().view(-1, run.spec.dim)).view(log_p.shape)
        assert log_p == pytest.approx(expected.double().numpy(), rel=1e-4, abs=1e-3)
    assert len(list(tmp_path.glob("*.png"))) == 1 + ("gaussian_components" in abilities(run.model))


def test_importance_weighted_bound_integrates_to_about_one(train_run, tmp_path):
    """exp of the bound is an unbiased estimate of p(x), so that its integral is near 1."""
    vae = ("model=vae", "model.latent=1", "model.likelihood=gaussian", "model.hidden=[8]")
    run = load(train_run(*vae, *LINE))
    record = density(run, range=(-9, 9), cells=100, iwae_samples=1000, output_dir=str(tmp_path))
    assert record["tag"] == "bound" and record["integral"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("data", [LINE, PLANE])
def test_cells_of_a_clustering_are_drawn_without_a_density(data, train_run, tmp_path):
    run = load(train_run("model=kmeans", "model.num_clusters=4", *data))
    record = density(run, cells=40, n=50, output_dir=str(tmp_path))
    assert "integral" not in record and len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "dim"),
    [
        *(({"covariance": c}, dim) for c in ("full", "diagonal", "spherical") for dim in (1, 2)),
        ({"covariance": "low_rank", "rank": 1}, 3),
        ({"covariance": "full", "conditional": True}, 2),
        ({}, 3),
    ],
)
def test_gaussian_components_are_the_density(options, dim):
    """Σ_k w_k N(x; μ_k, Σ_k) is exp(log_prob)."""
    torch.manual_seed(0)
    spec = DataSpec((dim,), kind="points", levels=0, num_classes=2)
    model = GMM(spec, num_components=3, **options) if options else PCA(spec, latent=1)
    for name, value in model.double().named_parameters():
        value.data.add_(0.3 * torch.rand_like(value))
        if name.endswith("scale_tril"):
            value.data.copy_(value.tril())
    for name in ("weight", "class_probs"):
        if name in dict(model.named_parameters()):
            value = getattr(model, name)
            value.data.div_(value.sum(-1, keepdim=True))
    if "eigenvectors" in "".join(dict(model.named_parameters())):
        u = model.covariance.eigenvectors
        u.data.copy_(u / u.norm(dim=-1, keepdim=True))
    weights, means, covariances = model.gaussian_components()
    x = torch.randn(20, dim, dtype=torch.float64)
    mixture = sum(
        w.item() * stats.multivariate_normal(m.numpy(), s.numpy()).pdf(x.numpy())
        for w, m, s in zip(weights, means, covariances, strict=True)
    )
    assert mixture == pytest.approx(model.log_prob(x).exp().numpy(), rel=1e-6)


# --- divergences ----------------------------------------------------------------------------------


def normal_cells(mean: float, std: float, edges: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.diff(stats.norm(mean, std).cdf(edges.numpy())))


def exact_js(p, q) -> float:
    """JS of two distributions of scipy, by adaptive quadrature."""

    def integrand(x: float) -> float:
        a, b = p.pdf(x), q.pdf(x)
        middle = (a + b) / 2
        return sum(0.5 * part * math.log(part / middle) for part in (a, b) if part > 0)

    breaks = [d.mean() + k * d.std() for d in (p, q) for k in (-10, -5, -2, 0, 2, 5, 10)]
    return integrate.quad(integrand, -30, 30, points=sorted(breaks), limit=1000)[0]


def test_js_divergence_of_closed_forms():
    """JS is log 2 for disjoint distributions, half of it if half is shared, and a quadrature."""
    cells = torch.eye(3, dtype=torch.float64)
    assert js_divergence(cells[0], cells[1]) == pytest.approx(math.log(2), abs=1e-15)
    assert js_divergence(cells[0], cells[0]) == 0
    half = (cells[0] + cells[1]) / 2, (cells[1] + cells[2]) / 2
    assert js_divergence(*half) == pytest.approx(math.log(2) / 2, abs=1e-15)
    edges = torch.linspace(-20, 20, 16_385, dtype=torch.float64)
    for a, b in [((0, 1), (1, 1)), ((0, 1), (0, 3)), ((-3, 0.2), (2, 0.5)), ((0, 1), (0.01, 1))]:
        found = js_divergence(normal_cells(*a, edges), normal_cells(*b, edges))
        assert found == pytest.approx(exact_js(stats.norm(*a), stats.norm(*b)), abs=1e-6)


def test_image_of_a_curve_has_the_exact_distribution():
    """A line makes a normal, a square a χ², and a constant an atom."""
    z = torch.linspace(-7, 7, 2**16, dtype=torch.float64)
    masses = torch.special.ndtr(z).diff()
    edges = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    line = cell_probabilities_on_curve(1.5 - 0.7 * z, masses, edges)
    assert torch.allclose(line, normal_cells(1.5, 0.7, edges), atol=1e-8, rtol=0)
    square = cell_probabilities_on_curve(z.square(), masses, edges)
    expected = np.diff(stats.chi2(1).cdf(edges.numpy()))
    # the cumulative distribution, since the density is infinite at 0
    assert square.cumsum(0).numpy() == pytest.approx(expected.cumsum(), abs=1e-6)
    atom = cell_probabilities_on_curve(torch.full_like(z, 2.0025), masses, edges)
    assert atom.max() == pytest.approx(1, abs=1e-9) and (atom > 0).sum() == 1


def test_value_of_the_game_is_bounded_by_that_of_the_optimal_discriminator():
    """V(D, G) ≤ 2 JS − log 4, with equality at D* = p/(p + q)."""
    torch.manual_seed(0)
    p, q = torch.rand(2, 200, dtype=torch.float64)
    p, q = p / p.sum(), q / q.sum()
    best = 2 * js_divergence(p, q) - math.log(4)
    assert game_value(optimal_discriminator(p, q).logit(), p, q) == pytest.approx(best, abs=1e-12)
    for scale in (0.0, 0.1, 3.0):
        assert game_value(scale * torch.randn(200).double(), p, q) < best


# --- genlab dynamics ------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_prior_quantiles_are_those_of_the_prior(noise):
    model = GAN(DataSpec((1,), kind="points", levels=0), latent=1, noise=noise)
    torch.manual_seed(0)
    drawn = model.prior(100_000)
    levels = torch.tensor([[0.1], [0.5], [0.8]])
    expected = torch.quantile(drawn[:, 0], levels[:, 0])
    assert model.prior_quantiles(levels)[:, 0].tolist() == pytest.approx(
        expected.tolist(), abs=0.02
    )


def test_dynamics_on_the_line_are_exact(train_run, tmp_path):
    """JS and V of a linear generator are those of two normals, at every checkpoint."""
    train = (*LINEAR_GAN, "model.latent=1", *LINE, "trainer.save_every=1")
    run = load(train_run(*train))
    record = dynamics(run, output_dir=str(tmp_path))
    assert record["tag"] == "exact" and [c["step"] for c in record["checkpoints"]] == [1, 2]
    assert len(list(tmp_path.glob("*.gif"))) == len(list(tmp_path.glob("*.png"))) == 1
    for path, found in zip(run.folder.checkpoint_files(), record["checkpoints"], strict=True):
        run.model.load_state_dict(run.folder.load_checkpoint(path)["model"])
        layer = run.model.generator[0]
        q = stats.norm(layer.bias.item(), abs(layer.weight.item()))
        assert found["js"] == pytest.approx(exact_js(stats.norm(0, 1), q), abs=1e-6)
        assert found["value_of_optimal_d"] == pytest.approx(2 * found["js"] - math.log(4))

        def log_d(x: float, sign: int) -> float:
            with torch.no_grad():
                logit = run.model.discriminate(torch.tensor([[x]]).float()).item()
            return -math.log1p(math.exp(-sign * logit))

        x = np.linspace(-8, 8, 401)
        value = integrate.simpson([stats.norm.pdf(v) * log_d(v, 1) for v in x], x=x)
        std = q.std()
        x = np.linspace(q.mean() - 8 * std, q.mean() + 8 * std, 401)
        value += integrate.simpson([q.pdf(v) * log_d(v, -1) for v in x], x=x)
        assert found["value"] == pytest.approx(value, abs=1e-5)
        assert found["value"] <= found["value_of_optimal_d"]


def test_dynamics_in_the_plane_agree_with_a_known_mixture(train_run, tmp_path):
    """JS of a ring of Gaussians and a normal, within the error of cells and samples."""
    run = load(train_run(*LINEAR_GAN, "model.latent=2", *PLANE))
    record = dynamics(run, gif=False, n=50, output_dir=str(tmp_path))
    assert record["tag"] == "estimate"
    layer = run.model.generator[0]
    covariance = (layer.weight @ layer.weight.T).detach().numpy()
    grid = Grid.around(torch.zeros(1, 2), 1000, (-8.0, 8.0))
    x = grid.points()
    q = stats.multivariate_normal(layer.bias.detach().numpy(), covariance).pdf(x.numpy())
    p = run.dataset.log_prob(x).exp()
    exact = js_divergence(p * grid.cell_volume, torch.from_numpy(q) * grid.cell_volume)
    assert record["checkpoints"][-1]["js"] == pytest.approx(exact, abs=3e-3)


def test_dynamics_of_a_critic_have_no_value(train_run, tmp_path):
    critic = ("model.loss=hinge", "model.latent=3")
    record = dynamics(load(train_run(*LINEAR_GAN, *critic, *LINE)), output_dir=str(tmp_path))
    assert record["checkpoints"][-1]["value"] is None and record["tag"] == "estimate"


REFUSALS = [
    (density, ("model=gan", *LINE), {}, "genlab density needs"),
    (density, ("model=affine", "dataset=swiss_roll", *SMALL_DATA), {}, "has 3 coordinates"),
    (density, ("model=affine", *LINE), {"range": (1, 0)}, "lower bound must come first"),
    (density, ("model=affine", *LINE), {"score": "energy"}, "no score of the kind energy"),
    (dynamics, ("model=affine", *LINE), {}, "genlab dynamics needs discriminate and sample"),
    (dynamics, (*LINEAR_GAN, "model.latent=1", *LINE), {"steps": [7]}, "no checkpoint of step 7"),
]


@pytest.mark.parametrize(("command", "train", "options", "message"), REFUSALS)
def test_refusals(command, train, options, message, train_run, tmp_path):
    with pytest.raises(UserError, match=message):
        command(load(train_run(*train)), **options, output_dir=str(tmp_path))
    assert not list(tmp_path.glob("*.json"))


# --- data on the line -----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["maf_points", "realnvp_points", "nsf", "pca"])
def test_recipes_for_several_values_name_others_for_one(recipe, genlab):
    result = genlab("train", f"model={recipe}", *LINE, "device=cpu", "out=run")
    assert result.code != 0 and "at least two values" in result.err and "gmm" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_density_is_a_command_with_files(genlab, train_run, tmp_path):
    """`genlab density` prints the integral, and the record in the run's folder has it too."""
    run = train_run("model=affine", *LINE)
    out = tmp_path / "asked"
    result = genlab("density", f"run={run}", "device=cpu", f"output_dir={out}", "cells=50")
    assert result.code == 0, result.err
    record = json.loads(next(out.glob("*.json")).read_text())
    assert f"{record['integral']:.6f}" in result.out
