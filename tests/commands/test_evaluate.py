"""genlab evaluate: of runs, of samples drawn elsewhere, and while a run trains."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cli_runner import run_here
from helpers.recipes import build_training_objects
from PIL import Image

from genlab.data.external_samples import read_samples
from genlab.errors import UserError
from genlab.metrics.base import Settings
from genlab.metrics.cache import content_hash, load_cached_or_compute
from genlab.metrics.context import MetricContext
from genlab.metrics.features.classifier import Classifier
from genlab.metrics.registry import all_metrics_by_name, applicable_metrics
from genlab.spec import Batch, DataSpec
from genlab.system import user_cache_folder
from genlab.viz import item_pictures

SMALL = ("trainer.batch_size=8", "device=cpu", "out=unused")
SUBJECTS = {
    "vae": ("model=vae", "model.hidden=[16]"),
    "gan, conditional": ("model=gan", "model.conditional=true", "dataset=digits"),
    "rbm": ("model=rbm", "model.hidden=8"),
    "realnvp_points": ("model=realnvp_points", "dataset=ring", "dataset.n=500"),
    "vae on shapes": (
        "model=vae",
        "model.hidden=[16]",
        "dataset=shapes",
        "dataset.n=600",
        "preprocess.size=16",
    ),
    "gpt_text": (
        "model=gpt_text",
        "model.num_layers=1",
        "model.num_heads=2",
        "model.width=16",
        "dataset.length=17",
    ),
}


@pytest.mark.parametrize("which", SUBJECTS)
def test_metrics_return_the_rows_that_they_announce(which):
    _, dataset, trainer = build_training_objects(*SUBJECTS[which], *SMALL)
    training = {"steps": 10, "seconds": 1.0, "items_per_s": 80.0, "memory_mb": 100.0}
    context = MetricContext(
        dataset,
        Settings(n=40, iwae_samples=2, elbo_timesteps=2),
        model=trainer.eval_model(),
        training=training,
    )
    fitting = applicable_metrics(context, "on_request")
    assert {
        "vae": "likelihood",
        "gan, conditional": "class_accuracy",
        "rbm": "likelihood",
        "realnvp_points": "mode_coverage",
        "vae on shapes": "disentanglement",
        "gpt_text": "likelihood",
    }[which] in fitting
    for name, metric in fitting.items():
        rows = metric.measure(context)
        assert [row.name for row in rows] == metric.row_names(context), name
        for row in rows:
            assert row.tag in ("exact", "bound", "estimate") and row.better in (
                "lower",
                "higher",
                "neither",
            ), row
            assert np.isfinite(row.value) and (row.error is None or row.error >= 0), row
            assert json.dumps(row.to_json())
    again = MetricContext(
        dataset,
        Settings(n=40, iwae_samples=2, elbo_timesteps=2),
        model=trainer.eval_model(),
        training=training,
    )
    for name in set(fitting) - {"efficiency"}:  # its seconds vary
        if applicable_metrics(again, "on_request")[name].stage != "on_request":
            assert all_metrics_by_name()[name].measure(again) == fitting[name].measure(context), (
                f"{name} depends on more than the seed"
            )


def test_evaluate_prints_a_table_and_writes_a_record_and_pictures(genlab, train_run):
    run = train_run("model=gan", "model.conditional=true", "dataset=digits")
    result = genlab("evaluate", f"run={run}", "n=50")
    assert result.code == 0, result.err
    record = json.loads((run / "metrics.json").read_text())
    names = {row["name"] for row in record["metrics"]}
    assert {
        "frechet_classifier",
        "kid_classifier",
        "precision_classifier",
        "class_accuracy",
        "parameters",
    } <= names
    for row in record["metrics"]:
        assert row["name"] in result.out
        if row["name"].endswith("_classifier"):
            assert "% on digits test" in row["conditions"]["features"], (
                "the feature space reports its accuracy"
            )
    assert record["absent"]["likelihood"].startswith("GAN does not support log_prob")
    assert "metrics=[cas]" in record["absent"]["cas"]
    assert {"samples", "reals", "nearest"} <= set(record["pictures"])
    for path in record["pictures"].values():
        assert np.asarray(Image.open(run / path)).ndim == 3


def test_each_sampler_has_its_own_metrics_file(genlab, train_run):
    run = train_run("model=ddpm_points", "dataset=ring", "dataset.n=500")
    ask = (
        "evaluate",
        f"run={run}",
        "n=20",
        "elbo_timesteps=2",
        "metrics=[energy_distance,efficiency]",
        "sampler=ddim",
        "sampler.steps=5",
        "sampler.eta=0.5",
        "sampler.noise_sigma_interval=[0.2,3]",
    )
    result = genlab(*ask)
    assert result.code == 0, result.err
    record = json.loads(
        (run / "metrics-ddim-steps5-eta0.5-noise_sigma_interval0.2,3.json").read_text()
    )
    assert {row["name"]: row["value"] for row in record["metrics"]}["network_evaluations"] == 5
    assert "ddim" in record["metrics"][0]["conditions"]["sampler"]
    assert not (run / "metrics.json").exists()
    assert "sampler=gibbs is not for ddpm_points" in genlab(*ask[:3], "sampler=gibbs").error


def test_samples_from_files_are_measured_like_those_of_a_run(genlab, train_run, tmp_path):
    run = train_run("model=gan", "model.conditional=true", "dataset=digits")
    done = genlab(
        "sample",
        f"run={run}",
        "n=60",
        "label=[0,1,2,3,4,5,6,7,8,9]",
        "images=true",
        f"output_dir={tmp_path / 'drawn'}",
    )
    assert done.code == 0, done.err
    npz, images = (next(tmp_path.glob(f"drawn/{kind}")) for kind in ("*.npz", "*/"))
    with np.load(npz) as file:
        x, y, bounds = file["x"], file["y"], file["range"]
    as_bytes = (
        np.rint((x - bounds[0]) / (bounds[1] - bounds[0]) * 255).clip(0, 255).astype(np.uint8)
    )
    np.savez(tmp_path / "bytes.npz", as_bytes.transpose(0, 2, 3, 1))
    np.save(tmp_path / "unit.npy", as_bytes / 255)
    found = {}
    for name, path, options in [
        ("genlab's", npz, ()),
        ("folder", images, ()),
        ("bytes", tmp_path / "bytes.npz", ()),
        ("floats", tmp_path / "unit.npy", ("preprocess.range=[0,1]",)),
    ]:
        out = tmp_path / f"{name}.json"
        result = genlab(
            "evaluate", f"samples='{path}'", "dataset=digits", f'output_file="{out}"', *options
        )
        assert result.code == 0, result.err
        record = json.loads(out.read_text())
        found[name] = {row["name"]: row["value"] for row in record["metrics"]}
        assert "only samples are given" in record["absent"]["likelihood"]
    accuracy = found["genlab's"].pop("class_accuracy")
    assert 0 <= accuracy <= 1 and len(y) == 60, "the labels in the file are used"
    assert all(found["genlab's"] == other for other in found.values()), found


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"x": np.zeros((9, 1, 7, 7))}, (), "preprocess.size"),
        ({"x": np.full((9, 1, 8, 8), 7.0)}, (), "outside of [-1, 1]"),
        ({"x": np.full((9, 1, 8, 8), np.nan)}, (), "not finite"),
        ({"x": np.zeros((2, 1, 8, 8))}, (), "at least 4"),
        ({"x": np.zeros((9, 1, 8, 8))}, ("n=10",), "n=10 cannot be measured"),
        ({"x": np.zeros((9, 1, 8, 8)), "y": np.zeros(3)}, (), "y is (3,)"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, (), "has the arrays a, b"),
        ({"x": np.array(["a"], dtype=object)}, (), "plain numbers"),
        ({"x": np.zeros((9, 1, 8, 8))}, ("metrics=[likelihood]",), "only samples are given"),
        ({"x": np.zeros((9, 1, 8, 8))}, ("features=[coordinates]",), "does not suit digits"),
        ({"x": np.zeros((9, 1, 8, 8))}, ("features=[inceptoin]",), "did you mean 'inception'"),
        ({"x": np.zeros((9, 1, 8, 8))}, ("run=somewhere",), "not both"),
        (None, (), "no such file or folder"),
        ({"x": np.linspace(0, 1, 576).reshape(9, 1, 8, 8)}, (), "preprocess.range=[0,1]"),
        ({"x": np.full((9, 8, 8), 999)}, (), "integers from 999 to 999"),
        ({"x": np.eye(64, dtype=int)[:9].reshape(9, 8, 8)}, (), "0 and 1: save black and white"),
        ({"x": np.zeros((9, 3, 8, 8))}, (), "(3, 8, 8) each"),
        ({"x": np.zeros((9, 1, 8, 8))}, ("resize=pad",), "resize=pad is for a folder of images"),
    ],
)
def test_invalid_samples_are_refused(genlab, tmp_path, arrays, options, words):
    if arrays:
        np.savez(tmp_path / "given.npz", **arrays)
    assert words in genlab("evaluate", "samples=given.npz", "dataset=digits", *options).error


def test_run_is_measured_on_its_own_data(genlab, train_run):
    assert "samples=" in genlab("evaluate", f"run={train_run('model=gan')}", "dataset=digits").error
    assert "samples= requires dataset=" in genlab("evaluate", "samples=x").error


def test_monitored_metric_selects_the_best_checkpoint(genlab, tmp_path):
    run = (
        "train",
        "model=gan",
        "trainer.steps=4",
        "trainer.batch_size=8",
        "trainer.evaluate_every=2",
        "trainer.preview_every=0",
        "device=cpu",
        "out=run",
        "evaluate.metrics=[frechet]",
        "evaluate.n=40",
    )
    result = genlab(*run, "trainer.monitor=frechet_classifier")
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "checkpoints" / "best.pt").exists()
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    ]
    assert [set(line["evaluation"]) for line in lines if "evaluation" in line] == [
        {"frechet_classifier"}
    ] * 2
    assert "there are frechet_classifier" in genlab(*run, "out=other", "trainer.monitor=nll").error
    assert "did you mean 'frechet'" in genlab(*run, "out=other", "evaluate.metrics=[frechit]").error
    assert "evaluate.n=3" in genlab(*run, "out=other", "evaluate.n=3").error


def test_cache_is_keyed_by_content(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(3)}

    for _ in range(2):
        assert load_cached_or_compute("kind", "key", make)["x"].tolist() == [0, 1, 2]
    assert len(made) == 1
    (path,) = user_cache_folder().rglob("*.pt")
    path.write_bytes(path.read_bytes()[:50])
    assert load_cached_or_compute("kind", "key", make)["x"].tolist() == [0, 1, 2] and len(made) == 2
    assert "is computed again" in capsys.readouterr().err
    zeros = torch.zeros(2, 3)
    keys = {
        content_hash(zeros),
        content_hash(zeros.T),
        content_hash(zeros.double()),
        content_hash("a", "b"),
        content_hash("ab"),
    }
    assert len(keys) == 5


def test_classifier_is_independent_of_the_validation_split():
    spaces = []
    for share in (0.1, 0.3):  # the validation split does not change the feature space
        _, dataset, _ = build_training_objects("model=gan", f"dataset.validation={share}", *SMALL)
        before = torch.get_rng_state()
        spaces.append(Classifier.load_or_train_for_dataset(dataset, torch.device("cpu")))
        assert torch.equal(torch.get_rng_state(), before)
    assert spaces[0].key == spaces[1].key and spaces[0].accuracy > 0.97
    train, test = dataset.head_as_uint8_images("train"), dataset.head_as_uint8_images("test")
    assert spaces[0](train.x)[0].square().mean().sqrt() == pytest.approx(1, abs=0.02), (
        "features are normalized"
    )
    assert (spaces[0](test.x)[1].argmax(1) == test.y).double().mean() == pytest.approx(
        spaces[0].accuracy
    )


@pytest.mark.parametrize("binarize", ["none", "dynamic", "threshold"])
def test_head_as_uint8_images_returns_the_original_bytes(binarize):
    _, dataset, _ = build_training_objects(
        "model=gan", f"preprocess.binarize={binarize}", "preprocess.range=[0,1]", *SMALL
    )
    shown, taken = (
        dataset.head_as_uint8_images("test", 50, seed=3),
        dataset.head("test", 50, seed=3),
    )
    assert shown.x.dtype == torch.uint8 and torch.equal(shown.y, taken.y)
    if binarize == "dynamic":  # the probabilities are returned; 0 and 1 are certain
        sure = (shown.x == 0) | (shown.x == 255)
        assert torch.equal(shown.x[sure] / 255, taken.x[sure]) and not sure.all()
    else:
        torch.testing.assert_close(shown.x / 255, taken.x, atol=1 / 510 + 1e-6, rtol=0)


def test_labels_of_samples_are_as_frequent_as_in_training():
    _, dataset, trainer = build_training_objects("model=gan", "model.conditional=true", *SMALL)
    context = MetricContext(dataset, Settings(n=300), model=trainer.eval_model())
    assert (
        len(context.preview_samples(5)) == 5 and context.sampling_seconds is None
    )  # a preview draws no more samples than it shows
    assert isinstance(context.generated, Batch)
    assert torch.equal(context.preview_samples(5).x, context.generated.x[:5])
    counts = torch.bincount(context.generated.y, minlength=10)
    assert len(counts) == 10 and counts.min() > 10
    assert context.sampling_seconds > 0


COLOR = ("dataset=fake", "dataset.shape=[3,8,8]")
DIGITS = ("dataset=digits",)


@pytest.mark.parametrize(
    ("shape", "dataset", "words"),
    [
        ((8, 16), DIGITS, "16×8 in 1 channel, and the dataset 8×8"),  # was stretched in silence
        ((16, 16), DIGITS, "set preprocess.size=16 to measure at their size, or resize=center"),
        ((8, 8, 3), DIGITS, "is in color, and the dataset is gray"),
        ((8, 8), COLOR, "are gray, and the dataset is in color"),
    ],
)
def test_samples_of_another_shape_are_refused(shape, dataset, words, genlab, tmp_path):
    for i in range(5):
        x = np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8)
        item_pictures.write_image_as_png(x.reshape(*shape[:2], -1), tmp_path / f"drawn/{i}.png")
    assert words in genlab("evaluate", "samples=drawn", *dataset).error


@pytest.mark.parametrize("bits", [10, 16])
def test_samples_of_16_bits_are_not_black(bits, tmp_path):
    """Their range is that of the data's files, else it is known or asked for."""
    top = 2**bits - 1
    spec = DataSpec((1, 4, 4), range=(0.0, 1.0))
    x = np.linspace(0, top, 16).round().astype(np.uint16).reshape(4, 4)
    Image.fromarray(x).save(tmp_path / "0.png")
    batch = read_samples(tmp_path, spec, file_range=(0.0, float(top)))
    assert batch.x.min() == 0 and batch.x.max() == 1
    if bits == 16:
        assert read_samples(tmp_path, spec).x.max() == 1
        return
    with pytest.raises(UserError, match="values from 0 to 1023.*save them with 8 bits"):
        read_samples(tmp_path, spec)


