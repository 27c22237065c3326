"""Compare every diffusion objective with the optimal denoiser of known distributions.

    python scripts/check_diffusion.py [--objectives ε v …] [--distributions ring …] [--runs FOLDER]

For each trained model it measures three things: the loss divided by the loss of the optimal
denoiser on the same draws; the samples of DDIM and of Heun's method under the true density; and the
exact log-density minus the model's, by its variational bound and by its ODE. The ring takes about
seven minutes per objective. Results replace those of the same distribution and objective in
docs/diffusion.json, and docs/diffusion.md shows the whole file. With --runs, runs are kept in that
folder, and runs that are there already are measured without training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.builders.entrypoints import load_run
from genlab.data.toy_distributions import GaussianMixture
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.edm import EDM
from genlab.nn.broadcast import expand_like
from genlab.runs.run_folder import RunFolder
from genlab.spec import Batch

OUT = Path(__file__).resolve().parent.parent / "docs" / "diffusion.json"
OBJECTIVES = {
    "ε": ["model=ddpm_points"],
    "x₀": ["model=ddpm_points", "model.objective=x0"],
    "x₀, min-SNR": ["model=ddpm_points", "model.objective=x0", "model.min_snr_gamma=5"],
    "v": ["model=ddpm_points", "model.objective=v"],
    "v, min-SNR": ["model=ddpm_points", "model.objective=v", "model.min_snr_gamma=5"],
    "v, zero terminal SNR": [
        "model=ddpm_points",
        "model.objective=v",
        "model.zero_terminal_snr=true",
    ],
    "ε, learned variance": ["model=ddpm_points", "model.variance=learned"],
    "EDM": ["model=edm_points"],
    "flow matching": ["model=flow_points"],
}
STEPS = {"ring": 10_000, "gaussian": 3_000}
GAUSSIAN = [
    "dataset=points",
    "dataset.name=grid",
    "dataset.grid_size=1",
    "dataset.n=1000000",
    "trainer.batch_size=1024",
]
DISTRIBUTIONS = {"ring": ["dataset=ring"]} | {
    f"N(0, {s}²)": [*GAUSSIAN, f"dataset.std={s}"] for s in (1, 0.5, 0.25)
}
SAMPLERS = {
    "DDIM, 100 steps": {"sampler": "ddim", "steps": 100},
    "DDIM, 100 steps at quadratic times": {
        "sampler": "ddim",
        "steps": 100,
        "timestep_spacing": "quadratic",
    },
    "Heun, 18 steps": {"sampler": "heun", "steps": 18},
}
NUM_SAMPLES = 10_000
NUM_DENSITY_POINTS = 2_500  # points whose log-density is compared
NUM_LOSS_BATCHES = 50  # of NUM_SAMPLES points each

Row = dict[str, Any]  # one trained model: distribution, objective, command, seconds, results


class OptimalNetwork(nn.Module):
    """The network whose denoiser is optimal for a mixture of isotropic Gaussians.

    It has the interface of the network of `model`, and replaces it.
    """

    def __init__(self, model: Diffusion, centers: Tensor, std: float) -> None:
        super().__init__()
        self.trained = model.network  # the model takes its precision from these parameters
        self.model = [model]  # in a list, so that it is not a submodule
        self.centers, self.std = centers.double(), std

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x] (B, 2) of x = α x_0 + σ ε (B, 2), with α and σ (B, 1)."""
        var = (alpha * self.std) ** 2 + sigma**2
        difference = x[:, None] - alpha[:, None] * self.centers  # (B, M, 2)
        posterior = (-difference.square().sum(2) / (2 * var)).softmax(1)  # p(mode | x), (B, M)
        gain = alpha[:, None] * self.std**2 / var[:, None]
        return (posterior[..., None] * (self.centers + gain * difference)).sum(1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        (model,) = self.model
        if isinstance(model, DDPM):
            schedule = model.schedule
            x0 = self.denoise(
                x,
                schedule.table_values_at("sqrt_ab", t, x),
                schedule.table_values_at("sqrt_1_ab", t, x),
            )
            target = schedule.training_target(
                model.objective, x0, schedule.eps_from_x0(x0, x, t), t
            )
            if model.variance == "learned":
                return torch.cat([target, torch.zeros_like(x)], 1)
            return target
        if isinstance(model, EDM):
            sigma = (4 * t / model.c_noise_scale).exp()
            c_skip, c_out, c_in, _ = model.preconditioning_coefficients(sigma, x)
            x = x / c_in
            x0 = self.denoise(x, torch.ones_like(c_in), expand_like(sigma, x))
            return (x0 - c_skip * x) / c_out
        sigma = expand_like(t / 1000, x)
        return (x - self.denoise(x, 1 - sigma, sigma)) / sigma


@contextmanager
def use_network_temporarily(model: Diffusion, network: nn.Module) -> Iterator[None]:
    """Use another network in a model for a while."""
    own, model.network = model.network, network
    try:
        yield
    finally:
        model.network = own


@torch.no_grad()
def total_loss_over_batches(model: Diffusion, distribution: GaussianMixture) -> float:
    """Return the loss of a model, summed over batches that are the same for every network."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(4)  # not 1: with the same seed the noise would equal the points
    losses = [
        model.loss(Batch(distribution.sample(NUM_SAMPLES, generator)[0]))
        for _ in range(NUM_LOSS_BATCHES)
    ]
    return sum(loss.get("simple", loss["loss"]).item() for loss in losses)


@torch.no_grad()
def measure_samples(model: Diffusion, distribution: GaussianMixture) -> dict[str, float]:
    """Return how far samples are from the entropy in nats, and how many modes they cover."""
    found: dict[str, float] = {}
    torch.manual_seed(2)
    for name, options in SAMPLERS.items():
        if "timestep_spacing" in options and isinstance(model, EDM):
            continue  # its noise levels are not evenly spaced timesteps
        x = model.sample(NUM_SAMPLES, **options)
        nats, found[f"{name} error"] = mean_and_error(-distribution.log_prob(x))
        found[f"{name} nats"] = nats - distribution.entropy
        nearest = torch.cdist(x, distribution.centers.double()).argmin(1)
        found[f"{name} modes"] = len(nearest.unique())
    return found


@torch.no_grad()
def measure_model(model: Diffusion, distribution: GaussianMixture) -> dict[str, float]:
    """Return the results of a trained model: relative loss, samples, and errors of densities."""
    model.double().eval()
    optimal = OptimalNetwork(model, distribution.centers, distribution.std)
    loss = total_loss_over_batches(model, distribution)
    found = measure_samples(model, distribution)
    with use_network_temporarily(model, optimal):
        found = {"loss": loss / total_loss_over_batches(model, distribution)} | found
        best = measure_samples(model, distribution)
    found |= {f"best {name}": value for name, value in best.items()}
    return found | measure_density_errors(model, distribution)


@torch.no_grad()
def measure_density_errors(model: Diffusion, distribution: GaussianMixture) -> dict[str, float]:
    """Return the exact log-density minus the bound and minus that of the ODE, with errors.

    The differences are taken point by point, so that the choice of the points matters little.
    """
    x = distribution.sample(NUM_DENSITY_POINTS, torch.Generator().manual_seed(3))[0]
    torch.manual_seed(5)  # not 3: with the same seed the noise would equal the points
    bound = torch.cat([model.elbo(part, num_terms=100) for part in x.split(500)])
    found: dict[str, float] = {}
    for name, log_p in (
        ("bound", bound),
        ("ode", model.ode_log_prob(x, steps=200, num_probes=2)),
    ):
        found[name], found[f"{name} error"] = mean_and_error(distribution.log_prob(x) - log_p)
    return found


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values (N,) and its standard error."""
    values = values.double()
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def train_or_resume_run(command: list[str], folder: Path) -> RunFolder:
    """Train a run in a folder, or resume the one that is there."""
    words = [f"resume={folder}"] if folder.exists() else [*command, f"out={folder}"]
    genlab = [sys.executable, "-m", "genlab", "train"]
    subprocess.run([*genlab, *words], check=True, stdout=subprocess.DEVNULL)
    return RunFolder(folder)


INTRODUCTION = f"""\
# Diffusion objectives compared with the optimal denoiser

Written by `python scripts/check_diffusion.py` from diffusion.json; no number is typed by hand.

Each objective is trained by its recipe on a distribution whose optimal denoiser is known. The loss
is divided by the loss of the optimal denoiser on the same draws. Samples ({NUM_SAMPLES:,}) are
measured by the true density: the mean −log p minus the entropy, beside the value that the optimal
denoiser reaches in the same number of steps, whose error is only that of the steps. The model's
density of {NUM_DENSITY_POINTS:,} true points is compared with the exact one, by the variational
bound and by the probability-flow ODE. ± is the standard error: of the differences of the points,
and of the −log p of the samples where it was recorded. An error in brackets is that of the optimal
denoiser on as many points, for a model that was measured before errors were recorded.
"""


def format_markdown_page(rows: list[Row]) -> str:
    """Return docs/diffusion.md."""
    head = ["distribution", "objective", "trained by", "seconds", "loss / optimal loss"]
    for name in SAMPLERS:
        head += [f"{name}: modes", "nats above the entropy", "with the optimal denoiser"]
    head += ["exact − bound, nats", "exact − ODE, nats"]
    table = [head, ["---"] * len(head), *map(format_row, rows)]
    return "\n".join([INTRODUCTION, *(f"| {' | '.join(cells)} |" for cells in table)]) + "\n"


def format_row(row: Row) -> list[str]:
    """Return the cells of a row of docs/diffusion.md."""
    found = row["results"]
    cells = [
        row["distribution"],
        row["objective"],
        f"`genlab train {' '.join(row['command'])}`",
        f"{row['seconds']:.0f}",
        f"{found['loss']:.4f}",
    ]
    for name in SAMPLERS:
        if f"{name} nats" in found:
            cells += [
                f"{found[f'{name} modes']} of {row['modes']}",
                format_difference(found, f"{name} nats", f"{name} error"),
                format_difference(found, f"best {name} nats", f"best {name} error"),
            ]
        else:
            cells += ["—"] * 3
    return [*cells, *(format_difference(found, name, f"{name} error") for name in ("bound", "ode"))]


def format_difference(found: dict[str, float], name: str, error: str) -> str:
    """Return a difference in nats with its standard error, in brackets if the optimal one's."""
    if error in found:
        return f"{found[name]:+.4f} ± {found[error]:.4f}"
    if (optimal := found.get(f"optimal {error}")) is not None:
        return f"{found[name]:+.4f} (± {optimal:.4f})"
    return f"{found[name]:+.4f}"


def check_objective(distribution: str, objective: str, scale: float, runs: Path) -> Row:
    """Train one objective on one distribution and measure it."""
    steps = math.ceil(scale * STEPS["ring" if distribution == "ring" else "gaussian"])
    command = [*OBJECTIVES[objective], *DISTRIBUTIONS[distribution], f"trainer.steps={steps}"]
    if objective == "EDM" and distribution != "ring":
        command.append("model.sigma_data=${dataset.std}")
    folder = runs / "-".join(re.findall(r"\w+", " ".join(command)))
    machine_options = ["device=cpu", "device.threads=1", "trainer.preview_every=0"]
    seconds = train_or_resume_run([*command, *machine_options], folder).read_log()[-1]["seconds"]
    run = load_run({"run": str(folder)})
    return {
        "distribution": distribution,
        "objective": objective,
        "command": command,
        "seconds": seconds,
        "modes": len(run.dataset.distribution.centers),
        "results": measure_model(run.model, run.dataset.distribution),
    }


def row_sort_key(row: Row) -> tuple[int, int]:
    """Return the sort key of a row: the order of DISTRIBUTIONS and OBJECTIVES."""
    distributions, objectives = list(DISTRIBUTIONS), list(OBJECTIVES)
    return distributions.index(row["distribution"]), objectives.index(row["objective"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument(
        "--distributions", nargs="+", default=list(DISTRIBUTIONS), choices=DISTRIBUTIONS
    )
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the training steps")
    parser.add_argument("--runs", type=Path, help="folder of the runs; existing ones are reused")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        for pair in itertools.product(arguments.distributions, arguments.objectives):
            new = check_objective(*pair, arguments.scale, runs)
            rows = [row for row in rows if (row["distribution"], row["objective"]) != pair]
            rows = sorted([*rows, new], key=row_sort_key)
            print(*pair, json.dumps(new["results"], ensure_ascii=False), flush=True)
            arguments.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
            arguments.out.with_suffix(".md").write_text(format_markdown_page(rows))


if __name__ == "__main__":
    main()
