"""genlab trajectory: states from noise to samples, back, or over a run's training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import TrajectoryState, abilities
from genlab.commands.sample import (
    encode_prompts,
    validated_class_numbers,
    validated_sampler_options,
)
from genlab.errors import UserError
from genlab.inference.items_and_codes import (
    ItemSelection,
    Split,
    load_selected_items_and_indices,
)
from genlab.inference.output_files import CommandRequest, Writer
from genlab.inference.requirements import require_ability, require_command_support
from genlab.inference.results import Results, write_results
from genlab.inference.training_samples import load_training_samples
from genlab.inference.trajectory_states import StateRecorder
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, Positive
from genlab.viz.latents import prior_quantile_axes
from genlab.viz.trajectories import (
    make_frames,
    make_training_frames,
    plot_strip,
    plot_training_strip,
    write_gif,
)
from genlab.viz.trajectory_numbers import TrajectoryPicture

Direction = Literal["reverse", "forward", "training"]
DEFAULT_N = {"points": 500, "table": 500, "image": 3, "video": 2, "tokens": 1}
DEFAULT_TRAINING_N = {"points": 1000, "table": 1000, "image": 36, "video": 4, "tokens": 1}
DEFAULT_COLUMNS, DEFAULT_TRAINING_COLUMNS = 8, 4
MAX_DATA_POINTS = 2000  # of the data behind points
GRID_SIDE = 21  # codes along an axis of the grid of a flow in the plane
NUM_PRIOR_CODES = 10_000  # from which the extent of the grid is computed


@torch.no_grad()
def trajectory(
    run: LoadedRun,
    *,
    direction: Direction | None = None,
    n: Positive | None = None,
    columns: Positive | None = None,
    times: list[float] | None = None,
    frames: Count = 40,
    label: ClassNumber | list[ClassNumber] | None = None,
    prompt: str | list[str] | None = None,
    steps: Positive | None = None,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the states of a trajectory as a strip (PNG), an animation (GIF) and arrays (.npz).

    The last state of direction=reverse has the samples of `genlab sample` with the same n, seed and
    sampler.

    Args:
        direction: "reverse" from noise to samples, "forward" from items on, or "training": the
            samples of the same noise at successive steps of the run. None is "reverse" where the
            model draws in several steps, else "training".
        times: of the states in the strip, instead of `columns` of them.
        frames: of the animation; 0 writes none.

    Raises:
        UserError: the model does not have such a trajectory, or a time is outside of it.
    """
    request = CommandRequest.from_command_call(trajectory, [run], locals())
    available = require_command_support(run, "trajectory")
    if direction is None:
        direction = "reverse" if "trajectory" in available else "training"
    refuse_options_without_effect(
        direction, label=label, prompt=prompt, sampler=sampler, steps=steps, items=items
    )
    view = View(columns, tuple(times or ()), frames)
    if direction == "training":
        results = show_training(run, view, n=n, seed=seed)
    elif direction == "forward":
        require_ability(run, "forward_trajectory")
        n = None if items else n or default_n(run)
        results = show_forward(run, view, ItemSelection(n, items, split, seed), steps)
    else:
        require_ability(run, "trajectory", "direction=training")
        captions = [prompt] if isinstance(prompt, str) else prompt
        y = conditions_of_samples(run, n or default_n(run), label, captions)
        options = validated_sampler_options(run, sampler or {})
        results = show_reverse(run, view, n=n or default_n(run), y=y, seed=seed, options=options)
        results.record |= {"label": label, "prompt": prompt, "sampler": options}
    results.record = {"direction": direction, **results.record}
    return write_results(run, request, results, output_dir)


@dataclass(frozen=True)
class View:
    """The states that the strip and the animation show; see `trajectory`."""

    columns: int | None
    times: tuple[float, ...]
    frames: int


def default_n(run: LoadedRun) -> int:
    """Return the number of samples that fit well into a strip."""
    return DEFAULT_N.get(run.spec.kind, DEFAULT_N["image"])


