"""Configs, choices and plans that were not typed here run nothing and read nothing else."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_repository import ConfigRepository

from genlab.builders.resume_config import config_for_restart
from genlab.cli import main
from genlab.commands.sweep import make_work_command, own_command_words, parse_work_options
from genlab.commands.sweep import working_directory as working_directory_of
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.sweeps import plan_trust
from genlab.sweeps.sweep_folder import SweepFolder
from genlab.untrusted.configs import (
    refuse_path_as_choice,
    refuse_unsafe_options,
    refuse_untrusted_config,
)
from genlab.untrusted.hydra_sources import confine_config_groups

SMALL = ("model=vae", "model.hidden=[4]", "model.latent=2")
# A class of a file beside the stranger's folder, which writes a file when it is imported.
GIFT = "open('marker', 'w').close()\n\nclass Mean:\n    pass\n"


@pytest.fixture
def gift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's folder with a module and a YAML file that names it, in the present folder."""
    folder = tmp_path / "gift"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "code.py").write_text(GIFT)
    (folder / "evil.yaml").write_text("# @package _global_\nmodel: {_target_: gift.code.Mean}\n")
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    return folder


# --- choices of group files -----------------------------------------------------------------------


def path_choices(gift: Path) -> list[str]:
    """Return overrides that reach a file outside of the config folders by a path."""
    up = "/".join([".."] * 30)
    return [
        f"model={up}{gift}/evil",
        f"+model={up}{gift}/evil",
        f"model=../model/{up}{gift}/evil",
        f"+{up}{gift}=evil",
        f"+x/{up}{gift}=evil",
        f"model={up}/proc/self/cwd/gift/evil",
        f"dataset@dataset.base={up}{gift}/evil",
        f"+model@x={up}{gift}/evil",
        f"experiment={up}{gift}/evil",
        f"optimizer={up}{gift}/evil",
        f"model='{up}{gift}/evil'",
        f"model=[vae,{up}{gift}/evil]",
        f"hydra/launcher={up}{gift}/evil",
        f"model=file://{gift}/evil",
        "model=pkg://gift/evil",
        f"+../{gift.name}=evil",
        "model=..",
    ]


@pytest.mark.parametrize("number", range(len(path_choices(Path("/x")))))
def test_a_choice_that_is_a_path_is_refused(number, gift, genlab, tmp_path):
    for more in (("--cfg", "job"), ("device=cpu", "trainer.steps=1")):
        line = genlab("train", path_choices(gift)[number], *more).error
        assert "evil" in line or "model" in line or "is set, by the command" in line
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("number", [0, 5, 8, 13])
def test_a_sweep_over_choices_that_are_paths_runs_nothing(number, gift, genlab, tmp_path):
    override = path_choices(gift)[number].replace("=", "=vae,", 1)
    result = genlab("train", "-m", override, "device=cpu", "trainer.steps=1", "hydra.sweep.dir=s")
    assert result.code != 0 and "Traceback" not in result.err
    assert not list(tmp_path.rglob("marker"))


def test_a_users_own_folder_of_configs_still_works(gift, genlab, tmp_path):
    own = tmp_path / "own" / "model"
    (own / "deep").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [vae]\nmodel: {latent: 3}\n"
    (own / "mine.yaml").write_text(text)
    (own / "deep" / "mine.yaml").write_text(text.replace("[vae]", "[/model/vae]"))
    for choice in ("mine", "deep/mine"):
        result = genlab("train", "--config-dir", "own", f"model={choice}", "--cfg", "job")
        assert result.code == 0 and yaml.safe_load(result.out)["model"]["latent"] == 3, result.err


def test_confining_twice_changes_nothing():
    confine_config_groups()
    before = ConfigRepository._find_object_source
    confine_config_groups()
    assert ConfigRepository._find_object_source is before


@pytest.mark.parametrize("name", ["model/vae", "train", "hydra/launcher/slurm", "model/a.b", "..."])
def test_names_of_choices_are_allowed(name):
    refuse_path_as_choice(name)


@pytest.mark.parametrize(
    "name", ["..", "a/../b", "a\\..\\b", "/a", "~/a", "file://a", "pkg://a", "a/..", "../a"]
)
def test_paths_in_the_place_of_choices_are_refused(name):
    with pytest.raises(UserError, match="not a path; add the folder of the file by --config-dir"):
        refuse_path_as_choice(name)


