"""Runs of older formats keep loading: they sample, evaluate and resume exactly as before."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import compose_config, small_overrides

from genlab.builders import factory
from genlab.config.instantiate import import_target, parameters_and_type_hints
from genlab.runs import migrations
from genlab.runs.run_folder import RunFolder

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD_RUNS = sorted(p.parent for p in FIXTURES.glob("format_*/*/run.json"))


# Options whose values changed: runs of before keep theirs in their own config.
TABLE_DEFAULTS = [
    "dataset.label: 'last' is now 'auto'",
    "dataset.skip_columns: [] is now None",
]
RETUNED = {
    "dataset=table": TABLE_DEFAULTS,
    "experiment=nsf_magic": TABLE_DEFAULTS,
    "model=acgan": ["model.d_learns_fake_classes: '<absent>' is now True"],
    "model=dbm": [
        "trainer.cd_steps: 1 is now 5",
        "trainer.stage_lr_mults: [] is now [1, 0.1]",
    ],
    "model=edm": [
        "model.backbone.channel_mult: [1, 2, 2, 2] is now [2, 2, 2]",
        "model.c_noise_scale: '<absent>' is now 1.0",
    ],
    "model=flow_matching": [
        "model.backbone.dropout: 0.1 is now 0.0",
        "trainer.lr_schedule: 'constant' is now 'linear'",
        "trainer.lr_warmup_steps: 5000 is now 45000",
        "trainer.steps: 400000 is now 391000",
    ],
    "model=glow": ["dataset.flip: True is now False", "preprocess.flip: True is now False"],
    "model=improved_ddpm": [
        "model.backbone.scale_shift_norm: '<absent>' is now True",
        "model.rescale_timesteps: '<absent>' is now True",
    ],
    "model=maf": ["model.hidden: [1024] is now [1024, 1024]"],
    "model=progan": ["trainer.reset_optimizers: '<absent>' is now True"],
    "model=projection_gan": [
        "trainer.g_batch_mult: '<absent>' is now 2",
        "trainer.steps: 100000 is now 50000",
    ],
    "model=rectified_flow": ["model.teacher.backbone.dropout: 0.1 is now 0.0"],
    "model=sngan": [
        "trainer.g_batch_mult: '<absent>' is now 2",
        "trainer.steps: 100000 is now 50000",
    ],
    "model=wgan_gp": [
        "model.g_class_weight: '<absent>' is now 0.1",
        "trainer.g_batch_mult: '<absent>' is now 2",
    ],
    "experiment=wgan_gp_mnist": ["model.g_class_weight: '<absent>' is now 0.1"],
    "model=nice": ["optimizer.betas: [0.9, 0.01] is now [0.9, 0.99]"],
    "model=next_frame": ["trainer.grad_clip: 0.0 is now 1.0"],
}


# Options with which these recipes build the networks that they had in format 1.
OLD_NETWORKS = {
    "edm": ("model.backbone.channel_mult=[1,2,2,2]",),
    "improved_ddpm": ("model.backbone.scale_shift_norm=false",),
    "maf": ("model.hidden=[1024]",),
}


# Entries of a checkpoint that were added since, and without which it loads.
ADDED_STATE = {"evaluated_step", "failure_counts", "has_noted_few_items"}

# Rows of metrics that were added since.
ADDED_ROWS = {"code_purity", "code_nmi", "code_ari"}


@cache
def old_names(version: int) -> dict:
    """Return the composed configs and the state names of the recipes of a format."""
    with gzip.open(FIXTURES / f"format_{version}" / "configs_and_states.json.gz", "rt") as file:
        return json.load(file)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Return a line for each option that differs between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new}, key=str)
            for line in differences(
                old.get(key, "<absent>"), new.get(key, "<absent>"), f"{path}.{key}"
            )
        ]
    return [] if old == new else [f"{path[1:]}: {old!r} is now {new!r}"]


def default_differences(old: dict, new: dict) -> list[str]:
    """Return the lines of `differences` for options that were added since, with their defaults.

    Such an option has the default of the class or function that takes it, which an old config
    without the option gets too.
    """
    trainer = {"trainer": {"name": new["trainer"]["name"]}}
    sections = {"trainer": factory.trainer_class_and_options(trainer)[0].Options}

    def find(old: object, new: object, path: str) -> list[str]:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return []
        target = sections.get(path)
        if "_target_" in new:
            target = import_target(new, path)
        parameters = parameters_and_type_hints(target)[0] if target else []
        defaults = json.loads(
            json.dumps({p.name: p.default for p in parameters}, default=lambda value: "none")
        )
        lines = []
        for key, value in new.items():
            inner = f"{path}.{key}" if path else key
            if key not in old and value == defaults.get(key, "<required>"):
                lines += differences({}, {key: value}, f".{path}")
            lines += find(old.get(key), value, inner)
        return lines

    return find(old, new, "")


@pytest.mark.parametrize("words", old_names(1)["configs"])
def test_an_old_config_migrates_to_the_present_one(words: str) -> None:
    """Each recipe, experiment and dataset of format 1 becomes what is composed today."""
    present = [migrations.migrate_overrides([word], 1)[0] for word in words.split()]
    old = json.loads(json.dumps(migrations.migrate_config(old_names(1)["configs"][words], 1)))
    # The fixture was written without GENLAB_DATA, whose place `data` takes.
    composed = json.dumps(compose_config(*present, "out=unused"))
    new = json.loads(composed.replace(os.environ.get("GENLAB_DATA", "data"), "data"))
    added = default_differences(old, new)
    assert [d for d in differences(old, new) if d not in added] == RETUNED.get(words, [])


@pytest.mark.parametrize("recipe", old_names(1)["states"])
def test_an_old_state_fits_the_present_model(recipe: str) -> None:
    """The migrated names and shapes of a recipe's weights and optimizers are those of today."""
    old = old_names(1)["states"][recipe]
    config = compose_config(*small_overrides(recipe, format_1=True), *OLD_NETWORKS.get(recipe, ()))
    dataset = factory.make_dataset(config)
    device = factory.make_device(config["device"], seed=0)
    trainer = factory.make_trainer(config, factory.make_model(config, dataset.spec), device)
    state = trainer.state_dict()
    made = {"model": old["model"], "optimizers": dict.fromkeys(old["optimizers"])} | {
        key: None for key in old["keys"] if key not in ("model", "optimizers")
    }
    migrated = migrations.migrate_checkpoint(made, config["model"]["_target_"])
    assert list(migrated["model"].items()) == sorted(
        ((name, list(value.shape)) for name, value in state["model"].items()),
        key=lambda item: list(migrated["model"]).index(item[0]),
    )
    assert set(migrated["optimizers"]) == set(state["optimizers"])
    assert ADDED_STATE.isdisjoint(migrated) and set(migrated) == set(state) - ADDED_STATE