def refuse_options_without_effect(direction: Direction, **options: Any) -> None:
    """Refuse options that belong to another direction than that of the trajectory.

    Raises:
        UserError: names the option and its direction.
    """
    sampler = options["sampler"] or {}
    given = {name for name, value in options.items() if value not in (None, {}, [])}
    if not any(value is not None for value in sampler.values()):
        given.discard("sampler")
    owners = {"label": "reverse", "prompt": "reverse", "sampler": "reverse"}
    owners |= {"steps": "forward", "items": "forward"}
    for name in sorted(given):
        if owners[name] != direction:
            raise UserError(
                f"{name}= has no effect with direction={direction}: it is for "
                f"direction={owners[name]}"
            )


def conditions_of_samples(
    run: LoadedRun, n: int, label: int | list[int] | None, captions: list[str] | None
) -> Tensor | None:
    """Return the classes (n,) or prompts (n, length) of n samples; None without any."""
    classes, tokens = validated_class_numbers(run, label), encode_prompts(run, captions)
    conditions = torch.tensor(classes) if tokens is None else tokens
    if not len(conditions):
        return None
    return conditions[torch.arange(n) % len(conditions)].to(run.device.torch)


# --- reverse and forward --------------------------------------------------------------------------


def show_reverse(
    run: LoadedRun,
    view: View,
    *,
    n: int,
    y: Tensor | None,
    seed: int,
    options: dict[str, Any],
) -> Results:
    """Return the results of drawing n samples, with the states that the sampler reports.

    Args:
        y: classes (n,) or prompts (n, length) of the samples.
        options: of the model's `sample`.
    """
    if run.spec.kind == "tokens" and not view.times:  # one token after the other
        middle = run.spec.dim // 2
        last = min(run.spec.dim, middle + (view.columns or DEFAULT_COLUMNS) - 1)
        view = replace(view, times=tuple(range(middle, last + 1)))
    recorder = StateRecorder(view.times, run.model.trajectory_spacing)
    torch.manual_seed(seed)
    start, side = None, 0
    if has_code_grid(run):
        start, side = torch.cat([run.model.prior(n, y), code_grid(run)]), GRID_SIDE
        y = None if y is None else torch.cat([y, y[-1:].expand(side**2)])
    samples = run.model.trajectory(recorder, n + side**2, y, start=start, **options)
    refuse_single_state(run, recorder)
    about = TrajectoryPicture(
        run.spec,
        run.model.trajectory_guess,
        data=data_behind_points(run, seed),
        side=side,
        note=run.model.trajectory_note,
    )
    results = make_results("reverse", run, recorder, view, about, seed)
    results.record["n"] = n
    results.arrays["x"] = samples[:n]
    return results


def has_code_grid(run: LoadedRun) -> bool:
    """Whether the model maps codes in the plane to points in the plane, one to one."""
    is_plane = run.spec.kind == "points" and run.spec.dim == 2
    return is_plane and {"prior", "log_prob", "encode"} <= abilities(run.model)


def code_grid(run: LoadedRun) -> Tensor:
    """Return a grid of codes (side², 2) over the quantiles of the prior."""
    torch.manual_seed(0)
    x, y = prior_quantile_axes(run.model.prior(NUM_PRIOR_CODES), GRID_SIDE)
    return torch.stack([x.repeat(GRID_SIDE), y.repeat_interleave(GRID_SIDE)], 1)


def refuse_single_state(run: LoadedRun, recorder: StateRecorder) -> None:
    """Refuse to show the trajectory of a model that drew its samples at once.

    Raises:
        UserError: says what to set.
    """
    if recorder.count < 2:
        raise UserError(
            f"this {run.name} draws its samples in one step, because it is small enough for exact "
            "sums; set sampler.steps=100 for a chain, or direction=forward"
        )


def show_forward(
    run: LoadedRun, view: View, selection: ItemSelection, steps: int | None
) -> Results:
    """Return the results of the states that follow on the selected items."""
    batch, index = load_selected_items_and_indices(run, selection)
    recorder = StateRecorder(view.times, run.model.trajectory_spacing)
    torch.manual_seed(selection.seed)
    run.model.forward_trajectory(recorder, batch.x, steps=steps)
    about = TrajectoryPicture(run.spec, run.model.trajectory_guess, sample_name="item")
    if run.spec.kind != "image":
        about = replace(about, data=data_behind_points(run, selection.seed))
    results = make_results("forward", run, recorder, view, about, selection.seed)
    results.record |= {"n": len(batch), "split": selection.split}
    results.arrays |= {"index": index}
    return results