# --- configs --------------------------------------------------------------------------------------

HOSTILE_CONFIGS: list[dict[str, Any]] = [
    {"model": {"_target_": "gift.code.Mean"}},
    {"model": {"codec": {"_target_": "gift.code.Mean"}}},
    {"teacher": {"model": {"_target_": "gift.code.Mean"}}},
    {"model": {"hidden": [4, [{"x": {"_target_": "gift.code.Mean"}}]]}},
    {"model": {"_target_": ["os.system"]}},
    {"model": {"_target_": None}},
    {"model": {"_target_": "genlab"}},
    {"model": {"_target_": "genlabx.y"}},
    {"model": {"_target_": "torch.optim.os.system"}},
    {"model": {"_target_": "torch.optim.lr_scheduler.LambdaLR"}},
    {"model": {"_target_": "genlab.x;os.system"}},
    {"dataset": {"path": "${oc.env:HOME}"}},
    {"${oc.env:HOME}": 1},
    {"dataset": {"names": ["a", "${hydra:runtime.cwd}"]}},
    {"codec": {"train": ["model.x=${oc.decode:1}"]}},
    {"seed": "$${x}"},
]


@pytest.mark.parametrize("config", HOSTILE_CONFIGS, ids=str)
def test_a_hostile_config_is_refused(config):
    with pytest.raises(UserError, match=r"x\.yaml: .*"):
        refuse_untrusted_config(config, allowed=("mine",), where="x.yaml")


def test_deep_and_wide_configs_are_refused():
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(UserError, match="nested too deeply"):
        refuse_untrusted_config({"a": deep}, allowed=(), where="x")
    with pytest.raises(UserError, match="more than 100,000 values"):
        refuse_untrusted_config({"a": [0] * 200_000}, allowed=(), where="x")


def test_trusted_and_shipped_classes_are_allowed():
    config = {"model": {"_target_": "mine.Model"}, "optimizer": {"_target_": "torch.optim.Adam"}}
    config["dataset"] = {"_target_": "genlab.data.digits.Digits", "price": "5 $ {x}"}
    refuse_untrusted_config(config, allowed=("mine",), where="x")


# --- jobs of a sweep ------------------------------------------------------------------------------


@pytest.fixture
def job(train_run, tmp_path: Path) -> RunFolder:
    """The run folder of a sweep's job with a checkpoint."""
    return RunFolder(shutil.copytree(train_run(*SMALL), tmp_path / "s" / "0"))


def change_config(run: RunFolder, change) -> dict[str, Any]:
    """Change a run's config.yaml, and return what it was before."""
    path = run.path / "config.yaml"
    before = yaml.safe_load(path.read_text())
    after = yaml.safe_load(path.read_text())
    change(after)
    path.write_text(yaml.safe_dump(after))
    return before


@pytest.mark.parametrize("section", ["model", "dataset"])
def test_the_targets_of_a_jobs_config_are_checked(section, job):
    def change(config: dict[str, Any]) -> None:
        config[section]["codec"] = {"_target_": "gift.code.Mean"}

    given = change_config(job, change)
    given["codec"] = {"run": "x", "train": []}  # then model.codec may differ
    with pytest.raises(UserError, match=rf"{section}\.codec\._target_ names 'gift\.code\.Mean'"):
        config_for_restart(given, job)


UNSAFE_FITTED: list[Any] = [
    {"model._target_": "gift.code.Mean"},
    {"model.x": {"_target_": "gift.code.Mean"}},
    {"model.x": [{"_target_": "gift.code.Mean"}]},
    {"codec": {"run": None, "train": ["model._target_=gift.code.Mean"]}},
    {"codec.train": ["trusted_packages=[gift]"]},
    {"trusted_packages": ["gift"]},
    {"out": "/tmp/x"},
    {"resume": "/tmp/x"},
    {"dataset.path": "/etc"},
    {"dataset.root": "/etc"},
    {"device.name": "cuda"},
    {"optimizer._target_": "x.y"},
    {"model.x": "${oc.env:HOME}"},
    {"seed": 1},
]


