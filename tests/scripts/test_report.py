"""scripts/report.py names and chooses results, and the pages are those it writes."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.cli_runner import REPOSITORY
from PIL import Image

from genlab.inference.image_to_image import translate_folder
from genlab.inference.output_files import CommandRequest
from genlab.spec import DataSpec


@pytest.fixture
def report(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    return importlib.import_module("report")


def test_pages_are_those_that_the_script_writes(report):
    outdated = [
        path.name for path, text in report.build_page_texts().items() if path.read_text() != text
    ]
    assert not outdated, "run python scripts/report.py"


def test_every_recipe_has_a_family_and_a_training_command(report):
    recipes = [recipe for family in report.FAMILIES for recipe in report.recipes_of_family(family)]
    assert sorted(recipe.name for recipe in recipes) == [r.name for r in report.list_recipes()]
    for recipe in recipes:
        name, _, command, _ = report.recipe_row(recipe, [])
        assert name == f"`{recipe.name}`" and "genlab train" in command


def test_readme_shows_a_number_for_every_family(report):
    results = list(report.read_json_or_empty(report.RESULTS).values())
    missing = [f.title for f in report.FAMILIES if report.headline_cell(f, results) == "·"]
    assert not missing


def test_downsampled_folder_is_reported_with_its_options(report, tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    (tmp_path / "Five").mkdir()
    image = Image.fromarray(noise.integers(0, 256, (32, 32), dtype=np.uint8))
    image.save(tmp_path / "Five" / "a.png")
    source = DataSpec((1, 8, 8), range=(-1.0, 1.0))
    spec = DataSpec((1, 16, 16), range=(-1.0, 1.0), source=source, task="superres")
    model = torch.nn.Linear(1, 1)  # the command reads the device of its weights
    model.size_multiple = 1
    model.translate = lambda cond: torch.nn.functional.interpolate(cond, scale_factor=2)
    folder = SimpleNamespace(path=tmp_path / "run", samples=tmp_path / "run" / "samples")
    run = SimpleNamespace(
        model=model,
        spec=spec,
        folder=folder,
        step=7,
        name="twice",
        file_range=None,
        device=SimpleNamespace(torch=torch.device("cpu")),
        dataset_name="superres",
    )
    monkeypatch.setattr(
        report, "make_result_entry", lambda runs, evaluated, metrics, step: evaluated
    )
    for downsample, command in (
        (False, "genlab superres input_dir=Five n=1"),
        (True, "genlab superres input_dir=Five downsample=true n=1"),
    ):
        options = {"input_dir": str(tmp_path / "Five"), "downsample": downsample}
        translate_folder(
            run,
            CommandRequest.from_options_and_defaults(
                "superres", [run], options, {"downsample": False}
            ),
            options["input_dir"],
            seed=0,
            output_dir=None,
            downsample=downsample,
        )
        monkeypatch.setattr(report, "RunFolder", lambda path: folder)
        assert command in report.sample_command_entries(tmp_path / "run")


@pytest.mark.parametrize(
    ("step", "seconds", "resume"),
    [
        (10, 60.0, ""),
        (9, 120.0, ""),
        (20, 90.0, " && genlab train resume=latest trainer.steps=20"),
        (20, 150.0, " && genlab train resume=latest trainer.steps=20 trainer.max_minutes=3"),
    ],
)
def test_continued_run_is_reported_with_its_resume(report, tmp_path, step, seconds, resume):
    (tmp_path / "config.yaml").write_text("trainer: {steps: 10, max_minutes: 2}\n")
    (tmp_path / "run.json").write_text('{"format": 2}')
    run = report.RunFolder(tmp_path)
    assert report.resume_command(run, {"step": step, "seconds": seconds}) == resume


def test_best_result_of_the_most_items_is_shown(report):
    def result(dataset: str, name: str, value: float, n: int, **kind: object) -> dict:
        metrics = [
            {"name": "sampling_seconds", "value": 1.0, "metric": "efficiency"},
            {"name": name, "value": value, "conditions": {"n": n}, **kind},
        ]
        return {"dataset": dataset, "metrics": metrics}

    few, worse, better = (
        result("a", "frechet_classifier", value, n, better="lower")
        for value, n in ((1, 5), (4, 9), (3, 9))
    )
    kept = [result("a", "class_kept", value, 9) for value in (0.8, 0.9, 0.7)]
    older = [result("b", "modes", value, 9, higher_is_better=True) for value in (7, 8)]
    errors = [result("b", "squared_error_of_a_draw", value, 9) for value in (2, 1)]
    assert report.best_results([few, worse, *kept, better, *older, *errors]) == [
        better,
        kept[1],
        older[1],
        errors[1],
    ]
