"""Commands on diffusion models: restoration, editing, codes, classification, likelihood."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.kinds import first_of_each_kind

from genlab import console
from genlab.builders import entrypoints
from genlab.commands.classify import classify
from genlab.commands.colorize import colorize
from genlab.commands.denoise import denoise
from genlab.commands.evaluate import evaluate
from genlab.commands.inpaint import inpaint
from genlab.commands.interpolate import interpolate, interpolate_spherically
from genlab.commands.reconstruct import reconstruct
from genlab.commands.sample import sample
from genlab.commands.superres import superres
from genlab.commands.translate import translate
from genlab.errors import UserError

SMALL = (
    "backbone=unet_small",
    "model.backbone.channels=8",
    "model.backbone.attention_resolutions=[4]",
)
RUNS = {
    "ddpm": ("model=ddpm_small", *SMALL, "model.timesteps=20", "model.conditional=true"),
    "edm": ("model=edm", *SMALL, "model.backbone.num_blocks=1", "model.conditional=true"),
    "flow_matching": ("model=flow_matching", *SMALL, "model.conditional=true"),
    "colour": ("model=flow_matching", *SMALL, "dataset=fake", "dataset.shape=[3,8,8]"),
    "vae": ("model=vae",),
    "codec": ("model=ae",),
    "points": ("model=edm_points", "dataset.n=500", "model.backbone.hidden=[16]"),
}
each_image = pytest.mark.parametrize("name", ["ddpm", "edm", "flow_matching"])


@cache
def load(folder: Path):
    return entrypoints.load_run({"run": str(folder), "device": {"name": "cpu"}})


@pytest.fixture
def run(train_run):
    def find(name: str):
        if name == "latent":
            return load(
                train_run(
                    "model=ldm",
                    f"codec.run={train_run(*RUNS['codec'])}",
                    "model.diffusion.conditional=true",
                )
            )
        return load(train_run(*RUNS[name]))

    return find


def arrays(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.glob("*.npz")
    return dict(np.load(path))


@each_image
def test_sampling_counts_its_batches_and_steps(run, name, tmp_path, monkeypatch):
    shown, folder = [], run(name)
    count = console.Progress.update

    def record(progress, units=1):
        count(progress, units)
        shown.append(progress.format_position())

    monkeypatch.setattr(console.Progress, "update", record)
    sample(folder, n=3, batch_size=2, sampler={"steps": 4}, output_dir=str(tmp_path))
    assert "drawing samples 2/2" in shown
    (steps,) = {line.partition("/")[2] for line in shown if line.startswith("sampling ")}
    assert shown.count(f"sampling {steps}/{steps}") == 2  # once per batch


@pytest.mark.parametrize("name", ["ddpm", "points", "latent"])
@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("steps", 0),
        ("steps", "many"),
        ("eta", -0.1),
        ("eta", "some"),
        ("eta", 1.5),
        ("churn_gamma", -1),
        ("time_shift", 0),
        ("time_shift", "far"),
        ("timestep_spacing", "cubic"),
        ("variance", "none"),
        ("guidance", -2),
        ("guidance_interval", 3),
        ("guidance_interval", [1]),
        ("guidance_interval", [3, 0.2]),
        ("noise_sigma_interval", 3),
        ("noise_sigma_interval", [3, 0.2]),
        ("noise_sigma_interval", [0.2, 3]),
        ("dynamic_threshold", 2),
    ],
)
def test_sampler_option_refuses_invalid_values(run, name, option, bad, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"sampler.{option}")):
        sample(run(name), n=2, sampler={option: bad}, output_dir=str(tmp_path))


@each_image
def test_diffusion_super_resolution(run, name, tmp_path):
    record = superres(run(name), n=4, factor=2, output_dir=str(tmp_path))
    found = arrays(tmp_path)
    assert found["output"].shape == (4, 1, 8, 8) and np.isfinite(found["output"]).all()
    assert record["task"] == "superres" and record["method"] == "restore"
    assert "psnr_db_bicubic" in record
    with pytest.raises(UserError, match=r"dataset.factor=3"):
        superres(run(name), n=2, factor=3, output_dir=str(tmp_path))
    with pytest.raises(UserError, match="items of its dataset"):
        superres(run(name), input_dir=str(tmp_path))


def test_colorized_images_agree_with_their_gray_sources(run, tmp_path):
    colorize(run("colour"), n=4, output_dir=str(tmp_path))
    found = arrays(tmp_path)
    grey = (found["output"] * np.array([0.299, 0.587, 0.114])[None, :, None, None]).sum(
        1, keepdims=True
    )
    assert found["output"].shape == (4, 3, 8, 8) and np.abs(grey - found["source"]).mean() < 0.15
    with pytest.raises(UserError, match="color images"):
        colorize(run("ddpm"), n=2, output_dir=str(tmp_path))


@each_image
def test_edit_strength_controls_the_change(run, name, tmp_path):
    weak = translate(run(name), n=6, strength=0.0, output_dir=str(tmp_path / "a"))
    assert weak["squared_error_to_source"]["value"] < 1e-6
    strong = translate(run(name), n=6, strength=1.0, label=3, output_dir=str(tmp_path / "b"))
    assert strong["squared_error_to_source"]["value"] > 1
    with pytest.raises(UserError, match="classes 0 to 9"):
        translate(run(name), n=2, label=10)


@each_image
def test_denoise_uses_the_noise_level(run, name, tmp_path):
    record = denoise(run(name), n=6, level=0.1, output_dir=str(tmp_path))
    assert record["level"] == 0.1 and np.isfinite(record["psnr_db_after"]["value"])
    with pytest.raises(UserError, match="noise=gaussian"):
        denoise(run(name), n=2, noise="masking", output_dir=str(tmp_path))


# tests/models/test_diffusion_objectives.py checks the densities of all paths.
@pytest.mark.parametrize(
    "name",
    first_of_each_kind(
        ["ddpm", "points", "edm", "flow_matching"],
        lambda name: "points" if name == "points" else "images",
    ),
)
def test_codes_inpainting_and_likelihood(run, name, tmp_path):
    of = run(name)
    assert np.isfinite(
        reconstruct(of, n=4, output_dir=str(tmp_path / "a"))["squared_error"]["value"]
    )
    inpaint(of, n=3, mask="half", half="left", draws=2, steps=5, output_dir=str(tmp_path / "b"))
    found = arrays(tmp_path / "b")
    assert np.allclose(
        np.where(found["hidden"][:, None], 0, found["filled"] - found["x"][:, None]), 0
    )
    found = evaluate(of, n=8, elbo_timesteps=3, metrics=["likelihood", "ode_likelihood"])
    assert all(np.isfinite(found[key]) for key in ("nll_elbo", "nll_ode"))
    assert ("bits_per_dim_ode" in found) == (name != "points") and ("kl_to_truth_ode" in found) == (
        name == "points"
    )
    rows = [
        row
        for row in json.loads((of.folder.path / "metrics.json").read_text())["metrics"]
        if "ode" in row["name"]
    ]
    schedule = getattr(of.model, "schedule", None)
    sigma = schedule.snr(torch.tensor([0])).item() ** -0.5 if schedule else 0.002
    said = (
        f"{sigma:.2g}" if name == "points" else f"{sigma / (2 / 16):.2g} gray levels"
    )  # of the digits' 17
    assert (
        all(row["conditions"]["start noise"] == said and row["tag"] == "estimate" for row in rows)
        and len(rows) == 2
    )


DEFAULT_METHODS = {
    "ddpm": "spherical",
    "points": "spherical",
    "latent": "spherical",
    "vae": "linear",
}


@pytest.mark.parametrize(("name", "method"), DEFAULT_METHODS.items())
def test_interpolation_method_defaults_to_that_of_the_model(run, name, method, tmp_path):
    assert interpolate(run(name), n=2, frames=3, output_dir=str(tmp_path / "a"))["method"] == method
    found = arrays(tmp_path / "a")
    a, b = (torch.from_numpy(found["z"][:, k]) for k in (0, -1))
    middle = (
        interpolate_spherically(a, b, torch.tensor([0.5]))
        if method == "spherical"
        else (a + b)[:, None] / 2
    )
    torch.testing.assert_close(torch.from_numpy(found["z"][:, 1:2]), middle)
    asked = interpolate(
        run(name), n=2, frames=3, method="linear", endpoints="prior", output_dir=str(tmp_path / "b")
    )
    assert asked["method"] == "linear"


def test_latent_diffusion_supports_the_commands_on_codes(run, tmp_path):
    of = run("latent")
    assert np.isfinite(
        reconstruct(of, n=3, output_dir=str(tmp_path / "a"))["squared_error"]["value"]
    )
    back = reconstruct(run("codec"), n=6, output_dir=str(tmp_path / "b"))["squared_error"]["value"]
    weak = translate(of, n=6, strength=0.0, output_dir=str(tmp_path / "c"))[
        "squared_error_to_source"
    ]["value"]
    strong = translate(of, n=6, strength=1.0, label=3, output_dir=str(tmp_path / "d"))[
        "squared_error_to_source"
    ]["value"]
    assert weak == pytest.approx(back, rel=1e-4) and strong != weak  # the error of the codec itself
    first, again = (classify([of], n=8, elbo_timesteps=2) for _ in range(2))
    assert first["nll_of_labels"] == again["nll_of_labels"] and "noise" in first["rule"]
    for ask in (denoise, superres):  # noise on pixels has an unknown level on codes
        with pytest.raises(UserError, match="ldm does not support"):
            ask(of, n=2)


@each_image
def test_classification_uses_the_same_noise_for_every_class(run, name):
    of = run(name)
    for score, said in ((None, "noise"), ("noise", "noise"), ("bound", "bound")):
        first, again = (classify([of], n=8, elbo_timesteps=2, score=score) for _ in range(2))
        assert first["nll_of_labels"] == again["nll_of_labels"] and said in first["rule"]