@pytest.fixture(params=OLD_RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def old_run(request, tmp_path: Path) -> tuple[Path, dict, dict]:
    """A copy of an old run, with the numbers and arrays that the old version computed."""
    shutil.copytree(request.param, tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "expected.json").read_text())
    return tmp_path / "run", expected, dict(np.load(tmp_path / "run" / "expected.npz"))


def is_same_platform(expected: dict) -> bool:
    """Whether sums are rounded as on the machine that made the fixtures."""
    here = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()
    return (expected["torch"], expected["cpu"]) == here


def test_an_old_run_samples_evaluates_and_resumes(genlab, old_run) -> None:
    """Bit for bit on the platform that made the fixtures, elsewhere within rounding."""
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
    spec = RunFolder(folder).spec()
    features = ("features=[pixels]",) if spec.kind == "image" else ()
    assert (result := genlab("evaluate", "run=run", "n=40", *quick, *features)).code == 0, (
        result.err
    )
    record = json.loads(next(folder.glob("metrics*.json")).read_text())
    rows = {row["name"]: row["value"] for row in record["metrics"] if row["metric"] != "efficiency"}
    wanted = {
        migrations.migrate_row_name(name): value for name, value in expected["metrics"].items()
    }
    # Since then features=[pixels] leaves out the metrics of the classifier, class_*.
    compared = [name for name in wanted if not name.startswith("class_")]
    assert set(rows) - ADDED_ROWS == set(compared)
    if spec.dequantized:  # samples were compared with their noise, which becomes no bytes now
        samples = {r["name"] for r in record["metrics"] if "held-out" in r["conditions"]}
        compared = [name for name in compared if name not in samples]
        assert compared, "the likelihood is the same"
    if exact:
        assert [rows[name] for name in compared] == pytest.approx(
            [wanted[name] for name in compared], rel=1e-5, abs=1e-7
        )
    assert (
        result := genlab("train", "resume=run", "trainer.steps=9", "device=cpu", "device.threads=1")
    ).code == 0, result.err
    state = RunFolder(folder).load_checkpoint()
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
    """Old runs can be compared."""
    for path in OLD_RUNS:
        if path.name in ("vae", "pca"):
            shutil.copytree(path, tmp_path / path.name)
    result = genlab("compare", "runs=[vae,pca]", "n=20", "device=cpu", "metrics=[likelihood]")
    assert result.code == 0, result.err
    assert "nll" in result.out


