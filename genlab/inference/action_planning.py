"""Simulate ahead: predict videos under actions, and plan actions by random shooting.

A model of the next frame that is conditioned on actions is a simulator. The planner draws sequences
of actions, predicts the frames after each, and takes the first action of the best one; then it
looks at the true frame and plans again (model-predictive control, as in Nagabandi et al. 2018,
https://arxiv.org/abs/1708.02596, section IV-B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.console import track
from genlab.data.video import ACTION_SIZE, append_actions
from genlab.metrics.paired_translation import translate_in_batches
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import DataSpec


@dataclass(frozen=True)
class Planner:
    """The settings of random shooting.

    Attributes:
        target: row and column in pixels, for the center of brightness.
        horizon: frames that are predicted ahead.
        candidates: sequences of actions that are drawn for each frame.
    """

    target: tuple[float, float]
    horizon: int
    candidates: int


@torch.no_grad()
def predict_frames_under_actions(run: LoadedRun, frames: Tensor, actions: Tensor, n: int) -> Tensor:
    """Return the n frames (N, n, C, H, W) after the given ones.

    Args:
        frames: (N, P, C, H, W), without actions.
        actions: (N, P − 1 + n, 2), the first of which is between the first two frames.
    """
    context = frames.shape[1]
    source = run.spec.source
    assert source is not None
    for step in range(n):
        recent = frames[:, -context:]
        cond = append_actions(recent, actions[:, step : step + context], source)
        following = translate_in_batches(run.model.translate, cond, run.spec)[:, :1]
        frames = torch.cat([frames, following.to(frames)], 1)
    return frames[:, context:]


def brightness_centers(frames: Tensor, spec: DataSpec) -> Tensor:
    """Return the row and the column (…, 2) of the center of brightness of frames (…, C, H, W)."""
    low, high = spec.range
    light = ((frames.float() - low) / (high - low)).clamp(0, 1).sum(-3)  # (…, H, W)
    light = (light - 0.1).clamp(min=0)  # faint errors all over a frame would pull to the middle
    total = light.sum((-2, -1)).clamp(min=1e-6)
    rows = torch.arange(light.shape[-2], device=light.device, dtype=light.dtype)
    columns = torch.arange(light.shape[-1], device=light.device, dtype=light.dtype)
    center_row = (light.sum(-1) * rows).sum(-1) / total
    center_column = (light.sum(-2) * columns).sum(-1) / total
    return torch.stack([center_row, center_column], -1)


def distances_to_target(frames: Tensor, target: tuple[float, float], spec: DataSpec) -> Tensor:
    """Return how far (…) in pixels the center of brightness of frames is from the target."""
    return (brightness_centers(frames, spec) - frames.new_tensor(target)).norm(dim=-1)


def plan_next_action(
    run: LoadedRun, frames: Tensor, past: Tensor, planner: Planner, generator: torch.Generator
) -> Tensor:
    """Return the first action (N, 2) of the best of the planner's candidates for each video.

    The candidates of a video are compared by their mean distance to the target.

    Args:
        frames: the last P frames (N, P, C, H, W).
        past: the P − 1 actions between them (N, P − 1, 2).
    """
    n, k = len(frames), planner.candidates
    shape = (n, k, planner.horizon, ACTION_SIZE)
    drawn = 2 * torch.rand(shape, generator=generator).to(frames) - 1
    actions = torch.cat([past[:, None].expand(-1, k, -1, -1), drawn], 2).flatten(0, 1)
    repeated = frames.repeat_interleave(k, 0)
    predicted = predict_frames_under_actions(run, repeated, actions, planner.horizon)
    distance = distances_to_target(predicted, planner.target, run.spec).mean(1).unflatten(0, (n, k))
    return drawn[torch.arange(n), distance.argmin(1), 0]


@torch.no_grad()
def act_in_simulation(
    run: LoadedRun, dataset: Any, items: Tensor, n: int, planner: Planner | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Act for n frames after the context of videos, as planned or at random.

    Args:
        dataset: the run's, with n target frames; it simulates the consequences.
        items: its raw items (N, …).
        planner: None takes uniformly random actions.

    Returns:
        All true frames (N, P + n, C, H, W), and all actions (N, P + n, 2).
    """
    generator = torch.Generator().manual_seed(seed)
    context = dataset.context_frames
    actions = dataset.pushes_of_items(items).clone()  # (N, P + n, 2); action t is before frame t
    if planner is None:
        shape = actions[:, context:].shape
        actions[:, context:] = 2 * torch.rand(shape, generator=generator) - 1
        return simulate(dataset, items, actions), actions
    for step in track(range(context, context + n), "planning", unit="frames"):
        frames = simulate(dataset, items, actions)[:, step - context : step]
        past = actions[:, step - context + 1 : step]
        device = run.device.torch
        chosen = plan_next_action(run, frames.to(device), past.to(device), planner, generator)
        actions[:, step] = chosen.cpu()
    return simulate(dataset, items, actions), actions


def simulate(dataset: Any, items: Tensor, actions: Tensor) -> Tensor:
    """Return the true frames (N, T, C, H, W) of videos after actions (N, T, 2), without noise."""
    frames = dataset.render_frames(dataset.with_pushes(items, actions), dataset.store)
    values: Tensor = dataset.spec.from_bytes(frames.float())
    return values
