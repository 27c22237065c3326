"""Recipes that binarize digits do not make noise of photographs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import CONFIGS, compose_config, small_overrides
from omegaconf import OmegaConf
from PIL import Image

from genlab.builders import factory
from genlab.builders.fit_to_data import fit_to_data
from genlab.builders.resume_config import config_for_restart
from genlab.builders.train import fitted_options
from genlab.data.preprocessing import MAX_BINARIZATION_NOISE, binarization_noise_fraction
from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.runs.migrations import FORMAT
from genlab.runs.run_folder import RunFolder

SWITCHED = {  # recipe -> the likelihood for gray levels
    **dict.fromkeys(("vae", "vae_conv", "iwae", "vae_iwae", "cvae", "debias_vae"), "gaussian"),
    **dict.fromkeys(("beta_vae", "tc_vae", "dip_vae"), "gaussian"),
    **dict.fromkeys(("made", "pixelcnn"), "categorical"),
}
REFUSED = {  # recipe -> the one to use
    **dict.fromkeys(("rbm", "dbm", "dbn", "bm"), "grbm"),
    "bernoulli_mixture": "gmm",
    "m2": "cvae",
}
PHOTOS = ("dataset=fake", "dataset.num_classes=2", "dataset.n=20")  # noise in all gray levels


def test_every_binarizing_recipe_is_decided():
    """A new recipe that binarizes needs `gray_level_options` or `gray_level_recipe`."""
    pattern = re.compile(r"^  binarize: (dynamic|threshold)", re.MULTILINE)
    files = (CONFIGS / "model").glob("*.yaml")
    found = {path.stem for path in files if pattern.search(path.read_text())}
    assert found == {*SWITCHED, *REFUSED}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", SWITCHED)
def test_a_likelihood_for_gray_levels_is_chosen(recipe, channels):
    shape = f"dataset.shape=[{channels},16,16]"
    size = "preprocess.size=4" if recipe == "made" else "preprocess.size=16"
    words = (*small_overrides(recipe), *PHOTOS, shape, size)
    if recipe == "pixelcnn":
        words = (*words, "model.channels=15", "model.head_channels=30")
    config = compose_config(*words)
    config, dataset = factory.fit_recipe(config, factory.make_dataset(config), list(words))
    assert config["model"]["likelihood"] == SWITCHED[recipe]
    assert config["dataset"]["binarize"] == config["preprocess"]["binarize"] == "none"
    spec = dataset.spec
    assert spec.levels == 256 and spec.dequantized == (SWITCHED[recipe] == "gaussian")
    assert dataset.describe().notes[0].startswith("model.likelihood=")
    assert "binary" not in dataset.describe().shown
    again = factory.make_dataset(config)
    assert again.spec == spec, "a run that loads its config reads the same data"
    batch = dataset.head("train", 4)
    assert torch.equal(batch.x, again.head("train", 4).x)
    loss = factory.make_model(config, spec).loss(batch)["loss"]
    assert loss.isfinite()


@pytest.mark.parametrize("recipe", REFUSED)
def test_a_model_of_binary_data_is_refused_with_remedies_that_work(recipe):
    words = [*small_overrides(recipe), *PHOTOS, "preprocess.size=8"]
    config = compose_config(*words)
    with pytest.raises(UserError) as error:
        fit_to_data(config, factory.make_dataset(config), words)
    message = str(error.value)
    assert f"use model={REFUSED[recipe]}, or preprocess.binarize=" in message
    remedy = next(w for w in message.split() if w.startswith("preprocess.binarize="))
    assert not fit_to_data(config, factory.make_dataset(config), [*words, remedy]).options
    other = [*small_overrides(REFUSED[recipe]), *PHOTOS, "preprocess.size=8"]
    config = compose_config(*other)
    config, dataset = factory.fit_recipe(config, factory.make_dataset(config), other)
    factory.make_model(config, dataset.spec)


@pytest.mark.parametrize(
    "words",
    [
        ("model=vae", "dataset=digits"),
        ("model=rbm", "dataset=digits", "preprocess.size=32"),
        ("model=beta_vae",),
        ("model=bm",),
        ("model=gan", "dataset=fake"),
        ("model=vae", "dataset=fake", "preprocess.binarize=threshold"),
        ("model=vae", "dataset=fake", "dataset.binarize=dynamic"),
        ("model=vae", "dataset=fake", "model.likelihood=bernoulli"),
        ("model=flow_points", "dataset=ring"),
    ],
)
def test_digits_and_typed_options_stay_as_they_are(words):
    config = compose_config(*words, "out=unused")
    fit = fit_to_data(config, factory.make_dataset(config), list(words))
    assert not fit.options and fit.config == config


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (torch.tensor([0, 255, 255, 0]), 0.0),
        (torch.zeros(4), 0.0),
        (torch.full((4,), 100), 1.0),
        (torch.tensor([0, 255, 51]), (0.2 * 0.8 / 3) / (0.4 * 0.6)),
    ],
)
def test_binarization_noise_is_the_share_of_the_variance(k, expected):
    assert binarization_noise_fraction(k, 255) == pytest.approx(expected)


def test_photographs_and_digits_are_on_two_sides():
    from sklearn.datasets import load_digits, load_sample_images

    digits = torch.from_numpy(load_digits().images)
    assert binarization_noise_fraction(digits, 16) < MAX_BINARIZATION_NOISE
    for photo in load_sample_images().images:
        assert binarization_noise_fraction(torch.tensor(photo), 255) > MAX_BINARIZATION_NOISE


def test_models_of_users_are_refused_with_both_options():
    config = compose_config("model=vae", *PHOTOS, "out=unused")
    config["model"] = {"_target_": f"{__name__}.Own"}
    with pytest.raises(UserError, match=r"binarize=none, or preprocess\.binarize=dynamic to"):
        fit_to_data(config, factory.make_dataset(config), [])


class Own(GenerativeModel):
    """A model without an alternative."""


def test_captions_of_photographs_are_fitted_too():
    words = ("model=vae", "dataset=captions", "dataset@dataset.base=fake", "out=unused")
    names = "dataset.class_names=[a,b]"
    config = compose_config(*words, names, "dataset.base.num_classes=2", "dataset.base.n=20")
    config, dataset = factory.fit_recipe(config, factory.make_dataset(config), [])
    assert config["dataset"]["base"]["binarize"] == "none"
    assert dataset.spec.dequantized and dataset.spec.levels == 256
    assert dataset.describe().notes


def save_photos(folder: Path, n: int) -> None:
    folder.mkdir()
    for i in range(n):
        smooth = np.random.default_rng(i).integers(60, 200, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(smooth).resize((16, 16), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:03d}.png")


def test_a_folder_of_photographs_trains_resumes_and_loads(genlab, tmp_path):
    save_photos(tmp_path / "photos", 20)
    data = ("dataset=image_folder", "dataset.path=photos", "device=cpu")
    small = ("model.hidden=[4,4]", "model.latent=2", "trainer.steps=2", "out=run")
    result = genlab("train", "model=vae_conv", *data, *small)
    assert result.code == 0, result.err
    assert "data: image_folder: 16 train" in result.err
    assert "color 16×16, 256 levels dequantized to values in [0, 1]" in result.err
    assert "data: model.likelihood=gaussian preprocess.binarize=none" in result.err
    assert len(json.loads((tmp_path / "run" / "data.json").read_text())["notes"]) == 1
    run = RunFolder(tmp_path / "run")
    assert run.metadata()["fitted_options"]["dataset.binarize"] == "none"
    assert genlab("train", "resume=run", "trainer.steps=3", "device=cpu").code == 0
    assert genlab("sample", "run=run", "n=2", "device=cpu").code == 0


def test_a_fitted_job_of_a_sweep_continues(tmp_path):
    """The composed config has the recipe's options, the run's config those that were chosen."""
    words = (*small_overrides("vae"), *PHOTOS)
    given = compose_config(*words)
    config, _ = factory.fit_recipe(given, factory.make_dataset(given), list(words))
    assert config["preprocess"] != given["preprocess"]
    run = RunFolder.create(
        tmp_path / "job",
        config=OmegaConf.to_yaml(config),
        metadata={"format": FORMAT, "fitted_options": fitted_options(given, config)},
    )
    assert config_for_restart(compose_config(*words), run) == config
    with pytest.raises(UserError, match=r"model\.latent=20, but now it is 3"):
        config_for_restart(compose_config(*words, "model.latent=3"), run)


def test_pixelcnn_takes_numbers_of_features_that_the_colors_divide():
    words = ("model=pixelcnn", "model.num_layers=0", *PHOTOS, "dataset.shape=[3,8,8]", "out=unused")
    config = compose_config(*words)
    config, dataset = factory.fit_recipe(config, factory.make_dataset(config), list(words))
    assert config["model"]["channels"] == 126 and config["model"]["head_channels"] == 1023
    factory.make_model(config, dataset.spec)
