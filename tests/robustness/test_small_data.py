"""Data sets of a few images: everything that they allow works, and the rest has a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import build_training_objects, small_overrides
from PIL import Image

from genlab.errors import UserError

SMALL = ("model.hidden=[4]", "model.latent=2", "trainer.steps=4", "device=cpu", "out=run")


def save_images(folder: Path, n: int, *, num_classes: int = 0) -> str:
    """Write n gray drawings of 8×8, in class folders if there are classes."""
    for i in range(n):
        parent = folder / f"class_{i % num_classes}" if num_classes else folder
        parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).random((8, 8)) < 0.3
        Image.fromarray(pixels.astype(np.uint8) * 255).save(parent / f"{i:03d}.png")
    return f"dataset.path={folder}"


def metrics_of(run: Path) -> tuple[set[str], dict[str, str]]:
    """Return the metrics with numbers, and the reasons of those that were left out."""
    record = json.loads((run / "metrics.json").read_text())
    return {row["metric"] for row in record["metrics"]}, record["skipped"]


@pytest.mark.parametrize(
    ("n", "options", "split", "left_out"),
    [
        (3, ("dataset.validation=0.34",), "train", {"prdc"}),
        (3, ("dataset.validation=0.34",), "validation", None),
        (12, (), "test", None),
        (12, (), "train", set()),
        (20, (), "test", {"prdc"}),
    ],
)
def test_a_few_images_are_trained_on_and_evaluated(n, options, split, left_out, genlab, tmp_path):
    data = ("dataset=image_folder", save_images(tmp_path / "images", n), *options)
    often = ("trainer.evaluate_every=2", "trainer.validate_every=2", "trainer.preview_every=2")
    result = genlab("train", "model=vae", *data, *SMALL, *often)
    assert result.code == 0, result.err
    log = (tmp_path / "run" / "stats.jsonl").read_text()
    assert log.count('"validation/loss"') == 2 and "nll_elbo" in log
    assert result.err.count("evaluation: energy_distance is left out") == (n < 20), "said once"
    result = genlab("evaluate", "run=run", f"split={split}", "n=4" if n == 12 else "n=20")
    assert result.code == 0, result.err
    measured, skipped = metrics_of(tmp_path / "run")
    assert {"likelihood", "reconstruction", "efficiency"} <= measured
    if left_out is not None:
        assert set(skipped) - {"prdc"} == left_out - {"prdc"}
    for name, reason in skipped.items():
        assert reason.startswith("it requires at least "), name
        assert name in result.out and reason in " ".join(result.out.split())


def test_an_empty_validation_split_is_refused_before_the_first_step(genlab, tmp_path):
    words = ("train", "model=vae", "dataset=image_folder", save_images(tmp_path / "images", 3))
    error = genlab(*words, *SMALL, "trainer.evaluate_every=2").error
    assert "image_folder has no validation items" in error and not (tmp_path / "run").exists()
    assert "trainer.evaluate_every=0" in error
    remedy = next(word for word in error.split() if word.startswith("dataset.validation="))
    result = genlab(*words, *SMALL, "trainer.evaluate_every=2", remedy.rstrip(","))
    assert result.code == 0, result.err
    error = genlab("evaluate", "run=run", "device=cpu").error
    assert "the test split of image_folder is empty" in error and "split=train (2 items)" in error


def test_a_monitored_metric_that_needs_more_items_is_refused(genlab, tmp_path):
    data = ("dataset=image_folder", save_images(tmp_path / "images", 12))
    monitor = ("trainer.evaluate_every=2", "trainer.monitor=active_units")
    error = genlab("train", "model=vae", *data, *SMALL, *monitor).error
    assert "trainer.monitor=active_units cannot be measured: it requires at least 2" in error


def test_a_named_metric_that_needs_more_items_is_refused_alone(genlab, tmp_path):
    data = ("dataset=image_folder", save_images(tmp_path / "images", 12))
    assert genlab("train", "model=vae", *data, *SMALL).code == 0
    error = genlab("evaluate", "run=run", "metrics=[prdc]", "device=cpu").error
    assert "no metric can be measured: prdc: it requires at least 6 held-out items" in error
    named = "metrics=[prdc,likelihood]"
    assert genlab("evaluate", "run=run", named, "device=cpu").code == 0
    result = genlab("compare", "runs=[run]", "metrics=[prdc,likelihood]", "device=cpu")
    assert result.code == 0 and "nll" in result.out


def test_one_image_per_class_trains_a_conditional_model(genlab, tmp_path):
    data = ("dataset=image_folder", save_images(tmp_path / "images", 3, num_classes=3))
    nothing_held_out = ("dataset.validation=0", "dataset.test=0")
    result = genlab("train", "model=cvae", *data, *SMALL, *nothing_held_out)
    assert result.code == 0, result.err
    result = genlab("evaluate", "run=run", "split=train", "device=cpu")
    assert result.code == 0, result.err
    measured, skipped = metrics_of(tmp_path / "run")
    assert {"frechet", "energy_distance"} <= measured, "in pixels, without a classifier"
    assert "measured on held-out items" in skipped["class_accuracy"]


@pytest.mark.parametrize("recipe", ["rbm", "bm", "dbm", "dbn", "glow", "vae", "gan", "ddpm_small"])
def test_batches_of_one_item_have_finite_losses(recipe):
    words = (*small_overrides(recipe), "trainer.batch_size=1")
    _, dataset, trainer = build_training_objects(*words)
    batches = trainer.train_batches(dataset)
    for _ in range(2):
        losses = trainer.train_step(batches)
        assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())


@pytest.mark.parametrize("recipe", ["infogan", "dcgan"])
def test_batch_normalization_of_one_item_says_what_to_set(recipe):
    words = small_overrides(recipe)
    _, dataset, trainer = build_training_objects(*words, "trainer.batch_size=1")
    try:
        trainer.train_step(trainer.train_batches(dataset))
    except UserError as error:
        assert "trainer.batch_size=2" in str(error)
    _, dataset, trainer = build_training_objects(*words, "trainer.batch_size=2")
    trainer.train_step(trainer.train_batches(dataset))


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("gmm", "model.num_components"),
        ("bernoulli_mixture", "model.num_components"),
        ("kmeans", "model.num_clusters"),
        ("pca", "model.latent"),
    ],
)
def test_more_components_than_items_name_a_number_that_fits(recipe, option, genlab, tmp_path):
    data = ("dataset=image_folder", save_images(tmp_path / "images", 5))
    words = (f"model={recipe}", f"{option}=7", "trainer.steps=1", "device=cpu", "out=run")
    error = genlab("train", *words, *data).error
    remedy = [word for word in error.split() if word.startswith(f"{option}=")][-1]
    result = genlab("train", *words, *data, remedy)
    assert result.code == 0, result.err
