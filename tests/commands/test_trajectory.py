"""genlab trajectory: the strip, the animation and the arrays of every model that has one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.kinds import first_of_each_kind
from helpers.recipes import QUICK_FIRST, build_training_objects, model_class, small_overrides
from PIL import Image

from genlab.builders import entrypoints
from genlab.commands.trajectory import trajectory
from genlab.config.recipes import list_recipes
from genlab.errors import UserError
from genlab.inference import training_samples
from genlab.inference.trajectory_states import StateRecorder, spaced_numbers
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.run_folder import RunFolder
from genlab.viz import item_pictures
from genlab.viz.sheets import encode_values, read_values_from_sheet_png

RECIPES = {recipe.name: recipe.abilities() for recipe in list_recipes()}
REVERSE = [name for name in QUICK_FIRST if "trajectory" in RECIPES[name]]
FORWARD = [name for name in QUICK_FIRST if "forward_trajectory" in RECIPES[name]]


def untrained_run(recipe: str, folder: Path) -> LoadedRun:
    """Return a run of a small model of a recipe, without a training."""
    config, dataset, trainer = build_training_objects(*small_overrides(recipe))
    return LoadedRun(
        RunFolder(folder),
        config,
        {"model": recipe, "dataset": dataset.name},
        trainer.eval_model(),
        dataset.spec,
        trainer.device,
        0,
        lambda: dataset,
    )


def family(case: tuple[str, str]) -> tuple[str, str]:
    """Return the family and the direction of a case, of which the first is a quick test."""
    recipe, direction = case
    return model_class(recipe).split(".")[2], direction


def written_files(folder: Path) -> dict[str, Path]:
    return {path.suffix: path for path in folder.iterdir()}


# --- every recipe ---------------------------------------------------------------------------------

CASES = [*((name, "reverse") for name in REVERSE), *((name, "forward") for name in FORWARD)]


@pytest.mark.parametrize(("recipe", "direction"), first_of_each_kind(CASES, family))
def test_every_model_with_a_trajectory_makes_its_figure(recipe, direction, tmp_path):
    run = untrained_run(recipe, tmp_path)
    options: dict = {"n": 2, "columns": 3, "frames": 2, "output_dir": str(tmp_path / "out")}
    if direction == "forward":
        options["steps"] = 3 if run.model.step_by_step else None
    elif run.model.step_by_step:
        options["sampler"] = {"steps": 3}
    record = trajectory(run, direction=direction, **options)
    files = written_files(tmp_path / "out")
    assert set(files) == {".png", ".gif", ".npz", ".json"}
    assert record["n"] == 2 and len(record["states"]) == min(3, record["num_states"])
    with np.load(files[".npz"]) as arrays:
        n = arrays["states"].shape[1]
        assert arrays["states"].shape[0] == len(record["states"])
        assert arrays["states"].shape[2:] == run.spec.shape
        if direction == "reverse":
            last = arrays["states"][-1][:2]
            if run.spec.kind == "tokens":  # the strip shows the middle of the text
                last = np.where(arrays["known"][-1], last, arrays["x"])
            assert np.array_equal(last, arrays["x"])
            assert n >= 2  # a flow in the plane also has the states of a grid
    with Image.open(files[".png"]) as strip, Image.open(files[".gif"]) as film:
        assert np.ptp(np.asarray(strip)) > 0 and strip.width < 2000
        assert film.n_frames == 2 and film.info["loop"] == 0
    assert json.loads(files[".json"].read_text())["direction"] == direction


# --- which states ---------------------------------------------------------------------------------


def test_the_strip_has_the_chosen_times(tmp_path):
    run = untrained_run("ddpm_points", tmp_path)
    record = trajectory(run, times=[1000, 500, 0], frames=0, n=5, sampler={"sampler": "ancestral"})
    assert [state["time"] for state in record["states"]] == [1000, 500, 0]
    assert record["num_states"] == 1001 and "ᾱ" in record["states"][1]
    with pytest.raises(UserError, match=r"times=\[2000\].* 0 to 1000"):
        trajectory(run, times=[2000.0], frames=0, n=5)


def test_recorder_keeps_few_states_in_memory_and_all_chosen_times(monkeypatch):
    from genlab.abilities import TrajectoryState
    from genlab.inference import trajectory_states

    monkeypatch.setattr(trajectory_states, "MAX_BYTES", 0)
    recorder = StateRecorder(times=(777, 3))
    x = torch.zeros(1, 2)
    for number in range(5000):
        x.fill_(number)  # the recorder must copy it
        recorder(TrajectoryState(number, str(number), x))
    kept = recorder.states()
    assert len(kept) <= trajectory_states.MIN_STATES + 3
    assert all((state.x == number).all() for number, state in kept.items())
    assert [state.time for state in recorder.states_at_times()] == [3, 777]
    times = [state.time for state in recorder.spaced_states(5)]
    assert times[0] == 0 and times[-1] == 4999 and np.ptp(np.diff(times)) < 300


def test_spaced_numbers():
    assert spaced_numbers(1001, 5, "even") == [0, 250, 500, 750, 1000]
    assert spaced_numbers(1001, 11, "log") == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert spaced_numbers(3, 8, "even") == spaced_numbers(3, 8, "log") == [0, 1, 2]
    assert spaced_numbers(1, 4, "log") == [0] and spaced_numbers(9, 1, "even") == [8]


REFUSED = [
    ("ddpm_points", {"direction": "forward", "label": 3}, "label= has no effect .*reverse"),
    ("ddpm_points", {"steps": 3}, "steps= has no effect with direction=reverse.*forward"),
    ("gan", {"sampler": {"sampler": "ddim"}}, "sampler= has no effect with direction=training"),
    ("gan", {"direction": "reverse"}, "GAN does not support `trajectory`; give direction=training"),
    ("gpt_text", {"direction": "forward"}, "GPTText does not support `forward_trajectory`"),
    ("gan", {}, "less than two steps.*trainer.preview_every"),
]


@pytest.mark.parametrize(("recipe", "options", "message"), REFUSED)
def test_refusals_name_the_fix(recipe, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trajectory(untrained_run(recipe, tmp_path), **options)


# --- over the training ----------------------------------------------------------------------------

TRAININGS = {  # data -> a small training
    "points": ("model=gan", "dataset=ring", "dataset.n=400", "model.hidden=[8]"),
    "images": ("model=gan", "model.hidden=[8]"),
    "texts": ("model=gpt_text", "model.num_layers=1", "model.num_heads=2", "model.width=8"),
}


@pytest.mark.parametrize(
    "kind",
    ["points", *(pytest.param(k, marks=pytest.mark.slow) for k in ("images", "texts"))],
)
def test_previews_and_checkpoints_have_the_same_samples(kind, genlab, tmp_path):
    steps = ("trainer.steps=8", "trainer.preview_every=2", "trainer.save_every=4")
    options = (*TRAININGS[kind], *steps, "trainer.batch_size=8", "device=cpu", "out=run")
    result = genlab("train", *options)
    assert result.code == 0, result.err
    run = entrypoints.load_run({"run": str(tmp_path / "run"), "device": {"name": "cpu"}})
    n = {"points": 1000, "images": 64, "texts": 8}[kind]
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    drawn = training_samples.load_training_samples(run, n=n, seed=0, steps=[4, 8])
    assert drawn.source == "checkpoints" and drawn.names([4, 8]) == ["4 steps", "8 steps"]
    assert all(torch.equal(v, before[key]) for key, v in run.model.state_dict().items())
    shown = training_samples.load_training_samples(run, n=n, seed=0, num_steps=4)
    assert shown.source == "previews" and shown.strip_steps == [2, 4, 6, 8]
    for step in (4, 8):
        if kind == "texts":
            assert shown.samples[step] == drawn.samples[step]
        elif kind == "points":
            assert torch.equal(shown.samples[step], drawn.samples[step])
        else:
            assert np.array_equal(shown.samples[step], drawn.samples[step])

    record = trajectory(run, direction="training", n=8 if kind != "texts" else 1, frames=3)
    assert record["source"] == "previews" and record["steps"][-1] == 8
    other = trajectory(run, direction="training", n=8, frames=0, seed=3, times=[4, 8])
    assert other["source"] == "checkpoints"
    with pytest.raises(UserError, match=r"times=\[5\].*previews of 2, 4, 6, 8"):
        trajectory(run, direction="training", n=1, times=[5])


def test_values_of_a_plot_are_read_from_its_file_only_if_they_are_valid(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    x, spec = torch.from_numpy(values), untrained_run("ddpm_points", tmp_path).spec
    path = tmp_path / "plot.png"
    item_pictures.save_items_as_sheet(x, spec, path)
    assert np.array_equal(read_values_from_sheet_png(path.read_bytes()), values)
    good = encode_values(values)
    wrong = [
        {**good, "shape": [8, 2]},
        {**good, "shape": [-1, 2]},
        {**good, "shape": ["7", 2]},
        {**good, "float32": "…"},
        {"shape": [7, 2]},
        [1],
    ]
    from PIL.PngImagePlugin import PngInfo

    for content in wrong:
        info = PngInfo()
        info.add_text("genlab-values", json.dumps(content))
        Image.new("RGB", (2, 2)).save(path, pnginfo=info)
        assert read_values_from_sheet_png(path.read_bytes()) is None
    assert read_values_from_sheet_png(b"not a picture") is None
