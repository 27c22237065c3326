"""Runs of older formats keep loading: their samples, numbers and resumes are those of the version that made them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import composed, small

from genlab.builders import factory
from genlab.runs import migrations
from genlab.runs.run_folder import RunFolder

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD_RUNS = sorted(p.parent for p in FIXTURES.glob("format_*/*/run.json"))


@cache
def old_names(version: int) -> dict:
    """Return what a format's recipes were: their composed configs and the names of their states."""
    with gzip.open(FIXTURES / f"format_{version}" / "configs_and_states.json.gz", "rt") as file:
        return json.load(file)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Return the options of which two configs have different names or values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new}, key=str)
            for line in differences(
                old.get(key, "<absent>"), new.get(key, "<absent>"), f"{path}.{key}"
            )
        ]
    return [] if old == new else [f"{path[1:]}: {old!r} is now {new!r}"]


@pytest.mark.parametrize("words", old_names(1)["configs"])
def test_an_old_config_is_the_present_one_by_other_names(words: str) -> None:
    """Each recipe, experiment and data set as format 1 composed it becomes what is composed today."""
    present = [migrations.migrate_overrides([word], 1)[0] for word in words.split()]
    old = json.loads(json.dumps(migrations.migrate_config(old_names(1)["configs"][words], 1)))
    new = json.loads(json.dumps(composed(*present, "out=unused")))
    assert differences(old, new) == []


@pytest.mark.parametrize("recipe", old_names(1)["states"])
def test_an_old_state_fits_the_present_model(recipe: str) -> None:
    """The names and shapes of a recipe's weights, and its optimizers, are those of today after migration."""
    old = old_names(1)["states"][recipe]
    config = composed(*small(recipe))
    dataset = factory.make_dataset(config)
    device = factory.make_device(config["device"], seed=0)
    trainer = factory.make_trainer(config, factory.make_model(config, dataset.spec), device)
    state = trainer.state()
    made = {"model": old["model"], "optimizers": dict.fromkeys(old["optimizers"])} | {
        key: None for key in old["keys"] if key not in ("model", "optimizers")
    }
    migrated = migrations.migrate_checkpoint(made, config["model"]["_target_"])
    assert list(migrated["model"].items()) == sorted(
        ((name, list(value.shape)) for name, value in state["model"].items()),
        key=lambda item: list(migrated["model"]).index(item[0]),
    )
    assert set(migrated["optimizers"]) == set(state["optimizers"])
    assert set(migrated) == set(state)


@pytest.fixture(params=OLD_RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def old_run(request, tmp_path: Path) -> tuple[Path, dict, dict]:
    """A copy of an old run, and what the version that made it gave: its numbers and its arrays."""
    shutil.copytree(request.param, tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "expected.json").read_text())
    return tmp_path / "run", expected, dict(np.load(tmp_path / "run" / "expected.npz"))


def is_same_platform(expected: dict) -> bool:
    """Whether sums are rounded here as where the fixtures were made."""
    here = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()
    return (expected["torch"], expected["cpu"]) == here


def test_an_old_run_samples_evaluates_and_resumes(genlab, old_run) -> None:
    """Samples and resumed weights are equal bit for bit where the platform is the same, else within rounding."""
    folder, expected, arrays = old_run
    exact = is_same_platform(expected)
    if "sample_x" in arrays:
        assert (
            genlab("sample", "run=run", "n=6", "seed=3", "device=cpu", "device.threads=1").code == 0
        )
        (path,) = (folder / "samples").glob("*.npz")
        found = np.load(path)["x"]
        assert (
            np.array_equal(found, arrays["sample_x"])
            if exact
            else found.shape == arrays["sample_x"].shape
        )
    quick = (
        "iwae_samples=5",
        "elbo_timesteps=2",
        "batch_size=20",
        "device=cpu",
        "device.threads=1",
    )
    kind = RunFolder(folder).spec().kind
    features = ("features=[pixels]",) if kind == "image" else ()
    assert (result := genlab("evaluate", "run=run", "n=40", *quick, *features)).code == 0, (
        result.err
    )
    record = json.loads(next(folder.glob("metrics*.json")).read_text())
    rows = {row["name"]: row["value"] for row in record["metrics"] if row["metric"] != "efficiency"}
    wanted = {
        migrations.migrate_row_name(name): value for name, value in expected["metrics"].items()
    }
    assert set(rows) == set(wanted)
    if exact:
        assert rows == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    assert (
        result := genlab("train", "resume=run", "trainer.steps=9", "device=cpu", "device.threads=1")
    ).code == 0, result.err
    state = RunFolder(folder).load()
    weights = np.concatenate(
        [v.double().flatten().numpy() for v in state["model"].values()]
    ).astype("<f4")
    assert state["step"] == expected["step"]
    assert weights[:: max(1, -(-len(weights) // 1000))] == pytest.approx(
        arrays["weights"], rel=1e-3, abs=1e-4
    )
    if exact:
        assert hashlib.sha256(weights.tobytes()).hexdigest() == expected["weights_sha256"]


def test_old_runs_are_compared(genlab, tmp_path: Path) -> None:
    """Old runs stand beside each other in a comparison."""
    for path in OLD_RUNS:
        if path.name in ("vae", "pca"):
            shutil.copytree(path, tmp_path / path.name)
    result = genlab("compare", "runs=[vae,pca]", "n=20", "device=cpu", "metrics=[likelihood]")
    assert result.code == 0, result.err
    assert "nll" in result.out


@pytest.mark.parametrize(("words", "hint"), [(("train", "trainer.clip=1"), "trainer.grad_clip")])
def test_an_old_option_names_the_new_one(genlab, words: tuple[str, ...], hint: str) -> None:
    """An option of an older format is refused in one line that says what it is called now."""
    assert f"renamed to {hint}" in genlab(*words).error
