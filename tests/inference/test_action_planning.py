"""Videos with pushes, forecasts under actions, and the planner by random shooting."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.cli_runner import run_here
from helpers.recipes import compose_config

from genlab.builders.factory import make_dataset
from genlab.data.video import MAX_PUSHED_STEP, bouncing_positions
from genlab.errors import UserError
from genlab.inference.action_planning import (
    Planner,
    act_in_simulation,
    brightness_centers,
    plan_next_action,
    predict_frames_under_actions,
    simulate,
)
from genlab.spec import DataSpec

SMALL = ("dataset=moving_digits", "dataset.n=20", "dataset.num_heldout=6", "model=next_frame")


def make_videos(*overrides: str):
    from omegaconf import OmegaConf

    config = compose_config(*SMALL, *overrides, "out=unused")
    return make_dataset(OmegaConf.to_container(OmegaConf.create(config), resolve=True))


class PixelWorld(torch.nn.Module):
    """A pixel on a torus that moves by two pixels in the direction of each action."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def translate(self, cond: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        frame, action = cond[:, -1, :1], 2 * cond[:, -1, 1:, 0, 0]  # of a range from −1 to 1
        moved = [
            image.roll(shift, (1, 2))
            for image, shift in zip(frame, action.round().int().tolist(), strict=True)
        ]
        return torch.stack(moved)[:, None]


@pytest.fixture
def pixel_run():
    source = DataSpec((2, 3, 9, 9), "video", action_channels=2)
    spec = DataSpec((1, 1, 9, 9), "video", source=source, task="forecast")
    device = SimpleNamespace(torch=torch.device("cpu"))
    return SimpleNamespace(spec=spec, model=PixelWorld(), device=device)


def draw_pixels(*places: tuple[int, int]) -> torch.Tensor:
    frames = torch.full((len(places), 2, 1, 9, 9), -1.0)
    for i, (row, column) in enumerate(places):
        frames[i, :, 0, row, column] = 1
    return frames


# --- videos ---------------------------------------------------------------------------------------


def test_pushes_accelerate_up_to_the_largest_step():
    start, velocity = torch.tensor([0.1, 0.9]), torch.tensor([0.0, 0.0])
    pushes = torch.tensor([[0.05, 0.0], [0.05, -0.5], [0.0, 0.0]])
    positions = bouncing_positions(start, velocity, 3, pushes)
    expected = [[0.15, 0.9], [0.25, 0.9 - MAX_PUSHED_STEP], [0.35, 0.9 - 2 * MAX_PUSHED_STEP]]
    torch.testing.assert_close(positions, torch.tensor(expected))
    without = bouncing_positions(start, velocity, 3, torch.zeros(3, 2))
    torch.testing.assert_close(without, bouncing_positions(start, velocity, 3))


def test_source_has_the_pushes_between_its_frames_and_the_next():
    videos = make_videos("dataset.push=0.1", "preprocess.dequantize=false")
    assert videos.spec.source.shape == (4, 3, 16, 16) and videos.spec.source.action_channels == 2
    batch = videos.head("test", 3)
    items = videos.raw_items_and_labels("test")[0][videos.head_indices("test", 3)]
    pushes = videos.pushes_of_items(items)
    assert pushes.shape == (3, 5, 2) and pushes.abs().max() <= 1
    maps = batch.cond[:, :, 1:]  # in the range from −1 to 1, as the pushes
    torch.testing.assert_close(maps, pushes[:, 1:, :, None, None].expand_as(maps))
    frames = simulate(videos, items, pushes)
    torch.testing.assert_close(frames, torch.cat([batch.cond[:, :, :1], batch.x], 1))

    longer = videos.with_target_frames(3)  # the same videos, seen for longer
    torch.testing.assert_close(longer.head("test", 3).cond, batch.cond)
    torch.testing.assert_close(longer.head("test", 3).x[:, :1], batch.x)
    plain = make_videos()
    assert plain.spec.source.shape == (4, 1, 16, 16)
    assert plain.raw_items_and_labels("test")[0].shape[2] == 5


@pytest.mark.parametrize("override", ["dataset.num_digits=2", "preprocess.flip=true"])
def test_pushes_that_would_be_ambiguous_are_refused(override):
    with pytest.raises(UserError, match=override.partition("=")[0].split(".")[1]):
        make_videos("dataset.push=0.1", override)


# --- predicting and planning ----------------------------------------------------------------------


def test_frames_follow_the_actions_of_their_time(pixel_run):
    actions = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.5, 0.5]]])
    predicted = predict_frames_under_actions(pixel_run, draw_pixels((4, 4)), actions, 3)
    centers = brightness_centers(predicted, pixel_run.spec)[0]
    torch.testing.assert_close(centers, torch.tensor([[6.0, 4.0], [6.0, 2.0], [7.0, 3.0]]))


def test_planner_moves_towards_the_target(pixel_run):
    places = [(1, 1), (1, 7), (7, 1), (7, 7)]
    planner = Planner((4.0, 4.0), horizon=2, candidates=200)
    generator = torch.Generator().manual_seed(0)
    past = torch.zeros(4, 1, 2)
    action = plan_next_action(pixel_run, draw_pixels(*places), past, planner, generator)
    towards = torch.tensor([[4.0 - row, 4.0 - column] for row, column in places])
    assert ((action * towards) > 0).all()  # along both axes


def test_actions_in_the_simulation_are_those_that_were_chosen(pixel_run):
    videos = make_videos("dataset.push=0.1").with_target_frames(3)
    items = videos.raw_items_and_labels("test")[0]
    frames, actions = act_in_simulation(pixel_run, videos, items, 3, None, seed=0)
    own = videos.pushes_of_items(items)
    torch.testing.assert_close(actions[:, :4], own[:, :4])  # of the context
    assert (actions[:, 4:] != own[:, 4:]).all() and actions.abs().max() <= 1
    torch.testing.assert_close(frames, simulate(videos, items, actions))


@pytest.mark.slow
def test_trained_simulator_plans_better_than_chance(tmp_path):
    run = tmp_path / "run"
    options = (
        *("model=next_frame", "dataset=moving_digits", "dataset.push=0.1", "optimizer=adam"),
        *("model.adversarial_weight=0", "model.gradient_difference_weight=0", "optimizer.lr=1e-3"),
        *("model.width=[32,32,16]", "trainer.steps=1500", "trainer.batch_size=16"),
        *("trainer.grad_clip=0", "trainer.lr_schedule=linear", "trainer.preview_every=0"),
    )
    assert run_here("train", *options, "device=cpu", f"out={run}", cwd=tmp_path).code == 0
    given = ("actions=[[0,1],[1,0]]", "n=3", "videos=10")
    assert run_here("forecast", f"run={run}", *given, cwd=tmp_path).code == 0
    steering = ("target=[4.5,11]", "n=10", "videos=20", "candidates=32")
    assert run_here("forecast", f"run={run}", *steering, cwd=tmp_path).code == 0
    (path,) = (run / "samples").glob("steer*.json")
    record = json.loads(path.read_text())
    planned, random = (record[f"distance_to_target_{name}"] for name in ("planned", "random"))
    error = (planned["error"] ** 2 + random["error"] ** 2) ** 0.5
    assert planned["value"] < random["value"] - 3 * error
    message = run_here("forecast", f"run={run}", "horizon=3", cwd=tmp_path).error
    assert "horizon=3" in message and "target" in message