@pytest.mark.parametrize(("words", "hint"), [(("train", "trainer.clip=1"), "trainer.grad_clip")])
def test_an_old_option_names_the_new_one(genlab, words: tuple[str, ...], hint: str) -> None:
    """An option of an older format is refused in one line that gives its present name."""
    assert f"renamed to {hint}" in genlab(*words).error


def test_new_runs_carry_the_format_number(genlab, tmp_path: Path) -> None:
    options = ("model=vae", "model.hidden=[4]", "trainer.steps=1", "device=cpu", "out=run")
    assert genlab("train", *options).code == 0
    run = RunFolder(tmp_path / "run")
    assert run.metadata()["format"] == run.format_number() == migrations.FORMAT
    assert run.load_checkpoint()["format"] == migrations.FORMAT


@pytest.mark.parametrize("file", ["run.json", "checkpoint"])
def test_a_newer_format_is_refused(file: str, genlab, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(FIXTURES / "format_1" / "pca", tmp_path / "run"))
    number = migrations.FORMAT + 1
    if file == "run.json":
        content = json.loads((run.path / "run.json").read_text())
        (run.path / "run.json").write_text(json.dumps(content | {"format": number}))
    else:
        run.save_checkpoint(run.load_checkpoint() | {"format": number}, keep=1)
    error = genlab("sample", "run=run", "n=1", "device=cpu").error
    assert f"was written by a newer genlab (format {number}" in error and "upgrade genlab" in error


def test_bounds_with_an_estimated_log_z_become_estimates():
    """Also in records of the present format, and the bits per dimension of such a bound."""

    def row(name, conditions, tag="bound"):
        return {"metric": "likelihood", "name": name, "tag": tag, "conditions": conditions}

    rows = [
        row("nll_elbo", {"log Z": 1.0, "log Z error": 0.1}),
        row("nll_iwae", {"log Z": 1.0}),
        row("bits_per_dim", {"from": "nll_elbo"}),
        row("nll", {}, "exact"),
    ]
    record = migrations.migrate_evaluation_record({"format": migrations.FORMAT, "metrics": rows})
    tags = [row["tag"] for row in record["metrics"]]
    assert tags == ["estimate", "bound", "estimate", "exact"]
    assert rows[0]["tag"] == "bound", "the given record is unchanged"
    assert migrations.migrate_evaluation_record({"format": 2, "metrics": [3, {"tag": []}]})
