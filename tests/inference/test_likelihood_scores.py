"""likelihood, anomaly and classify on small runs, against numbers that are worked out here; and the reconstruction error."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import built
from PIL import Image
from sklearn.metrics import roc_auc_score

from genlab.data.digits import Digits
from genlab.data.shapes2d import Shapes
from genlab.data.toy_points import Points
from genlab.errors import UserError
from genlab.metrics import Settings, registry
from genlab.metrics.context import Subject
from genlab.metrics.reconstruction import without_noise
from genlab.runs.run_folder import RunFolder

PCA = ("model=pca", "model.latent=10")
SMALL = ("trainer.steps=1", "trainer.preview_every=0", "device=cpu", "out=run")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs("model=pca", …)`: the folder of a run of one step on the digits, the same one for the same options: to write into."""
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
    """Run a command; return the last JSON that it wrote and what it printed, every picture that it names being one."""
    result = genlab(*words, "device=cpu")
    assert result.code == 0, result.err
    paths = [Path(line.split(" ")[0]) for line in result.out.splitlines() if line.startswith("/")]
    pictures = [path for path in paths if path.suffix == ".png"]
    assert pictures and all(np.asarray(Image.open(path)).shape[-1] == 3 for path in pictures)
    return json.loads(
        [path for path in paths if path.suffix == ".json"][-1].read_text()
    ), result.out


# --- likelihood -------------------------------------------------------------------------------------------------------

TAGS = {"pca": "exact", "vae": "bound", "rbm": "exact", "kmeans": None, "gan": None}


@pytest.mark.parametrize("recipe", TAGS)
def test_likelihood_writes_a_number_an_item_or_names_the_models_that_can(recipe, runs, genlab):
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
    record, _ = answer(genlab, "likelihood", f"run={run}", "n=50", "k=4", "seed=3")
    found = np.load(run / "likelihood" / "test_step1_seed3.npz")
    assert record["tag"] == TAGS[recipe] and record["mean"] == pytest.approx(
        found["log_prob"].mean()
    )
    assert record["lowest"] == pytest.approx(found["log_prob"].min())
    _, dataset, trainer = built(f"model={recipe}", *small[recipe], *SMALL)
    trainer.load(RunFolder(run).load())
    assert found["index"].shape == found["y"].shape == (50,)
    torch.testing.assert_close(
        torch.from_numpy(found["y"]), dataset.splits["test"].y[found["index"]]
    )
    if recipe == "pca":
        log_prob = trainer.model.log_prob(dataset.take("test", 50, seed=3).x)
        torch.testing.assert_close(torch.from_numpy(found["log_prob"]).float(), log_prob)
        assert record["bits_per_dim"] == pytest.approx(dataset.spec.bits_per_dim(record["mean"]))


# --- anomaly ----------------------------------------------------------------------------------------------------------


def test_anomaly_against_the_classes_left_out(runs, genlab):
    """The AUROC is that of the likelihoods of test items, worked out here; typicality too."""
    run = runs(*PCA, "dataset.keep={0:0,1:0}")
    record, out = answer(genlab, "anomaly", f"run={run}")
    assert (
        record["anomalies"] == [0, 1]
        and record["normal"] == list(range(2, 10))
        and "log p(x)" in record["score"]
    )
    _, dataset, trainer = built(*PCA, "dataset.keep={0:0,1:0}", *SMALL)
    trainer.load(RunFolder(run).load())
    test = dataset.take("test")
    assert record["n_normal"] + record["n_anomalies"] == len(test) == 180, (
        "the test split stays whole"
    )
    log_prob, train = (trainer.model.log_prob(x) for x in (test.x, dataset.take("train").x))
    assert record["auroc"] == pytest.approx(roc_auc_score(test.y < 2, -log_prob), abs=1e-6)
    typical = (log_prob - train.mean()).abs()
    assert record["auroc_typicality"] == pytest.approx(roc_auc_score(test.y < 2, typical), abs=1e-6)
    assert f"{record['auroc']:.4f}" in out and record["auroc"] > 0.8


@pytest.mark.parametrize("recipe, options, kind", [
    ("vae", ("model.hidden=[8]",), "bound"),
    ("rbm", ("model.hidden=6",), "energy"),
    ("kmeans", (), "reconstruction"),
])  # fmt: skip
def test_anomaly_says_which_score_it_used(recipe, options, kind, runs, genlab):
    run = runs(f"model={recipe}", *options)
    named = {"bound": "bound of log p(x)", "energy": "energy", "reconstruction": "squared error"}[
        kind
    ]
    record, _ = answer(genlab, "anomaly", f"run={run}", "classes=3", "n=20", "k=3")
    assert named in record["score"] and record["n_anomalies"] <= 20 == record["n_normal"]
    record, _ = answer(genlab, "anomaly", f"run={run}", "dataset=fake", "n=20", "k=3")
    assert record["anomalies"] == "fake" and 0 <= record["average_precision"] <= 1
    if kind == "reconstruction":
        assert record["auroc"] > 0.95, "noise is far from every centre"
        error = genlab("anomaly", f"run={run}", "classes=3", "score=density").error
        assert "kmeans has no score of the kind density" in error and "realnvp" in error


