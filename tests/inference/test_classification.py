"""genlab classify prompts=: Bayes' rule over captions with a text-conditional model."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import multivariate_normal

from genlab.builders import entrypoints
from genlab.commands.classify import classify
from genlab.commands.sample import encode_prompts
from genlab.errors import UserError
from genlab.inference.classification import normalize_prior, score_prompts
from genlab.inference.likelihood_scores import CLASS_SCORES, find_supported_score
from genlab.model import GenerativeModel

TEXT_GAN = (
    *("model=text_gan", "model.width=2", "model.text_width=4", "model.text_layers=1"),
    *("model.text_heads=1", "model.text_dim=2", "preprocess.size=16"),
)
PROMPTS = ["a zero", "the one", "digit two"]
SCALE = 15.0  # standard deviation of a pixel, so that 256 pixels leave some doubt


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


class CaptionGaussian(GenerativeModel):
    """p(x|c) = N(μ(c), SCALE² I) with a mean that depends on the caption's bytes."""

    text_conditional = True

    def mean(self, y: torch.Tensor) -> torch.Tensor:
        return y.double().mean(1).sin()

    def log_prob(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        assert y is not None
        distance = (x.double().flatten(1) - self.mean(y)[:, None]) / SCALE
        constant = math.log(SCALE) + math.log(2 * math.pi) / 2
        return -(distance.square() / 2 + constant).sum(1)


class NoisyBound(CaptionGaussian):
    """A bound with noise of one standard deviation: the same for all captions, or not."""

    def __init__(self, sigma_common: float, sigma_own: float) -> None:
        super().__init__()
        self.sigma_common, self.sigma_own = sigma_common, sigma_own
        self.exact, self.log_prob = super().log_prob, None

    def elbo(self, x, y=None, *, num_terms=None):
        common = self.sigma_common * torch.randn(len(x), dtype=torch.float64)
        own = self.sigma_own * (torch.randn(len(x), dtype=torch.float64) * y[:, 0]).sin()
        return self.exact(x, y) + common + own


def run_of(train_run, model):
    run = load(train_run(*TEXT_GAN))
    return replace(run, model=model, open_data=lambda: run.dataset)


def posterior_by_scipy(model, x, tokens, prior) -> np.ndarray:
    joint = []
    for caption, weight in zip(tokens, prior, strict=True):
        mean = np.full(x[0].numel(), model.mean(caption[None]).item())
        log_p = multivariate_normal(mean, SCALE**2).logpdf(x.flatten(1).double().numpy())
        joint.append(log_p + np.log(weight))
    joint = np.stack(joint, 1)
    p = np.exp(joint - joint.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("prior", [None, [3, 1, 0.5]])
def test_posteriors_of_a_conditional_gaussian_are_exact(prior, train_run, tmp_path):
    model = CaptionGaussian()
    run = run_of(train_run, model)
    record = classify([run], prompts=PROMPTS, prior=prior, n=12, output_dir=str(tmp_path))
    x = run.dataset.head("test", 12, seed=0).x
    weights = np.array(prior or [1, 1, 1]) / np.sum(prior or [1, 1, 1])
    expected = posterior_by_scipy(model, x, encode_prompts(run, PROMPTS), weights)
    rows = list(csv.DictReader(next(tmp_path.glob("*.csv")).open(encoding="utf-8")))
    found = np.array([[float(row[f"p({prompt})"]) for prompt in PROMPTS] for row in rows])
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert record["mean_posterior"] == pytest.approx(expected.mean(0).tolist(), rel=1e-9)
    assert expected.max(1).min() < 0.99, "the posteriors must not be trivial"
    assert [row["prompt"] for row in rows] == [PROMPTS[k] for k in expected.argmax(1)]
    assert record["standard_error_of_lead"] == 0 and record["draws"] == 1
    assert record["prior"] == pytest.approx(weights.tolist())
    shown = next(p for p in tmp_path.glob("*.png") if "confusion" not in p.name)
    assert np.ptp(np.asarray(Image.open(shown))) > 0


def test_truth_counts_items_whose_class_is_named(train_run, tmp_path):
    run = run_of(train_run, CaptionGaussian())
    prompts = ["a zero", "zero again", "the one", "something else"]
    record = classify([run], prompts=prompts, n=60, output_dir=str(tmp_path))
    batch = run.dataset.head("test", 60, seed=0)
    p = posterior_by_scipy(run.model, batch.x, encode_prompts(run, prompts), [0.25] * 4)
    named = (batch.y < 2).numpy()
    by_class = np.stack([p[:, :2].sum(1), p[:, 2], p[:, 3]], 1)[named]
    truth = record["truth"]
    assert truth["n"] == named.sum() and truth["classes"] == ["0", "1", "no class"]
    right = by_class.argmax(1) == batch.y.numpy()[named]
    assert truth["accuracy"] == pytest.approx(right.mean())
    nll = -np.log(by_class[np.arange(len(by_class)), batch.y.numpy()[named]]).mean()
    assert truth["nll_of_labels"] == pytest.approx(nll, rel=1e-9)
    assert sum(map(sum, truth["confusion"])) == named.sum()


def scores_of(train_run, model, draws: int, n: int = 40):
    run = run_of(train_run, model)
    score = find_supported_score(run, CLASS_SCORES)
    assert score.tag == "bound"
    tokens = encode_prompts(run, PROMPTS)
    x = run.dataset.head("test", n, seed=0).x
    prior = normalize_prior(None, PROMPTS)
    found = score_prompts(run, score, x, tokens, prior=prior, draws=draws, batch_size=7, seed=0)
    return found, posterior_by_scipy(model, x, tokens, prior.numpy())


def test_noise_that_all_prompts_share_cancels(train_run):
    found, expected = scores_of(train_run, NoisyBound(100.0, 0.0), draws=3)
    np.testing.assert_allclose(found.log_posterior.exp().numpy(), expected, rtol=1e-8, atol=1e-12)
    assert found.lead_error.max() < 1e-10
    single, _ = scores_of(train_run, NoisyBound(100.0, 0.0), draws=1)
    assert single.lead_error.isnan().all()


def test_the_error_is_that_of_the_difference(train_run):
    few, _ = scores_of(train_run, NoisyBound(100.0, 0.3), draws=4)
    many, expected = scores_of(train_run, NoisyBound(100.0, 0.3), draws=64)
    assert few.lead_error.mean() == pytest.approx(4 * many.lead_error.mean(), rel=0.3)
    joint = np.log(expected)
    order = many.log_joint.argsort(1, descending=True)[:, :2]
    truth = np.take_along_axis(joint, order.numpy(), 1)
    z = (many.lead.numpy() - (truth[:, 0] - truth[:, 1])) / many.lead_error.numpy()
    assert np.sqrt(np.mean(z**2)) < 2 and np.abs(z).max() < 5


def test_captions_of_the_classes_are_the_default(train_run, tmp_path):
    run = run_of(train_run, CaptionGaussian())
    record = classify([run], n=5, output_dir=str(tmp_path))
    assert record["prompts"][3] == "three" and len(record["prompts"]) == 10
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["tag"] == "exact"
    assert run.dataset.class_named_in("A Seven, please") == 7
    assert run.dataset.class_named_in("seventeen") is None
    assert run.dataset.class_named_in("one or two") is None


def test_refusals_name_the_fix(train_run, genlab):
    run = run_of(train_run, CaptionGaussian())
    with pytest.raises(UserError, match="one weight for each of the 3 prompts"):
        classify([run], prompts=PROMPTS, prior=[1.0, 2.0], n=2)
    with pytest.raises(UserError, match="at least two captions"):
        classify([run], prompts=["a zero"], n=2)
    with pytest.raises(UserError, match="prompts= is .* bytes longer than"):
        classify([run], prompts=["a", "b" * 99], n=2)
    gmm = train_run("model=gmm", "model.conditional=true", "model.covariance=diagonal")
    command = ("classify", f"run={gmm}", "device=cpu")
    assert "models that are: text2image, text_gan" in genlab(*command, "prompts=[a,b]").error
    assert "draws=2" in genlab(*command, "draws=2").error
    assert "prior=[1,2] has no effect" in genlab(*command, "prior=[1,2]").error
    text_gan = ("classify", f"run={train_run(*TEXT_GAN)}", "device=cpu")
    assert "has no log p(x|caption)" in genlab(*text_gan, "prompts=[a,b]").error
