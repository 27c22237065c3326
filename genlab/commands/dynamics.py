"""genlab dynamics: how the discriminator and the generator of a GAN move in training."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.inference.adversarial_states import (
    AdversarialState,
    data_probabilities,
    game_grid,
    is_exact,
    measure_state,
    models_at_checkpoints,
)
from genlab.inference.density_grids import MARGIN, Grid
from genlab.inference.items_and_codes import ItemSelection, load_selected_items_and_indices
from genlab.inference.output_files import CommandRequest, Writer
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.tables import print_table
from genlab.viz.adversarial_dynamics import (
    Plot,
    StateArrays,
    plot_dynamics_frames,
    plot_dynamics_strip,
)
from genlab.viz.trajectories import write_gif

DIMENSIONS = (1, 2)
TOP_QUANTILE = 1.6  # the axis of densities reaches this many times the data's largest


@torch.no_grad()
def dynamics(
    run: LoadedRun,
    *,
    steps: list[Count] | None = None,
    columns: Positive = 6,
    range: tuple[float, float] | None = None,
    n: Positive = 1000,
    gif: bool = True,
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Show p, G(z), D and D* at the kept checkpoints, and V(D, G) beside 2 JS − log 4.

    On the line with a one-dimensional code the distribution of G(z) is computed without samples;
    otherwise it is a histogram of samples, and the divergence an estimate. The weights are those
    that are trained, without averaging.

    Args:
        steps: of the checkpoints in the strip; None takes `columns` of them, evenly.
        range: of each axis of the pictures; None covers the data, with a margin.
        n: number of data points and samples in the pictures of the plane.
        gif: whether to write the animation of all kept checkpoints.

    Raises:
        UserError: the model has no discriminator, the data has more than two dimensions, or a step
            has no checkpoint.
    """
    request = CommandRequest.from_command_call(dynamics, [run], locals())
    require_command_support(run, "dynamics")
    if run.spec.dim not in DIMENSIONS:
        raise UserError(
            f"genlab dynamics draws points on the line or in the plane, but {run.dataset_name} has "
            f"{run.spec.dim} coordinates"
        )
    if range is not None and not range[0] < range[1]:
        raise UserError(f"range={list(range)}: the lower bound must come first")
    grid = game_grid(run)
    p = data_probabilities(run, grid)
    found = [
        measure_state(run, model, step, grid, p, seed=seed, shown=n)
        for step, model in track(
            models_at_checkpoints(run),
            "measuring",
            len(run.folder.checkpoint_files()),
            unit="checkpoints",
        )
    ]
    chosen = choose_states(found, steps, columns, str(run.folder.path))
    data = load_selected_items_and_indices(run, ItemSelection(n, None, "test", seed))[0].x
    plot = make_plot(run, found, grid, data, range)
    tag = "exact" if is_exact(run) else "estimate"
    print_states(found, tag)
    by_step = {state.step: state for state in plot.history}
    files: dict[str, Writer] = {}
    if gif:
        files[".gif"] = partial(write_gif, plot_dynamics_frames(plot))
    note = "V(D, G) ≤ 2 JS(p, q) − log 4, with equality for D*"
    if tag == "estimate":
        note += "; JS is estimated from samples in cells"
    results = Results(
        "dynamics",
        seed,
        record={
            "tag": tag,
            "checkpoints": [
                {
                    "step": state.step,
                    "js": state.js,
                    "value_of_optimal_d": state.value_of_optimal_d,
                    "value": state.value,
                }
                for state in found
            ],
        },
        images={
            "": plot_dynamics_strip([by_step[state.step] for state in chosen], plot, note=note)
        },
        arrays={
            "steps": np.array([state.step for state in found]),
            "js": np.array([state.js for state in found]),
            **{f"x{i}": center for i, center in enumerate(grid.centers, start=1)},
            "p": p.view(grid.shape),
            "q": torch.stack([state.q for state in chosen]).unflatten(1, grid.shape),
            "d": torch.stack([state.d for state in chosen]).unflatten(1, grid.shape),
        },
        files=files,
    )
    return write_results(run, request, results, output_dir)


def choose_states(
    states: list[AdversarialState], steps: list[int] | None, columns: int, folder: str
) -> list[AdversarialState]:
    """Return the states of a strip.

    Raises:
        UserError: a step has no checkpoint; names the steps that have one.
    """
    known = {state.step: state for state in states}
    if steps is not None:
        for step in steps:
            if step not in known:
                kept = ", ".join(map(str, known))
                raise UserError(
                    f"steps={steps}: {folder} has no checkpoint of step {step}; it has {kept}. "
                    "More are kept with trainer.save_every=100 trainer.keep_checkpoints=1000"
                )
        return [known[step] for step in steps]
    places = np.linspace(0, len(states) - 1, min(columns, len(states))).round().astype(int)
    return [states[i] for i in places]


def make_plot(
    run: LoadedRun,
    states: list[AdversarialState],
    grid: Grid,
    data: Tensor,
    limits: tuple[float, float] | None,
) -> Plot:
    """Return what the pictures show."""
    points = data.flatten(1).double().cpu()
    margin = MARGIN * (points.amax(0) - points.amin(0))
    ends = torch.stack([points.amin(0) - margin, points.amax(0) + margin], 1).tolist()
    density = states[0].p.max().item() / grid.cell_volume
    return Plot(
        [edges.numpy() for edges in grid.edges],
        [limits or (low, high) for low, high in ends],
        points.numpy(),
        [to_arrays(state, grid, has_optimum=state.value is not None) for state in states],
        TOP_QUANTILE * density,
    )


def to_arrays(state: AdversarialState, grid: Grid, *, has_optimum: bool) -> StateArrays:
    """Return a state as the arrays that are drawn."""

    def shaped(values: Tensor) -> np.ndarray:
        return values.view(grid.shape).numpy()

    return StateArrays(
        state.step,
        shaped(state.p) / grid.cell_volume,
        shaped(state.q) / grid.cell_volume,
        shaped(state.d),
        shaped(state.d_optimal) if has_optimum else None,
        None if state.codes is None else state.codes.numpy(),
        None if state.images is None else state.images.numpy(),
        state.samples.numpy(),
        state.value,
        state.value_of_optimal_d,
    )


def print_states(states: list[AdversarialState], tag: str) -> None:
    """Print a table of the divergence and of the value of the game at each step."""
    print(f"JS and V in nats ({tag}); V(D*, G) = 2 JS − log 4")
    rows = [
        [
            f"{state.step:,}",
            f"{state.js:.6f}",
            f"{state.value_of_optimal_d:.6f}",
            "none" if state.value is None else f"{state.value:.6f}",
        ]
        for state in states
    ]
    print_table(["step", "JS", "V(D*, G)", "V(D, G)"], rows)
