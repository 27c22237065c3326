"""likelihood, anomaly, classify and the reconstruction error, compared with known numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.recipes import build_training_objects
from PIL import Image
from sklearn.metrics import roc_auc_score

from genlab.abilities import Estimate
from genlab.commands.models import best_likelihood_tag
from genlab.data.digits import Digits
from genlab.data.shapes2d import Shapes
from genlab.data.toy_points import Points
from genlab.errors import UserError
from genlab.inference.likelihood_scores import LIKELIHOODS, find_supported_score
from genlab.metrics.base import Settings
from genlab.metrics.context import MetricContext
from genlab.metrics.reconstruction import move_to_bin_centers
from genlab.metrics.registry import all_metrics_by_name
from genlab.runs.run_folder import RunFolder

PCA = ("model=pca", "model.latent=10")
SMALL = ("trainer.steps=1", "trainer.preview_every=0", "device=cpu", "out=run")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs("model=pca", …)` trains one step on the digits, once per set of options."""
    from helpers.cli_runner import run_here

    made: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in made:
            cwd = tmp_path_factory.mktemp("runs")
            result = run_here("train", *options, *SMALL, cwd=cwd)
            assert result.code == 0, result.err
            made[options] = cwd / "run"
        return made[options]

    return train


def answer(genlab, *words: object) -> tuple[dict, str]:
    """Run a command, check its pictures, and return its last JSON file and its output."""
    result = genlab(*words, "device=cpu")
    assert result.code == 0, result.err
    lines = [line.removeprefix("open: ") for line in result.out.splitlines()]
    paths = [Path(line) for line in lines if line.startswith("/")]
    pictures = [path for path in paths if path.suffix == ".png"]
    assert pictures and all(np.asarray(Image.open(path)).shape[-1] == 3 for path in pictures)
    return json.loads(
        [path for path in paths if path.suffix == ".json"][-1].read_text()
    ), result.out


# --- likelihood -----------------------------------------------------------------------------------

TAGS = {"pca": "exact", "vae": "bound", "rbm": "exact", "kmeans": None, "gan": None}


@pytest.mark.parametrize("recipe", TAGS)
def test_likelihood_writes_log_prob_or_names_models_that_have_it(recipe, runs, genlab):
    small = {
        "pca": ("model.latent=10",),
        "vae": ("model.hidden=[8]",),
        "rbm": ("model.hidden=6",),
        "gan": ("model.hidden=[8]",),
    }
    run = runs(f"model={recipe}", *small.get(recipe, ()))
    if TAGS[recipe] is None:
        error = genlab("likelihood", f"run={run}").error
        assert (
            f"{recipe} has no likelihood" in error
            and "pca" in error
            and "vae" in error
            and "ae," not in error.split()
        )
        return
    record, _ = answer(genlab, "likelihood", f"run={run}", "n=50", "iwae_samples=4", "seed=3")
    found = np.load(next((run / "likelihood").glob("test_step1_seed3_*.npz")))
    assert record["tag"] == TAGS[recipe] and record["mean"] == pytest.approx(
        found["log_prob"].mean()
    )
    assert record["lowest"] == pytest.approx(found["log_prob"].min())
    _, dataset, trainer = build_training_objects(f"model={recipe}", *small[recipe], *SMALL)
    trainer.load_state_dict(RunFolder(run).load_checkpoint())
    assert found["index"].shape == found["y"].shape == (50,)
    torch.testing.assert_close(
        torch.from_numpy(found["y"]), dataset.splits["test"].y[found["index"]]
    )
    if recipe == "pca":
        log_prob = trainer.model.log_prob(dataset.head("test", 50, seed=3).x)
        torch.testing.assert_close(torch.from_numpy(found["log_prob"]).float(), log_prob)
        assert record["bits_per_dim"] == pytest.approx(dataset.spec.bits_per_dim(record["mean"]))


# --- anomaly --------------------------------------------------------------------------------------