def test_anomaly_of_several_runs_says_the_mean(runs, genlab):
    each = [runs(*PCA, f"dataset.only={c}") for c in (0, 1)]
    record, out = answer(genlab, "anomaly", f"runs=[{each[0]},{each[1]}]")
    assert record["mean"]["auroc"] == pytest.approx(np.mean([r["auroc"] for r in record["runs"]]))
    assert record["mean"]["auroc"] > 0.9 and "mean of 2" in out


@pytest.mark.parametrize("words, said", [
    ((), "nothing is anomalous"),
    (("classes=11",), "classes 0 to 9"),
    (("dataset=digits", "dataset.size=9"), "dataset.size"),
])  # fmt: skip
def test_anomaly_refuses(words, said, runs, genlab):
    assert said in genlab("anomaly", f"run={runs(*PCA)}", *words).error


# --- classify ---------------------------------------------------------------------------------------------------------


def test_bayes_rule_over_a_conditional_density_is_the_one_over_a_run_a_class(runs, genlab):
    run = runs(*PCA, "model.conditional=true")
    record, _ = answer(genlab, "classify", f"run={run}")
    _, dataset, trainer = built(*PCA, "model.conditional=true", *SMALL)
    trainer.load(RunFolder(run).load())
    test, model = dataset.take("test"), trainer.model
    joint = torch.stack(
        [model.share[g].log() + model.log_density(test.x.flatten(1), g) for g in range(10)], 1
    )
    assert record["accuracy"] == (joint.argmax(1) == test.y).double().mean().item() > 0.9
    counts = np.array(record["confusion"])
    assert counts.sum() == 180 and counts.trace() == round(180 * record["accuracy"])
    each = [runs(*PCA, f"dataset.only={c}") for c in range(10)]
    several, _ = answer(genlab, "classify", f"runs=[{','.join(map(str, each))}]")
    assert several["confusion"] == record["confusion"]


def test_classify_refuses_what_tells_no_classes(runs, genlab):
    error = genlab("classify", f"run={runs('model=kmeans')}").error
    assert (
        "kmeans tells no classes" in error and "model.conditional=true" in error and "gmm" in error
    )
    twice = [runs(*PCA, "dataset.only=0"), runs(*PCA)]
    assert "one a class" in genlab("classify", f"runs=[{twice[0]},{twice[1]}]").error


# --- what they stand on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [Digits, lambda **o: Points(n=300, held_out=60, **o), lambda **o: Shapes(n=300, size=16, **o)],
)
def test_training_may_be_on_some_of_the_classes_only(make):
    whole = make()
    for options, left in [
        ({"only": 2}, [2]),
        ({"only": (0, 2), "keep": {2: 0}}, [0]),
        ({"keep": {0: 0}}, None),
    ]:
        some = make(**options)
        left = left or list(range(1, whole.spec.classes))
        for split in ("train", "validation"):
            assert some.take(split).y.unique().tolist() == left
            assert some.size(split) == torch.isin(whole.splits[split].y, torch.tensor(left)).sum()
        assert some.spec == whole.spec and some.size("test") == whole.size("test")
        if hasattr(some, "factors"):
            assert torch.equal(
                some.factors("train", 9, seed=1)[:, 0], some.take("train", 9, seed=1).y
            )
    for options, words in [
        ({"only": 99}, "classes 0 to"),
        ({"only": 1, "keep": {1: 0}}, "no training item"),
    ]:
        with pytest.raises(UserError, match=words):
            make(**options)


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("interval", ["[0,1]", "[-1,1]"])
def test_reconstruction_is_pca_s_error_in_units_of_the_whole_range(interval, dequantise):
    """By the SVD of the bytes, whatever the range and the noise of the data that the model is given."""
    prepare = (f"prepare.range={interval}", f"prepare.dequantise={str(dequantise).lower()}")
    if dequantise:
        _, dataset, trainer = built(*PCA, *prepare, *SMALL)
    else:
        _, dataset, trainer = built("model=kmeans", "model.components=4", *prepare, *SMALL)
    trainer.advance(trainer.stream(dataset))
    (row,) = registry()["reconstruction"].measure(
        Subject(dataset, Settings(n=180), model=trainer.sampler())
    )
    k, train = (dataset.arrays(split)[0].flatten(1).double() / 16 for split in ("test", "train"))
    if dequantise:
        away = k - train.mean(0)
        axes = torch.linalg.svd(train - train.mean(0), full_matrices=False)[2][:10]
        wanted = (away - away @ axes.T @ axes).square().sum(1).mean().item()
        assert row.value == pytest.approx(wanted, rel=2e-3)  # the noise turns the axes a little
    else:
        low, high = dataset.spec.range
        centres = ((trainer.model.centres - low) / (high - low)).double()
        assert row.value == pytest.approx(
            torch.cdist(k, centres).min(1).values.square().mean().item(), rel=1e-5
        )
    if dequantise:
        x = dataset.take("test", 20).x
        middle = without_noise(x, dataset.spec)
        width = (dataset.spec.range[1] - dataset.spec.range[0]) / 17
        assert ((x - middle).abs() <= width / 2 + 1e-6).all() and middle.unique().numel() <= 17
        assert math.isclose(middle.min().item(), dataset.spec.range[0] + width / 2, abs_tol=1e-6)
