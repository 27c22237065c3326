"""The state of a GAN of points at its kept checkpoints: G's distribution, D, and D*."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from genlab.abilities import abilities
from genlab.batching import map_batched
from genlab.inference.density_grids import Grid
from genlab.inference.divergences import (
    cell_probabilities_on_curve,
    game_value,
    js_divergence,
    optimal_discriminator,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.safe_load import explain_checkpoint_mismatch
from genlab.untrusted.states import check_weights

LINE_CELLS, PLANE_CELLS = 16_384, 128  # along each axis
SAMPLE_CELLS = 1024  # on the line, where G's distribution is known by samples only
SUBCELLS = 4  # along each axis of a cell of the plane, in which the data's density is computed
CURVE_NODES = 2**16  # codes of a one-dimensional prior
NODES_PER_CELL = 8  # of them in a cell, where G(z) is dense
MAX_SIGMAS = 7.0  # the codes reach from Φ(−7) to Φ(7)
NUM_SAMPLES = 2**18  # of a prior with more dimensions, from a Sobol sequence
BATCH_SIZE = 2**14


@dataclass(frozen=True)
class AdversarialState:
    """A GAN at a step, on the cells of a grid.

    Attributes:
        p, q: probabilities (cells,) of the data and of G's samples, flat over the grid.
        d: D(x) (cells,), a probability or the score of a critic.
        d_optimal: D* (cells,); NaN where p and q are 0.
        js: JS(p, q) in nats.
        value: V(D, G) in nats; None for a critic.
        codes, images: codes z (K,) of a one-dimensional prior at equal quantiles, and G(z) (K,).
        samples: some of G's samples (K, D).
    """

    step: int
    p: Tensor
    q: Tensor
    d: Tensor
    d_optimal: Tensor
    js: float
    value: float | None
    codes: Tensor | None
    images: Tensor | None
    samples: Tensor

    @property
    def value_of_optimal_d(self) -> float:
        """V(D*, G) = 2 JS(p, q) − log 4 in nats."""
        return 2 * self.js - math.log(4)


def models_at_checkpoints(run: LoadedRun) -> Iterator[tuple[int, Any]]:
    """Yield the step and the model of each kept checkpoint, oldest first.

    The weights are those that are trained, without averaging. The model is the same object.
    """
    model = deepcopy(run.model)
    for path in run.folder.checkpoint_files():
        state = run.folder.load_checkpoint(path)
        with explain_checkpoint_mismatch(str(run.folder.path / "config.yaml")):
            check_weights(state["model"], model.state_dict(), "model")
            model.load_state_dict(state["model"])
        yield state["step"], model.eval()


def is_exact(run: LoadedRun) -> bool:
    """Whether the distribution of G's samples is computed and not estimated from samples.

    It is for data with a known density on the line and a one-dimensional code.
    """
    if run.spec.dim > 1 or not {"prior_quantiles", "prior", "decode"} <= abilities(run.model):
        return False
    is_known = run.dataset.log_prob(torch.zeros(1, 1, dtype=torch.float64)) is not None
    return is_known and run.model.prior(1).shape[1:] == (1,)


def game_grid(run: LoadedRun) -> Grid:
    """Return the cells over which the game is computed: the data and a wide margin."""
    x = run.dataset.splits["test"].x.flatten(1).double()
    cells = line_cells(run, PLANE_CELLS if run.spec.dim == 2 else LINE_CELLS)
    # the tails are inside
    return Grid.around(x, cells, margin=1.0 if run.spec.dim == 1 else 0.25)


def line_cells(run: LoadedRun, cells: int) -> int:
    """Return the number of cells, fewer on the line if samples are counted in them."""
    return cells if run.spec.dim == 2 or is_exact(run) else SAMPLE_CELLS


def data_probabilities(run: LoadedRun, grid: Grid) -> Tensor:
    """Return the probability (cells,) of the data in each cell of a grid.

    Without a known density it is the frequency among the training items.
    """
    fine = Grid(
        tuple(refine(edges, SUBCELLS if len(grid.edges) == 2 else 1) for edges in grid.edges)
    )
    log_p = run.dataset.log_prob(fine.points())
    if log_p is None:
        x = run.dataset.splits["train"].x.flatten(1)
        return cell_frequencies(x, grid)
    p = log_p.exp().view(fine.shape) * fine.cell_volume
    if len(grid.edges) == 2:
        a, b = grid.shape
        p = p.view(a, SUBCELLS, b, SUBCELLS).sum((1, 3))
    return p.flatten()


def refine(edges: Tensor, times: int) -> Tensor:
    """Return the edges of cells that are each divided into `times` cells."""
    return torch.linspace(
        edges[0].item(), edges[-1].item(), (len(edges) - 1) * times + 1, dtype=edges.dtype
    )


def cell_frequencies(x: Tensor, grid: Grid) -> Tensor:
    """Return the share (cells,) of points x (N, D) in each cell; those outside are left out."""
    counts, _ = torch.histogramdd(x.double().cpu(), list(grid.edges))
    return counts.flatten() / len(x)


@torch.no_grad()
def measure_state(
    run: LoadedRun, model: Any, step: int, grid: Grid, p: Tensor, *, seed: int, shown: int = 1000
) -> AdversarialState:
    """Return the state of a GAN at a step.

    Args:
        p: the probability (cells,) of the data in each cell.
        seed: of G's samples, where its distribution is estimated from them.
        shown: how many samples the state has.
    """
    like = next(model.parameters())

    def evaluate(function: Any, x: Tensor) -> Tensor:
        return map_batched(
            lambda part: function(part.to(like)).double().cpu(), x, batch_size=BATCH_SIZE
        )

    def decode(z: Tensor) -> Tensor:
        return model.decode(z).flatten(1)

    def log_odds(x: Tensor) -> Tensor:
        return evaluate(model.discriminate, x.view(-1, *run.spec.shape))

    codes = images = None
    torch.manual_seed(seed)
    logits = log_odds(grid.points())
    if is_exact(run):
        t = torch.linspace(-MAX_SIGMAS, MAX_SIGMAS, CURVE_NODES, dtype=torch.float64)
        u = torch.special.ndtr(t)
        x = evaluate(decode, model.prior_quantiles(u[:, None]))[:, 0]
        q = cell_probabilities_on_curve(x, u.diff(), grid.edges[0])
        # more cells where G(z) is dense, and out to its ends
        edges = torch.cat([grid.edges[0], x[::NODES_PER_CELL], x[-1:]]).unique()
        centers = (edges[1:] + edges[:-1])[:, None] / 2
        in_cells = run.dataset.log_prob(centers).exp() * edges.diff()
        of_samples = cell_probabilities_on_curve(x, u.diff(), edges)
        js = js_divergence(in_cells, of_samples)
        value = game_value(log_odds(centers), in_cells, of_samples)
        levels = (torch.arange(shown, dtype=torch.float64) + 0.5) / shown
        codes = model.prior_quantiles(levels[:, None])
        samples = evaluate(decode, codes)
        codes, images = codes[:, 0], samples[:, 0]
    else:
        x = draw_samples(run, model, evaluate, decode, seed)
        q = cell_frequencies(x, grid)
        samples = x[:shown]
        # what is outside of the grid is one more cell
        outside = x[~is_inside(x, grid)]
        share = len(outside) / len(x)
        js = js_divergence(torch.cat([p, p.new_zeros(1)]), torch.cat([q, q.new_full((1,), share)]))
        value = game_value(logits, p, q)
        if len(outside):
            value += share * logsigmoid(-log_odds(outside)).mean().item()
    is_probability = model.discriminates_by_probability
    return AdversarialState(
        step,
        p,
        q,
        logits.sigmoid() if is_probability else logits,
        optimal_discriminator(p, q),
        js,
        value if is_probability else None,
        codes,
        images,
        samples,
    )


def is_inside(x: Tensor, grid: Grid) -> Tensor:
    """Return whether each point of x (N, D) is inside a grid, bool (N,)."""
    return torch.stack(
        [(part >= e[0]) & (part <= e[-1]) for part, e in zip(x.T, grid.edges, strict=True)]
    ).all(0)


def draw_samples(run: LoadedRun, model: Any, evaluate: Any, decode: Any, seed: int) -> Tensor:
    """Return samples (N, D), float64; of a Sobol sequence if the prior has quantiles."""
    if not {"prior_quantiles", "prior", "decode"} <= abilities(model):
        return model.sample(NUM_SAMPLES).flatten(1).double().cpu()
    sobol = torch.quasirandom.SobolEngine(model.prior(1).shape[1], scramble=True, seed=seed)
    u = sobol.draw(NUM_SAMPLES, dtype=torch.float64)
    tiny = torch.finfo(torch.float32).eps
    return evaluate(decode, model.prior_quantiles(u.clamp(tiny, 1 - tiny)))