def test_samples_are_resized_as_requested(tmp_path):
    """Each way keeps what it promises; gray pixels in a color file are gray."""
    x = np.zeros((8, 16), np.uint8)
    x[:, 8:] = 255
    spec = DataSpec((1, 8, 8), range=(0.0, 1.0), class_names=("dog", "cat"), num_classes=2)
    for name in ("dog", "cat"):
        item_pictures.write_image_as_png(np.stack([x, x, x], 2), tmp_path / name / "0.png")
    (tmp_path / "readme.txt").write_text("")
    for resize, mean in (("center", 0.5), ("pad", 0.25), ("stretch", 0.5)):
        notes: list[str] = []
        batch = read_samples(tmp_path, spec, resize=resize, notes=notes)
        assert batch.x.shape == (2, 1, 8, 8)
        assert batch.x.mean() == pytest.approx(mean, abs=0.01)
        assert batch.y.tolist() == [1, 0], "folders are named after the classes"
        assert f"resized to 8×8 with resize={resize}: 2 of 16×8" in notes
        assert any("left out" in note for note in notes)
    other = replace(spec, class_names=("cat", "mouse"))
    assert read_samples(tmp_path, other, resize="pad", notes=notes).y is None
    assert "the folder dog is not a class of the data" in notes[-1]


def test_evaluate_refuses_an_unsuitable_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no image" in run_here("evaluate", "samples=empty", "dataset=digits", cwd=tmp_path).error
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "empty" / "a.png")
    assert (
        "give an .npz" in run_here("evaluate", "samples=empty", "dataset=ring", cwd=tmp_path).error
    )
    (tmp_path / "empty" / "b.png").write_bytes(b"no image")
    assert "b.png" in run_here("evaluate", "samples=empty", "dataset=digits", cwd=tmp_path).error
