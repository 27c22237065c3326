"""Every lecture composes; and a tiny one is trained through processes, used again, gone on with, and reported where it fails."""

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
from helpers.recipes import CONFIGS, built, composed

from genlab.commands.sample import sampler_options
from genlab.config.recipes import header
from genlab.errors import UserError
from genlab.runs.loaded_run import Run
from genlab.runs.run_folder import RunFolder
from genlab.sweeps import train_missing
from genlab.sweeps.train_missing import Shown, prepare

LECTURES = sorted((CONFIGS / "experiment" / "lecture").glob("*.yaml"))
KEYS = {"title", "text", "train", "sample", "common", "n", "metrics"}
TINY = (
    "model=vae",
    "model.hidden=[8]",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
    "device=cpu",
)


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def each():
    return pytest.mark.parametrize("path", LECTURES, ids=lambda p: p.stem)


@each()
def test_a_lecture_says_what_it_shows(path):
    config = read(path)
    assert set(config) <= KEYS and config["title"] and len(config["text"].split()) > 20
    assert f"genlab compare experiment=lecture/{path.stem}" in header(path)
    train_missing.check(config["train"], config.get("sample") or {}, config.get("common") or [])
    found = train_missing.columns(
        {label: Path(label) for label in config["train"]}, config.get("sample") or {}
    )
    assert len({entry.label for entry in found}) == len(found) >= 2


@each()
def test_a_lectures_runs_build_as_genlab_train_does(path):
    """Every run's overrides compose, and make a model of the data; every sampler that is asked for is the model's."""
    config = read(path)
    for label, overrides in config["train"].items():
        own, dataset, trainer = built(
            *(config.get("common") or []), *overrides, "device=cpu", "out=unused"
        )
        options = [
            entry.sampler
            for entry in train_missing.columns({label: Path(label)}, config.get("sample") or {})
        ]
        for sampler in filter(None, options):
            run = Run(
                None,
                own,
                {"model": label, "dataset": ""},
                trainer.model,
                dataset.spec,
                trainer.device,
                0,
                lambda: None,
            )
            assert sampler_options(run, sampler)["sampler"] in trainer.model.samplers


@each()
def test_a_lecture_composes_beside_the_options_of_train(path):
    """So that `genlab train experiment=lecture/x` can say which command is meant."""
    assert list(composed(f"experiment=lecture/{path.stem}", "out=unused")["train"]) == list(
        read(path)["train"]
    )


# --- the processes ----------------------------------------------------------------------------------------------------


def tiny(label: str, *overrides: str) -> dict[str, list[str]]:
    return {label: [*TINY, *overrides]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_runs_are_trained_used_again_and_reported(here, capsys):
    train = (
        tiny("A, 2 steps", "trainer.steps=2")
        | tiny("B", "trainer.steps=3")
        | tiny("twin of A", "trainer.steps=2")
    )
    train |= tiny("typo", "trainer.stepz=2") | tiny(
        "unfit", "trainer.steps=2", "prepare.binarize=none"
    )
    sample = {"B, other": {"run": "B", "name": "ddim", "steps": 5}}
    found, failed = prepare(train=train, sample=sample, common=["seed=1"], jobs=2)
    assert [entry.label for entry in found] == ["A, 2 steps", "B, other", "twin of A"]
    assert (
        found[1].sampler == {"name": "ddim", "steps": 5}
        and found[0].run == found[2].run != found[1].run
    )
    assert found[0].run.is_relative_to("outputs/lectures/runs")
    assert (
        "stepz" in failed["typo"]
        and "model.likelihood=gaussian" in failed["unfit"]
        and set(failed) == {"typo", "unfit"}
    )
    assert "unfit: failed: " in capsys.readouterr().err
    for entry, steps in zip(found[:2], (2, 3), strict=True):
        assert (
            RunFolder(entry.run).load()["step"] == steps
            and RunFolder(entry.run).info()["seed"] == 1
        )

    before = {entry.run: (entry.run / "stats.jsonl").stat().st_mtime_ns for entry in found}
    again, failed = prepare(
        train={"a new name": train["A, 2 steps"], "B": train["B"]}, common=["seed=1"]
    )
    assert again == [Shown("a new name", found[0].run), Shown("B", found[1].run)] and not failed
    assert before == {entry.run: (entry.run / "stats.jsonl").stat().st_mtime_ns for entry in found}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_lecture_goes_on(here, end):
    """A kill of all its processes loses what was not saved, a polite signal nothing; the same command goes on."""
    train = tiny("long", "trainer.steps=1000", "trainer.save_every=50", "trainer.log_every=1000")
    script = f"from genlab.sweeps.train_missing import prepare\nprint(prepare(train={train!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    checkpoints = lambda: sorted(here.glob("outputs/lectures/runs/*/checkpoints/step_*.pt"))  # noqa: E731
    until = time.monotonic() + 120
    while not checkpoints() and time.monotonic() < until:
        time.sleep(0.02)
    (os.killpg if end == signal.SIGKILL else os.kill)(process.pid, end)
    _, err = process.communicate(timeout=60)
    assert process.returncode
    saved = RunFolder(checkpoints()[-1].parents[1]).load()["step"]
    assert 0 < saved < 1000
    if end == signal.SIGTERM:
        assert "SIGTERM: the lecture's runs are saved" in err
    found, failed = prepare(train=train)
    assert not failed and RunFolder(found[0].run).load()["step"] == 1000
    log = (found[0].run / "train.log").read_text()
    assert "goes on from step" in log


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("train: {}", "at least one run"),
        ("train: {A: [out=x]}", "out=x is not for a lecture's run"),
        ("train: {A: [-m]}", "-m is not for a lecture's run"),
        ("train: {A: []}\ncommon: [hydra.job.name=x]", "hydra.job.name=x"),
        ("train: {VAE: []}\nsample: {B: {run: VEA}}", "did you mean 'VAE'"),
        ("train: {A: [], B: []}\nsample: {A: {run: B}}", "label of another run"),
    ],
)
def test_a_wrong_lecture_is_refused(lines, words):
    with pytest.raises(UserError) as refusal:
        prepare(**yaml.safe_load(textwrap.dedent(lines)))
    assert words in str(refusal.value)


def test_a_lecture_without_any_run_says_why(here):
    with pytest.raises(
        UserError, match="none of the runs could be trained; A: unknown option 'modle'"
    ):
        prepare(train={"A": ["modle=vae"]})
