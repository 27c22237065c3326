"""A run whose data moved, and classes by name, on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runner import Result, run_here
from PIL import Image

from genlab.errors import UserError
from genlab.runs.data_place import find_data, name_data_place

SHORT = ("device=cpu", "trainer.steps=2", "trainer.batch_size=4", "trainer.preview_every=0")
MEASURE = ("metrics=[reconstruction]", "n=4", "device=cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the folder `мои фото` of class folders, and a run on it as `run`."""
    project = tmp_path_factory.mktemp("project")
    random = np.random.default_rng(0)
    for name in ("1", "2", "10", "кот"):
        (project / "мои фото" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 2, (4, 4), dtype=np.uint8) * 255
            Image.fromarray(pixels).save(project / "мои фото" / name / f"{i}.png")
    model = ("model=cvae", "model.hidden=[4]", "model.latent=2")
    data = ("dataset=image_folder", "dataset.path=мои фото")
    result = run_here("train", *model, *data, *SHORT, "out=run", cwd=project)
    assert result.code == 0, result.err
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of the project, whose runs think that they were started in the copy."""
    copy = tmp_path / "project"
    shutil.copytree(trained, copy)
    path = copy / "run" / "run.json"
    metadata = json.loads(path.read_text())
    assert metadata["start_folder"] == str(trained)
    path.write_text(json.dumps(metadata | {"start_folder": str(copy)}))
    return copy


# --- class names ----------------------------------------------------------------------------------


def test_the_summary_is_printed_and_written(trained: Path) -> None:
    """`genlab info` prints what training printed, also when the data is gone."""
    summary = json.loads((trained / "run" / "data.json").read_text())
    assert list(summary["classes"]) == ["1", "2", "10", "кот"]
    assert summary["classes"]["10"]["number"] == 2 and summary["files"] == 40
    info = run_here("info", "run=run", cwd=trained)
    words = " ".join(info.out.split())
    assert "4 classes: 0 = 1 (10), 1 = 2 (10), 2 = 10 (10), 3 = кот (10)" in words
    assert "genlab sample run=run label=1" in info.out


@pytest.mark.parametrize(
    ("options", "y"),
    [
        (["label=кот"], [3, 3, 3]),
        (["label=10"], [2, 2, 2]),
        (["label=[10,кот]"], [2, 3, 2]),
    ],
)
def test_sample_takes_class_names(trained: Path, options: list[str], y: list[int]) -> None:
    """Names become numbers, and a number is the name of a folder."""
    out = f"samples-{'-'.join(map(str, y))}"
    result = run_here(
        "sample", "run=run", "n=3", "device=cpu", f"output_dir={out}", *options, cwd=trained
    )
    assert result.code == 0, result.err
    (file,) = (trained / out).glob("*.npz")
    assert np.load(file)["y"].tolist() == y


@pytest.mark.parametrize(
    "line",
    [
        "traverse label=кот",
        "interpolate label=[1,кот] endpoints=prior n=2",
        "project label=кот n=1 steps=2",
        "arithmetic a=[10] b=кот c=1 split=train",
        "arithmetic attribute=кот rows=1",
        "anomaly classes=кот",
    ],
)
def test_commands_take_class_names(trained: Path, line: str) -> None:
    """Wherever a command asks for a class, its name is an answer."""
    command, *options = line.split()
    result = run_here(command, "run=run", "device=cpu", *options, cwd=trained)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sample label=кит", "label=кит: no such class (did you mean 'кот'?)"),
        ("sample label=0", "the classes are 1, 2, 10, кот"),
        ("sample y=кот", "y was renamed to label"),
        ("traverse label=3", "label=3: no such class"),
        ("anomaly classes=[кот,x]", "classes=x: no such class"),
        ("arithmetic a=x", "a=x: no such class"),
        ("sample label={a:1}", "label="),
    ],
)
def test_unknown_classes_are_refused_in_one_line(trained: Path, line: str, words: str) -> None:
    """The message names the option and the classes."""
    command, *options = line.split()
    assert words in run_here(command, "run=run", "device=cpu", *options, cwd=trained).error


def test_an_older_run_takes_the_names_of_its_dataset(project: Path) -> None:
    """Its classes keep the order that they had, numbers stay numbers, and names come from files."""
    path = project / "run" / "run.json"
    metadata = json.loads(path.read_text())
    del metadata["spec"]["class_names"], metadata["start_folder"]
    path.write_text(json.dumps(metadata))
    (project / "run" / "data.json").unlink()
    config = project / "run" / "config.yaml"
    config.write_text(config.read_text().replace("  folder_rules: 2\n", ""))
    for label, number in (("кот", 3), ("1", 1)):
        options = (f"label={label}", f"output_dir={number}", "n=1", "device=cpu")
        assert run_here("sample", "run=run", *options, cwd=project).code == 0
        (file,) = (project / str(number)).glob("*.npz")
        assert np.load(file)["y"].tolist() == [number]
    info = run_here("info", "run=run", cwd=project)
    assert "0 = 1 (10), 1 = 10 (10), 2 = 2 (10), 3 = кот (10)" in " ".join(info.out.split())


# --- moved data -----------------------------------------------------------------------------------


def start_elsewhere(project: Path) -> tuple[Path, list[str]]:
    """Run the command in another folder."""
    (project.parent / "other").mkdir()
    return project.parent / "other", [f"run={project / 'run'}"]


def move_project(project: Path) -> tuple[Path, list[str]]:
    """Move the project with its data to another place."""
    project.rename(project.parent / "moved")
    (project.parent / "other").mkdir()
    return project.parent / "other", [f"run={project.parent / 'moved' / 'run'}"]


def move_data(project: Path) -> tuple[Path, list[str]]:
    """Move the data out of the project, and name its new place, relative to the present folder."""
    (project / "мои фото").rename(project.parent / "снимки [2024]")
    return project, ["run=run", "dataset.path=../снимки [2024]"]


def move_data_home(project: Path) -> tuple[Path, list[str]]:
    """Move the data into the home folder."""
    (project.parent / "home").mkdir()
    (project / "мои фото").rename(project.parent / "home" / "photos")
    return project, ["run=run", "dataset.path=~/photos"]


@pytest.mark.parametrize("move", [start_elsewhere, move_project, move_data, move_data_home])
def test_moved_data_is_found_or_named(
    project: Path, monkeypatch, move: Callable[[Path], tuple[Path, list[str]]]
) -> None:
    """Relative places are those of the start; the data may be named at its new place."""
    cwd, options = move(project)
    monkeypatch.setenv("HOME", str(project.parent / "home"))
    result = run_here("evaluate", *options, *MEASURE, cwd=cwd)
    assert result.code == 0, result.err
    assert "is not what the run began with" not in result.err
    resume = [option.replace("run=", "resume=", 1) for option in options]
    result = run_here("train", *resume, "trainer.steps=3", cwd=cwd)
    assert result.code == 0 and "trained 3 steps" in result.out, result.err


@pytest.mark.parametrize("command", ["evaluate run=run", "encode run=run", "train resume=run"])
def test_missing_data_says_which_option(project: Path, command: str) -> None:
    """The message has the places that were looked at, and the option to give."""
    (project / "мои фото").rename(project.parent / "away")
    extra = ["trainer.steps=3"] if command.startswith("train") else ["device=cpu"]
    message = run_here(*command.split(), *extra, cwd=project).error
    assert f"looked for {project / 'мои фото'}" in message and "dataset.path=" in message


def change_images(project: Path) -> None:
    """Add an image."""
    shutil.copy(project / "мои фото" / "1" / "0.png", project / "мои фото" / "1" / "new.png")


def drop_class(project: Path) -> None:
    """Remove the first class, so that the others would get other numbers."""
    shutil.rmtree(project / "мои фото" / "1")


def add_class(project: Path) -> None:
    """Add a class that the run does not know."""
    (project / "мои фото" / "кит").mkdir()
    shutil.copy(project / "мои фото" / "1" / "0.png", project / "мои фото" / "кит" / "0.png")


def enlarge_images(project: Path) -> None:
    """Replace the images by larger ones."""
    for path in (project / "мои фото").rglob("*.png"):
        Image.new("L", (6, 6)).save(path)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (change_images, 0, "is not what the run began with"),
        (drop_class, 0, "is not what the run began with"),
        (add_class, 2, "has the class кит, but the run was trained on 1, 2, 10, кот"),
        (enlarge_images, 2, "has items with shape (1, 6, 6)"),
    ],
)
def test_other_data_is_said_or_refused(
    project: Path, change: Callable[[Path], None], code: int, words: str
) -> None:
    """Data of the same form is measured with a warning, with the class numbers of the run."""
    change(project)
    result: Result = run_here("evaluate", "run=run", "dataset.path=мои фото", *MEASURE, cwd=project)
    assert result.code == code and words in result.err


def test_a_run_without_files_refuses_a_place(train_run) -> None:
    """The message says what the data of the run is read from."""
    run = train_run("model=vae", "model.hidden=[4]")
    message = run_here("encode", "run=run", "dataset.path=x", "device=cpu", cwd=run.parent).error
    assert "dataset.path=x: the data of this run is not read from a file" in message


@pytest.mark.parametrize(
    ("dataset", "given", "found"),
    [
        ({"path": "a"}, {"path": "/b"}, {"path": "/b"}),
        ({"base": {"path": "a"}}, {"path": "/b"}, {"base": {"path": "/b"}}),
        ({"base": {"path": "a"}}, {"base": {"path": "/b"}}, {"base": {"path": "/b"}}),
        (
            {"root": "data", "base": {"root": "data"}},
            {"root": "/d"},
            {"root": "/d", "base": {"root": "data"}},
        ),
    ],
)
def test_places_inside_of_other_datasets(dataset: dict, given: dict, found: dict) -> None:
    """`dataset.path` is the place that the run's data has, also inside of pairs."""
    assert name_data_place({"dataset": dataset}, given)["dataset"] == found


def test_a_public_dataset_is_looked_for_in_genlab_data(tmp_path: Path, monkeypatch) -> None:
    """A folder that was moved is the one of the environment variable."""
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path))
    config = {"dataset": {"root": "/nowhere/data"}, "out": "outputs/a"}
    assert find_data(config, tmp_path / "run", None)["dataset"]["root"] == str(tmp_path)
    with pytest.raises(UserError, match="dataset.path=<file or folder>"):
        find_data({"dataset": {"path": "/nowhere/x"}}, tmp_path / "run", None)
