"""Comparisons that train their own runs: all compose, a small one trains and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from helpers.recipes import CONFIGS, build_training_objects, compose_config

from genlab.commands.compare import make_drawing
from genlab.commands.sample import validated_sampler_options
from genlab.comparison.charts import draw_formula
from genlab.config.recipes import read_header_comment
from genlab.errors import UserError
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.run_folder import RunFolder
from genlab.sweeps.job_state import read_state
from genlab.sweeps.train_missing import (
    ComparisonColumn,
    check_comparison_options,
    make_comparison_columns,
    train_missing_runs,
)

COMPARISONS = sorted((CONFIGS / "experiment" / "lecture").glob("*.yaml"))
KEYS = {"title", "text", "formula", "train", "sample", "common", "figures"} | {
    "n",
    "metrics",
    "elbo_timesteps",
}
SMALL = (
    "model=vae",
    "model.hidden=[8]",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
    "device=cpu",
)
each_comparison = pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@each_comparison
def test_comparison_has_text_and_valid_columns(path):
    config = read_yaml(path)
    assert set(config) <= KEYS and config["title"] and len(config["text"].split()) > 20
    assert f"genlab compare experiment=lecture/{path.stem}" in read_header_comment(path)
    sample = config.get("sample") or {}
    check_comparison_options(config["train"], sample, config.get("common") or [])
    columns = make_comparison_columns({label: Path(label) for label in config["train"]}, sample)
    assert len({column.label for column in columns}) == len(columns) >= 2
    for name, options in (config.get("figures") or {}).items():
        make_drawing(name, options)
        assert options["caption"]
    if config.get("formula"):
        assert draw_formula(config["formula"]).source.startswith("data:image/svg+xml")


@each_comparison
def test_runs_of_comparison_build_as_genlab_train_does(path):
    """Every run composes and makes a model; the model has every sampler that is requested."""
    config = read_yaml(path)
    for label, overrides in config["train"].items():
        own, dataset, trainer = build_training_objects(
            *(config.get("common") or []), *overrides, "device=cpu", "out=unused"
        )
        columns = make_comparison_columns({label: Path(label)}, config.get("sample") or {})
        for sampler in filter(None, (column.sampler for column in columns)):
            run = LoadedRun(
                None,
                own,
                {"model": label, "dataset": ""},
                trainer.model,
                dataset.spec,
                trainer.device,
                0,
                lambda: None,
            )
            assert validated_sampler_options(run, sampler)["sampler"] in trainer.model.samplers


@each_comparison
def test_comparison_composes_with_the_options_of_train(path):
    """So `genlab train experiment=lecture/x` can name the right command."""
    config = compose_config(f"experiment=lecture/{path.stem}", "out=unused")
    assert list(config["train"]) == list(read_yaml(path)["train"])


# --- training -------------------------------------------------------------------------------------


def small_run(label: str, *overrides: str) -> dict[str, list[str]]:
    return {label: [*SMALL, *overrides]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a test, on one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_runs_are_trained_reused_and_their_failures_reported(folder, capsys):
    train = (
        small_run("A, 2 steps", "trainer.steps=2")
        | small_run("B", "trainer.steps=3")
        | small_run("twin of A", "trainer.steps=2")
        | small_run("typo", "trainer.stepz=2")
        | small_run("unfit", "trainer.steps=2", "preprocess.binarize=none")
    )
    sample = {"B, other": {"run": "B", "name": "ddim", "steps": 5}}
    found, failed = train_missing_runs(train=train, sample=sample, common=["seed=1"], jobs=2)
    assert [column.label for column in found] == ["A, 2 steps", "B, other", "twin of A"]
    assert found[1].sampler == {"name": "ddim", "steps": 5}
    assert found[0].run == found[2].run != found[1].run
    assert found[0].run.is_relative_to("outputs/lectures/runs")
    assert "stepz" in failed["typo"]
    assert "model.likelihood=gaussian" in failed["unfit"]
    assert set(failed) == {"typo", "unfit"}
    assert "unfit: failed: " in capsys.readouterr().err
    for column, steps in zip(found[:2], (2, 3), strict=True):
        assert RunFolder(column.run).load_checkpoint()["step"] == steps
        assert RunFolder(column.run).metadata()["seed"] == 1
        assert read_state(column.run).status == "done"

    before = {column.run: (column.run / "stats.jsonl").stat().st_mtime_ns for column in found}
    again, failed = train_missing_runs(
        train={"a new name": train["A, 2 steps"], "B": train["B"]}, common=["seed=1"]
    )
    assert not failed
    assert again == [
        ComparisonColumn("a new name", found[0].run),
        ComparisonColumn("B", found[1].run),
    ]
    assert before == {
        column.run: (column.run / "stats.jsonl").stat().st_mtime_ns for column in found
    }


def test_a_run_without_its_checkpoints_is_trained_again(folder):
    """Although its job is done."""
    train = small_run("A", "trainer.steps=2")
    (column,), _ = train_missing_runs(train=train)
    for path in (column.run / "checkpoints").glob("*.pt"):
        path.unlink()
    (again,), failed = train_missing_runs(train=train)
    assert again == column and not failed
    assert RunFolder(column.run).load_checkpoint()["step"] == 2


@pytest.mark.parametrize(
    "stop_signal", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_an_interrupted_comparison_resumes(folder, stop_signal):
    """SIGKILL of all processes loses what was not saved, SIGTERM nothing."""
    train = small_run(
        "long", "trainer.steps=1000", "trainer.save_every=50", "trainer.log_every=1000"
    )
    script = (
        "from genlab.sweeps.train_missing import train_missing_runs\n"
        f"print(train_missing_runs(train={train!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stderr=subprocess.PIPE, text=True
    )

    def checkpoints() -> list[Path]:
        return sorted(folder.glob("outputs/lectures/runs/*/checkpoints/step_*.pt"))

    deadline = time.monotonic() + 120
    while not checkpoints() and time.monotonic() < deadline:
        time.sleep(0.02)
    run = checkpoints()[-1].parents[1]
    if stop_signal == signal.SIGKILL:
        os.kill(read_state(run).pid, signal.SIGKILL)  # the job has its own session
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode
    saved = RunFolder(run).load_checkpoint()["step"]
    assert 0 < saved < 1000
    if stop_signal == signal.SIGTERM:
        assert "SIGTERM: the comparison's runs are saved" in err
    found, failed = train_missing_runs(train=train)
    assert not failed and RunFolder(found[0].run).load_checkpoint()["step"] == 1000
    assert read_state(found[0].run).starts == 2
    log = (found[0].run / "train.log").read_text()
    assert "from step" in log


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("train: {}", "at least one run"),
        ("train: {A: [out=x]}", "out=x is not allowed for a comparison's run"),
        ("train: {A: [-m]}", "-m is not allowed for a comparison's run"),
        ("train: {A: []}\ncommon: [hydra.job.name=x]", "hydra.job.name=x"),
        ("train: {VAE: []}\nsample: {B: {run: VEA}}", "did you mean 'VAE'"),
        ("train: {A: [], B: []}\nsample: {A: {run: B}}", "label of another run"),
    ],
)
def test_an_invalid_comparison_is_refused(lines, words):
    with pytest.raises(UserError) as refusal:
        train_missing_runs(**yaml.safe_load(textwrap.dedent(lines)))
    assert words in str(refusal.value)


def test_an_error_of_all_runs_is_raised(folder):
    with pytest.raises(
        UserError, match="none of the runs could be trained; A: unknown option 'modle'"
    ):
        train_missing_runs(train={"A": ["modle=vae"]})