@pytest.mark.parametrize("options", UNSAFE_FITTED, ids=str)
def test_the_fitted_options_of_a_job_set_only_what_fits(options, job):
    given = change_config(job, lambda config: None)
    metadata = json.loads((job.path / "run.json").read_text()) | {"fitted_options": options}
    (job.path / "run.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"run\.json, fitted_options"):
        config_for_restart(given, job)


def test_fitted_options_that_are_lists_are_refused():
    with pytest.raises(UserError, match="is not a mapping"):
        refuse_unsafe_options(["x"], is_allowed=lambda key: True, where="run.json")


def test_fitted_options_of_an_own_run_are_used(job):
    given = change_config(job, lambda config: None)
    metadata = json.loads((job.path / "run.json").read_text())
    metadata["fitted_options"] = {"trainer.batch_size": given["trainer"]["batch_size"]}
    (job.path / "run.json").write_text(json.dumps(metadata))
    assert config_for_restart(given, job)["model"] == given["model"]


# --- plans ----------------------------------------------------------------------------------------

UNSAFE_WORDS = [
    "model=../../gift/evil",
    "+../../gift=evil",
    "model@x=../evil",
    "dataset@dataset.base=/gift/evil",
    "hydra/launcher=../../x",
    "hydra.sweeper.params.model=choice(vae,../../gift/evil)",
    "model=file:///gift/evil",
    "model=pkg://gift/evil",
    "+a/../b=c",
    "codec.train=[trusted_packages=[gift]]",
    "codec.train=['trusted_packages=[gift]','codec.run=gift/run']",
    "codec.train=[--config-dir=gift]",
    "codec.train=[hydra.searchpath=[file://gift]]",
    "teacher.train=[resume=/home/me/run]",
    "teacher.train=[out=/home/me]",
    "+x=[hydra/launcher=y]",
    "hydra.searchpath=[pkg://gift]",
    "++hydra.searchpath=[gift]",
    "+trusted_packages=[gift]",
    "seed=${oc.env:HOME}",
]


@pytest.mark.parametrize("word", UNSAFE_WORDS)
def test_words_of_a_strangers_plan_set_options_only(word):
    assert plan_trust.unsafe_override_reason(word)


def write_plan(tmp_path: Path, **changes: Any) -> SweepFolder:
    """Write a stranger's plan into the folder s."""
    (tmp_path / "s").mkdir(exist_ok=True)
    plan = {"command": ["train", "-m", "seed=0"], "cwd": "/", "sweeper": "basic"}
    plan |= {"jobs": [["seed=0"]], **changes}
    (tmp_path / "s" / "plan.json").write_text(json.dumps(plan))
    return SweepFolder(tmp_path / "s")


def test_a_strangers_plan_does_not_choose_the_present_folder(gift, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = write_plan(tmp_path, cwd=str(gift))
    assert working_directory_of(sweep) == tmp_path
    assert make_work_command(sweep, parse_work_options()).cwd == tmp_path
    plan_trust.remember_trusted_plan(sweep.read_stored_plan())
    assert working_directory_of(sweep) == gift


@pytest.mark.parametrize("where", ["command", "jobs"])
def test_a_strangers_plan_with_a_path_as_choice_is_refused(where, gift, genlab, tmp_path):
    word = f"model=../../../../../../../../proc/self/cwd/{gift.name}/evil"
    words = {"command": ["train", "-m", word], "jobs": [["seed=0", word]]}
    write_plan(tmp_path, cwd=str(tmp_path), **{where: words[where]})
    for verb in ("resume", "work"):
        assert "is not a sweep that you started" in genlab("sweep", verb, "s").error
    assert not list(tmp_path.rglob("marker"))


def test_a_strangers_job_cannot_name_a_path_even_if_the_command_is_the_users(gift, tmp_path):
    """The trust in a plan is about its command, not about its list of jobs."""
    sweep = write_plan(tmp_path, jobs=[["model=../../gift/evil"]])
    plan_trust.remember_trusted_plan(sweep.read_stored_plan())
    own_command_words(sweep)
    with pytest.raises(UserError, match="which is not in its command"):
        make_work_command(sweep, parse_work_options())


# --- imports --------------------------------------------------------------------------------------


def test_processes_that_are_started_import_nothing_from_the_present_folder(tmp_path, monkeypatch):
    """A stranger's folder may have a file with the name of a module."""
    (tmp_path / "multiprocessing.py").write_text(GIFT)
    (tmp_path / "submitit.py").write_text(GIFT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    main.keep_present_folder_out_of_child_imports()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    code = f"cd {tmp_path} && {sys.executable} -c 'import multiprocessing, genlab'"
    assert os.system(code) == 0
    assert not (tmp_path / "marker").exists()