def test_anomaly_detects_the_classes_left_out(runs, genlab):
    """The AUROC of the likelihood and of the typicality are computed here from the test items."""
    run = runs(*PCA, "dataset.class_fraction={0:0,1:0}")
    record, out = answer(genlab, "anomaly", f"run={run}")
    assert (
        record["anomalies"] == [0, 1]
        and record["normal"] == list(range(2, 10))
        and "log p(x)" in record["score"]
    )
    _, dataset, trainer = build_training_objects(*PCA, "dataset.class_fraction={0:0,1:0}", *SMALL)
    trainer.load_state_dict(RunFolder(run).load_checkpoint())
    test = dataset.head("test")
    assert record["n_normal"] + record["n_anomalies"] == len(test) == 180, (
        "the test split is complete"
    )
    log_prob, train = (trainer.model.log_prob(x) for x in (test.x, dataset.head("train").x))
    assert record["auroc"] == pytest.approx(roc_auc_score(test.y < 2, -log_prob), abs=1e-6)
    typical = (log_prob - train.mean()).abs()
    assert record["auroc_typicality"] == pytest.approx(roc_auc_score(test.y < 2, typical), abs=1e-6)
    assert f"{record['auroc']:.4f}" in out and record["auroc"] > 0.8


@pytest.mark.parametrize(
    "recipe, options, kind",
    [
        ("vae", ("model.hidden=[8]",), "bound"),
        ("rbm", ("model.hidden=6",), "energy"),
        ("kmeans", (), "reconstruction"),
    ],
)
def test_anomaly_reports_its_score(recipe, options, kind, runs, genlab):
    run = runs(f"model={recipe}", *options)
    named = {"bound": "bound of log p(x)", "energy": "energy", "reconstruction": "squared error"}[
        kind
    ]
    record, _ = answer(genlab, "anomaly", f"run={run}", "classes=3", "n=20", "iwae_samples=3")
    assert named in record["score"] and record["n_anomalies"] <= 20 == record["n_normal"]
    record, _ = answer(genlab, "anomaly", f"run={run}", "dataset=fake", "n=20", "iwae_samples=3")
    assert record["anomalies"] == "fake" and 0 <= record["average_precision"] <= 1
    if kind == "reconstruction":
        assert record["auroc"] > 0.95, "noise is far from every centre"
        error = genlab("anomaly", f"run={run}", "classes=3", "score=density").error
        assert "kmeans has no score of the kind density" in error and "realnvp" in error


def test_anomaly_of_several_runs_reports_the_mean(runs, genlab):
    each = [runs(*PCA, f"dataset.classes={c}") for c in (0, 1)]
    record, out = answer(genlab, "anomaly", f"runs=[{each[0]},{each[1]}]")
    assert record["mean"]["auroc"] == pytest.approx(np.mean([r["auroc"] for r in record["runs"]]))
    assert record["mean"]["auroc"] > 0.9 and "mean of 2" in out


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "nothing is anomalous"),
        (("classes=11",), "classes are 0 to 9"),
        (("dataset=digits", "dataset.size=9"), "dataset.size"),
    ],
)
def test_anomaly_refuses_invalid_options(words, said, runs, genlab):
    assert said in genlab("anomaly", f"run={runs(*PCA)}", *words).error


# --- classify -------------------------------------------------------------------------------------


def test_bayes_rule_of_a_conditional_model_equals_that_of_one_run_per_class(runs, genlab):
    run = runs(*PCA, "model.conditional=true")
    record, _ = answer(genlab, "classify", f"run={run}")
    _, dataset, trainer = build_training_objects(*PCA, "model.conditional=true", *SMALL)
    trainer.load_state_dict(RunFolder(run).load_checkpoint())
    test, model = dataset.head("test"), trainer.model
    joint = torch.stack(
        [
            model.class_probs[g].log() + model.group_log_prob(test.x.flatten(1), g)
            for g in range(10)
        ],
        1,
    )
    assert record["accuracy"] == (joint.argmax(1) == test.y).double().mean().item() > 0.9
    counts = np.array(record["confusion"])
    assert counts.sum() == 180 and counts.trace() == round(180 * record["accuracy"])
    each = [runs(*PCA, f"dataset.classes={c}") for c in range(10)]
    several, _ = answer(genlab, "classify", f"runs=[{','.join(map(str, each))}]")
    assert several["confusion"] == record["confusion"]


def test_classify_refuses_models_without_classes(runs, genlab):
    error = genlab("classify", f"run={runs('model=kmeans')}").error
    assert (
        "kmeans does not classify" in error and "model.conditional=true" in error and "gmm" in error
    )
    twice = [runs(*PCA, "dataset.classes=0"), runs(*PCA)]
    assert "one a class" in genlab("classify", f"runs=[{twice[0]},{twice[1]}]").error


