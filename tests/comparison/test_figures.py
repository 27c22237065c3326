"""Figures of comparisons: measured numbers against closed forms, and complete pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import multivariate_normal

from genlab.commands.compare import make_drawing
from genlab.comparison.figures.class_groups import measure_groups
from genlab.comparison.figures.decision_boundary import fit_classifier, make_log_joint
from genlab.comparison.figures.gradient_estimators import (
    gaussian_gradient_draws,
    gaussian_gradient_variances,
    variance_and_error,
)
from genlab.errors import UserError
from genlab.spec import Batch
from genlab.viz.slides import Cell, Slide, TableLine, render_slide

VAE = (
    "model=vae", "model.latent=2", "model.hidden=[8]", "model.likelihood=gaussian",
    "preprocess.binarize=none", "preprocess.dequantize=true",
)  # fmt: skip  # one model


@pytest.mark.parametrize(("mean", "sigma"), [(1.0, 0.25), (1.0, 2.0), (-0.5, 1.0)])
def test_gradient_estimators_of_a_gaussian_have_their_closed_forms(mean, sigma):
    n = 400_000
    draws = gaussian_gradient_draws(mean, sigma, n, torch.Generator().manual_seed(0))
    for name, exact in gaussian_gradient_variances(mean, sigma).items():
        variance, error = variance_and_error(draws[name])
        assert abs(variance - exact) < 4 * error
        assert abs(draws[name].mean().item() - 2 * mean) < 4 * math.sqrt(exact / n)


def test_bayes_rule_equals_the_closed_form_and_logistic_regression_is_near(train_run, tmp_path):
    """Of Gaussians for the classes: p(y|x) is a softmax of log p(y) + log N(x; μ_y, Σ_y)."""
    from genlab.builders.entrypoints import load_run

    options = (
        "model=gmm", "model.num_components=1", "model.conditional=true", "dataset=ring",
        "dataset.num_modes=3", "dataset.n=600", "dataset.num_heldout=500", "dataset.std=0.8",
    )  # fmt: skip  # one data set
    run = load_run({"run": str(train_run(*options))})
    train = run.dataset.splits["train"]
    x, y = train.x.double().numpy(), train.y.numpy()
    points = np.random.default_rng(0).normal(size=(50, 2)) * 2
    joint = np.stack(
        [
            multivariate_normal(x[y == k].mean(0), np.cov(x[y == k].T, bias=True)).logpdf(points)
            + math.log((y == k).mean())
            for k in range(3)
        ],
        1,
    )
    assert np.allclose(make_log_joint(run)(points).numpy(), joint, atol=2e-3)
    classify = fit_classifier("logistic_regression", Batch(train.x, train.y), 0)
    exact = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])
    assert np.abs(classify(points) - exact).mean() < 0.05


def test_groups_of_a_run_without_weights_are_those_of_the_data(train_run):
    from genlab.builders.entrypoints import load_run

    options = [option for option in VAE if not option.startswith("model=")]
    run = load_run(
        {
            "run": str(
                train_run(
                    "model=debias_vae", *options, "model.network=mlp", "dataset.classes=[3,8]"
                )
            )
        }
    )
    groups = measure_groups(run)
    labels = run.dataset.splits["train"].y
    assert groups.shares[3].item() == pytest.approx((labels == 3).double().mean().item())
    assert groups.shares.sum().item() == pytest.approx(1)
    assert groups.effective_items == pytest.approx(len(labels))
    assert 0 <= groups.errors[3] <= 1


def test_slide_enlarges_images_by_a_whole_number_and_keeps_plots():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1) * 20
    plot = np.full((50, 60, 3), 7, np.uint8)
    slide = Slide(
        [[Cell(image, "below"), Cell(plot, is_plot=True)], [None, Cell(image)]],
        ["left", "right"],
        ["first", "second"],
        [TableLine("error ↓", ["1.0 ± 0.1", "2.0"], frozenset({0}))],
        {"class 0": "#112233"},
        cell_size=(101, 101),
    )
    pixels = render_slide(slide).images[0]
    assert (pixels == 7).all(2).sum() >= 50 * 60
    for level in (20, 100, 220):  # 25 times larger in both directions, in two cells
        assert (pixels == level).all(2).sum() == pytest.approx(2 * 25**2, abs=60)


def test_wrong_figures_are_refused():
    for name, options, words in (
        ("A b", {"kind": "panels", "show": ["codes"]}, "letters a to z"),
        ("a", {"show": ["codes"]}, "no kind"),
        ("a", {"kind": "panel", "show": ["codes"]}, "did you mean 'panels'"),
        ("a", {"kind": "panels", "show": ["code"]}, "show"),
        ("a", {"kind": "panels", "shows": ["codes"]}, "shows"),
    ):
        with pytest.raises(UserError, match=words):
            make_drawing(name, options)


def test_figures_are_files_and_in_the_page_and_may_be_made_again(genlab, train_run, tmp_path: Path):
    run = train_run(*VAE)
    figures = (
        "{both:{kind:panels,show:[codes,samples,manifold],data:true,numbers:[reconstruction],"
        "caption:'A caption & more'},items:{kind:outputs,items:2,n:10}}"
    )
    arguments = (
        f"runs=[{run}]", "metrics=[reconstruction]", "n=20", f"output_dir={tmp_path / 'page'}",
        f"figures={figures}", "formula='x^2'",
    )  # fmt: skip  # one command
    for _ in range(2):  # the second time replaces its own files
        result = genlab("compare", *arguments)
        assert result.code == 0, result.err
    page = (tmp_path / "page" / "compare.html").read_text()
    assert "A caption &amp; more" in page and 'class="formula"' in page
    for name in ("both", "items"):
        with Image.open(tmp_path / "page" / f"{name}.png") as image:
            assert min(image.size) > 300
    (tmp_path / "page" / "both.png").write_bytes(b"mine")
    result = genlab("compare", *arguments)
    assert result.code and "both.png" in result.err
