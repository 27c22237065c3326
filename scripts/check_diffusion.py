"""Train every objective of diffusion on laws whose best denoiser is known, and write what each reaches beside what is best.

    python scripts/check_diffusion.py [--objectives ε v …] [--laws ring …] [--scale 1] [--runs FOLDER]

For each: its loss over that of the best denoiser on the same draws, the samples of DDIM and of Heun's method under the true
density, and the exact density less the model's, by its bound and by its ODE. Seven minutes a row of the ring. What is
measured replaces what docs/diffusion.json had of the same law and objective, and the page beside it, diffusion.md, shows the
whole file. With --runs the trained runs stay in that folder, and one that is there is measured again and not trained.
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
from pathlib import Path

import torch
from torch import Tensor, nn

from genlab.builders.entrypoints import load_run
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.ddpm import DDPM
from genlab.models.diffusion.edm import EDM, wide
from genlab.runs.run_folder import RunFolder
from genlab.spec import Batch

OUT = Path(__file__).resolve().parent.parent / "docs" / "diffusion.json"
OBJECTIVES = {
    "ε": ["model=ddpm_points"],
    "x₀": ["model=ddpm_points", "model.objective=x0"],
    "x₀, min-SNR": ["model=ddpm_points", "model.objective=x0", "model.min_snr=5"],
    "v": ["model=ddpm_points", "model.objective=v"],
    "v, min-SNR": ["model=ddpm_points", "model.objective=v", "model.min_snr=5"],
    "v, zero terminal SNR": ["model=ddpm_points", "model.objective=v", "model.zero_snr=true"],
    "ε, learned variance": ["model=ddpm_points", "model.variance=learned"],
    "EDM": ["model=edm_points"],
    "flow matching": ["model=flow_points"],
}
STEPS = {"ring": 10_000, "gaussian": 3_000}
GAUSSIAN = [
    "dataset=points",
    "dataset.name=grid",
    "dataset.side=1",
    "dataset.n=1000000",
    "trainer.batch_size=1024",
]
LAWS = {"ring": ["dataset=ring"]} | {
    f"N(0, {s}²)": [*GAUSSIAN, f"dataset.std={s}"] for s in (1, 0.5, 0.25)
}
SAMPLERS = {
    "DDIM, 100 steps": {"sampler": "ddim", "steps": 100},
    "DDIM, 100 steps at quadratic times": {"sampler": "ddim", "steps": 100, "spacing": "quadratic"},
    "Heun, 18 steps": {"sampler": "heun", "steps": 18},
}
ROWS = 10_000  # samples
POINTS = 2_500  # whose density is asked for
DRAWS = 50  # of ROWS points each, on which losses are compared


class Best(nn.Module):
    """The network that a model would have if its denoiser were the best one of a mixture of round Gaussians."""

    def __init__(self, model: Diffusion, centers: Tensor, std: float) -> None:
        super().__init__()
        self.trained = model.network  # whose parameters tell the model its precision
        self.model, self.centers, self.std = (
            [model],
            centers.double(),
            std,
        )  # in a list, which makes it no part of this one

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x] (B, 2) of x = α x_0 + σ ε (B, 2), with α and σ (B, 1)."""
        var = (alpha * self.std) ** 2 + sigma**2
        apart = x[:, None] - alpha[:, None] * self.centers  # (B, M, 2)
        share = (-apart.square().sum(2) / (2 * var)).softmax(1)  # of each mode
        return (
            share[..., None] * (self.centers + alpha[:, None] * self.std**2 / var[:, None] * apart)
        ).sum(1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        (model,) = self.model
        if isinstance(model, DDPM):
            schedule = model.schedule
            x0 = self.denoised(x, schedule.at("sqrt_ab", t, x), schedule.at("sqrt_1_ab", t, x))
            best = schedule.target(model.objective, x0, schedule.to_eps(x0, x, t), t)
            return (
                torch.cat([best, torch.zeros_like(x)], 1) if model.variance == "learned" else best
            )
        if isinstance(model, EDM):
            sigma = (4 * t / 1000).exp()
            c_skip, c_out, c_in, _ = model.preconditioning(sigma, x)
            x = x / c_in
            return (self.denoised(x, torch.ones_like(c_in), wide(sigma, x)) - c_skip * x) / c_out
        at = wide(t / 1000, x)
        return (x - self.denoised(x, 1 - at, at)) / at


@torch.no_grad()
def excess(model: Diffusion, law) -> float:
    """Return a model's loss over the least one, on the same draws."""
    total = {}
    for kind, network in (("own", model.network), ("best", Best(model, law.centers, law.std))):
        own, model.network = model.network, network
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(4)  # another: by the same seed the noise would be the items' own
        losses = [model.loss(Batch(law.sample(ROWS, generator)[0])) for _ in range(DRAWS)]
        total[kind] = sum(found.get("simple", found["loss"]).item() for found in losses)
        model.network = own
    return total["own"] / total["best"]


@torch.no_grad()
def drawn(model: Diffusion, law) -> dict[str, float]:
    """Return how many nats a model's samples lie over the law's entropy, and on how many modes they are."""
    found = {}
    torch.manual_seed(2)
    for name, how in SAMPLERS.items():
        if "spacing" in how and isinstance(model, EDM):
            continue  # its levels are no even times
        x = model.sample(ROWS, **how)
        found[f"{name} nats"] = -law.log_prob(x).mean().item() - law.entropy
        nearest = torch.cdist(x, law.centers.double()).argmin(1)
        found[f"{name} modes"] = len(nearest.unique())
    return found


@torch.no_grad()
def measured(model: Diffusion, law) -> dict[str, float]:
    """Return what the page says of a trained model: the loss, and in nats how far samples and densities are off."""
    model.double().eval()
    found = {"loss": excess(model, law)}
    own = model.network
    found |= drawn(model, law)
    model.network = Best(model, law.centers, law.std)
    found |= {f"best {name}": value for name, value in drawn(model, law).items()}
    model.network = own
    x = law.sample(POINTS, torch.Generator().manual_seed(3))[0]
    exact = law.log_prob(x).mean().item()
    found["bound"] = (
        exact - torch.cat([model.elbo(part, terms=100) for part in x.split(500)]).mean().item()
    )
    found["ode"] = exact - model.ode_log_prob(x, steps=200, probes=2).mean().item()
    return found


def trained(command: list[str], folder: Path) -> RunFolder:
    """Return the run that a command of genlab's trains in a folder, or the rest of one that it began there before."""
    how = [f"resume={folder}"] if folder.exists() else [*command, f"out={folder}"]
    subprocess.run(
        [sys.executable, "-m", "genlab", "train", *how], check=True, stdout=subprocess.DEVNULL
    )
    return RunFolder(folder)


def page(rows: list[dict]) -> str:
    """Return the page of what was found."""
    heads = ["law", "objective", "trained by", "seconds", "loss / least"]
    for name in SAMPLERS:
        heads += [f"{name}: modes", "nats over the entropy", "by the best denoiser"]
    heads += ["exact − bound, nats", "exact − ODE, nats"]
    lines = [
        "# Objectives of diffusion against the best denoiser",
        "",
        "Written by `python scripts/check_diffusion.py` from diffusion.json: no number here is typed by hand. Each objective is "
        "trained by its recipe on a law whose best denoiser is known; its loss is divided by the best denoiser's on the same "
        f"draws. Samples are judged by the true density ({ROWS:,} of them; their mean −log p less the entropy), beside what "
        "the best denoiser gives by the same steps, which is off by the steps alone. The model's density of "
        f"{POINTS:,} true points is compared with theirs, by the variational bound and by the probability-flow ODE.",
        "",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join("---" for _ in heads) + " |",
    ]
    for row in rows:
        f = row["found"]
        cells = [row["law"], row["objective"], f"`genlab train {' '.join(row['command'])}`", f"{row['seconds']:.0f}",
                 f"{f['loss']:.4f}"]  # fmt: skip
        for name in SAMPLERS:
            if f"{name} nats" in f:
                modes = f"{f[f'{name} modes']} of {row['modes']}"
                cells += [modes, f"{f[f'{name} nats']:+.4f}", f"{f[f'best {name} nats']:+.4f}"]
            else:
                cells += ["—"] * 3
        cells += [f"{f['bound']:+.4f}", f"{f['ode']:+.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=LAWS)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps")
    parser.add_argument(
        "--runs", type=Path, help="folder in which the runs stay; those there are not trained again"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    with tempfile.TemporaryDirectory() as here:
        for law, objective in itertools.product(args.laws, args.objectives):
            steps = math.ceil(args.scale * STEPS["ring" if law == "ring" else "gaussian"])
            command = [*OBJECTIVES[objective], *LAWS[law], f"trainer.steps={steps}"]
            fixed = ["device=cpu", "device.threads=1", "trainer.preview_every=0"]
            if objective == "EDM" and law != "ring":
                command.append("model.sigma_data=${dataset.std}")
            folder = (args.runs or Path(here)) / "-".join(re.findall(r"\w+", " ".join(command)))
            seconds = trained([*command, *fixed], folder).history()[-1]["seconds"]
            run = load_run({"run": str(folder)})
            found = measured(run.model, run.dataset.law)
            rows = [row for row in rows if (row["law"], row["objective"]) != (law, objective)]
            rows.append({"law": law, "objective": objective, "command": command, "seconds": seconds,
                         "modes": len(run.dataset.law.centers), "found": found})  # fmt: skip
            rows.sort(
                key=lambda row: (
                    list(LAWS).index(row["law"]),
                    list(OBJECTIVES).index(row["objective"]),
                )
            )
            print(
                law,
                objective,
                json.dumps({k: round(v, 4) for k, v in found.items()}, ensure_ascii=False),
                flush=True,
            )
            args.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
            args.out.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()