# --- data and reconstruction ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        Digits,
        lambda **o: Points(n=300, num_heldout=60, **o),
        lambda **o: Shapes(n=300, size=16, **o),
    ],
)
def test_training_can_leave_out_classes(make):
    whole = make()
    for options, left in [
        ({"classes": 2}, [2]),
        ({"classes": (0, 2), "class_fraction": {2: 0}}, [0]),
        ({"class_fraction": {0: 0}}, None),
    ]:
        some = make(**options)
        left = left or list(range(1, whole.spec.num_classes))
        for split in ("train", "validation"):
            assert some.head(split).y.unique().tolist() == left
            assert some.size(split) == torch.isin(whole.splits[split].y, torch.tensor(left)).sum()
        assert some.spec == whole.spec and some.size("test") == whole.size("test")
        if isinstance(some, Shapes):
            assert torch.equal(
                some.factors("train", 9, seed=1)[:, 0], some.head("train", 9, seed=1).y
            )
    for options, words in [
        ({"classes": 99}, "dataset.classes=99: no such class"),
        ({"classes": 1, "class_fraction": {1: 0}}, "without training"),
    ]:
        with pytest.raises(UserError, match=words):
            make(**options)


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("interval", ["[0,1]", "[-1,1]"])
def test_reconstruction_error_equals_that_of_pca(interval, dequantize):
    """The error equals that of an SVD of the bytes, for every range and noise of the data."""
    prepare = (f"preprocess.range={interval}", f"preprocess.dequantize={str(dequantize).lower()}")
    if dequantize:
        _, dataset, trainer = build_training_objects(*PCA, *prepare, *SMALL)
    else:
        _, dataset, trainer = build_training_objects(
            "model=kmeans", "model.num_clusters=4", *prepare, *SMALL
        )
    trainer.train_step(trainer.train_batches(dataset))
    (row,) = all_metrics_by_name()["reconstruction"].measure(
        MetricContext(dataset, Settings(n=180), model=trainer.eval_model())
    )
    k, train = (
        dataset.raw_items_and_labels(split)[0].flatten(1).double() / 16
        for split in ("test", "train")
    )
    if dequantize:
        away = k - train.mean(0)
        axes = torch.linalg.svd(train - train.mean(0), full_matrices=False)[2][:10]
        wanted = (away - away @ axes.T @ axes).square().sum(1).mean().item()
        assert row.value == pytest.approx(wanted, rel=2e-3)  # the noise turns the axes a little
    else:
        low, high = dataset.spec.range
        centers = ((trainer.model.centers - low) / (high - low)).double()
        assert row.value == pytest.approx(
            torch.cdist(k, centers).min(1).values.square().mean().item(), rel=1e-5
        )
    if dequantize:
        x = dataset.head("test", 20).x
        middle = move_to_bin_centers(x, dataset.spec)
        width = (dataset.spec.range[1] - dataset.spec.range[0]) / 17
        assert ((x - middle).abs() <= width / 2 + 1e-6).all() and middle.unique().numel() <= 17
        assert math.isclose(middle.min().item(), dataset.spec.range[0] + width / 2, abs_tol=1e-6)


@pytest.mark.parametrize("ability", ["iwae", "elbo", "energy"])
@pytest.mark.parametrize("tag", ["exact", "estimate"])
def test_score_that_contains_an_estimate_is_an_estimate(ability, tag):
    """Its error is the score's too, and so is its note."""

    def give_zeros(x, *_, **__):
        return torch.zeros(len(x))

    log_z = Estimate(2.0, 0.5 if tag == "estimate" else None, tag, "few chains")
    model = SimpleNamespace(log_partition=lambda: log_z, **{ability: give_zeros})
    score = find_supported_score(SimpleNamespace(model=model), LIKELIHOODS)
    assert score.tag == (tag if tag == "estimate" or ability == "energy" else "bound")
    assert score.common_error == (log_z.error or 0.0) and score.note == "few chains"
    assert best_likelihood_tag({ability, "log_partition"}) == "estimate"
    assert best_likelihood_tag({"iwae"}) == "bound"