def data_behind_points(run: LoadedRun, seed: int) -> Tensor | None:
    """Return real items to show behind points; None for other data, or if it is not there."""
    if run.spec.kind not in ("points", "table"):
        return None
    split = next((name for name in ("train", "test") if run.dataset.size(name)), None)
    if split is None:
        return None
    x: Tensor = run.dataset.head(split, MAX_DATA_POINTS, seed=seed).x
    return x


def make_results(
    direction: str,
    run: LoadedRun,
    recorder: StateRecorder,
    view: View,
    about: TrajectoryPicture,
    seed: int,
) -> Results:
    """Return the results with the strip, the animation and the arrays of the shown states."""
    if view.times:
        shown = recorder.states_at_times()
    else:
        shown = recorder.spaced_states(view.columns or DEFAULT_COLUMNS)
    files: dict[str, Writer] = {}
    if view.frames:
        states = recorder.spaced_states(view.frames)
        files[".gif"] = partial(write_gif, make_frames(states, about))
    return Results(
        f"trajectory_{direction}",
        seed,
        record_of_states(shown, recorder.count),
        images={"": plot_strip(shown, about)},
        arrays=arrays_of_states(shown),
        files=files,
    )


def record_of_states(states: Sequence[TrajectoryState], count: int) -> dict[str, Any]:
    """Return the part of a record that lists the states of a strip with their numbers."""
    listed = []
    for state in states:
        numbers = {
            name: value.double().tolist() if isinstance(value, Tensor) else value
            for name, value in state.numbers.items()
        }
        listed.append({"time": state.time, "name": state.name, **numbers})
    return {"num_states": count, "states": listed}


def arrays_of_states(states: Sequence[TrajectoryState]) -> dict[str, Tensor | np.ndarray | None]:
    """Return the states of a strip (T, n, *shape) as arrays, with what belongs to them."""
    arrays: dict[str, Tensor | np.ndarray | None] = {
        "times": np.array([state.time for state in states]),
        "states": torch.stack([state.x for state in states]),
    }
    for name in ("guess", "known", "next_probs"):
        found = [getattr(state, name) for state in states]
        like = next((value for value in found if value is not None), None)
        if like is not None:  # the last state lacks it
            empty = torch.zeros_like(like)
            arrays[name] = torch.stack([empty if value is None else value for value in found])
    return arrays


# --- over the training ----------------------------------------------------------------------------


def show_training(run: LoadedRun, view: View, *, n: int | None, seed: int) -> Results:
    """Return the results of samples of the same noise at successive steps of the run."""
    require_ability(run, "sample")
    n = n or DEFAULT_TRAINING_N.get(run.spec.kind, DEFAULT_TRAINING_N["image"])
    num_columns = view.columns or DEFAULT_TRAINING_COLUMNS
    found = load_training_samples(
        run, n=n, seed=seed, steps=view.times, num_steps=num_columns, num_frames=view.frames
    )
    print(found.description)
    about = TrajectoryPicture(run.spec, data=data_behind_points(run, seed), note=found.note)
    shown = found.strip_steps
    files: dict[str, Writer] = {}
    if view.frames:
        frames = make_training_frames(list(found.samples.values()), found.names(), about)
        files[".gif"] = partial(write_gif, frames)
    record = {"n": n, "source": found.source, "steps": shown}
    arrays: dict[str, Tensor | np.ndarray | None] = {"steps": np.array(shown)}
    if found.is_array:
        arrays["samples"] = np.stack([np.asarray(found.samples[step]) for step in shown])
    strip = plot_training_strip([found.samples[k] for k in shown], found.names(shown), about)
    return Results(
        "trajectory_training", seed, record, images={"": strip}, arrays=arrays, files=files
    )
