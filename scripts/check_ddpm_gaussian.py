"""Train DDPM on N(0, s² I), where the least loss and each sampler's variance are known, and print what it reaches.

python scripts/check_ddpm_gaussian.py [--steps 2000] [--variances 1 0.25 0.0625] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch

from genlab.models.diffusion.ddpm import DDPM
from genlab.spec import Batch, Spec
from genlab.training.trainer import Options, Trainer

DIM = 2
ROWS = 20_000  # points behind each measured variance, whose relative standard error is then √(2/40,000) = 0.7%


class Gaussian:
    """An endless stream of batches of N(0, s² I)."""

    def __init__(self, s: float, batch: int) -> None:
        self.s, self.batch = s, batch

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        return Batch(torch.randn(self.batch, DIM) * self.s)


def train(s2: float, steps: int, batch: int, lr: float, ema: float) -> DDPM:
    torch.manual_seed(0)
    model = DDPM(Spec((DIM,), kind="points", levels=0))
    options = Options(steps=steps, batch_size=batch, ema=ema, warmup=100, schedule="cosine")
    trainer = Trainer(model, partial(torch.optim.Adam, lr=lr, fused=True), options)
    data = Gaussian(s2**0.5, batch)
    while trainer.at < steps:
        trainer.set_rates()
        trainer.draws = 0
        trainer.step(data)
        trainer.ema.update(trainer.model, trainer.at)
        trainer.at += 1
    return trainer.ema.model


@torch.no_grad()
def losses(model: DDPM, s2: float, draws: int = 2_000) -> tuple[float, float]:
    """Return the ε-loss over `draws` points at each of the T times, and its floor."""
    schedule, total = model.schedule, 0.0
    for t in torch.arange(schedule.T).split(50):
        t = t.repeat_interleave(draws)
        x0, eps = torch.randn(len(t), DIM) * s2**0.5, torch.randn(len(t), DIM)
        xt = schedule.q_sample(x0, t, eps)
        ab = schedule.at("alphas_bar", t, xt)
        best = (1 - ab).sqrt() / (ab * s2 + 1 - ab) * xt
        # E|ε − ε_θ|² = floor + E|ε* − ε_θ|², and the excess has far less noise than the loss itself.
        total += (best - model.network(xt, t)).square().mean(1).sum().item()
    ab = schedule.exact["alphas_bar"]
    floor = (ab * s2 / (ab * s2 + 1 - ab)).mean().item()
    return floor + total / (draws * schedule.T), floor


TABLE = {
    1.0: (0.9911, 0.9999, 0.6917, 0.9294, 0.9640, 0.9963),
    0.25: (0.9845, 1.0030, 0.5599, 0.8928, 0.9447, 0.9940),
    0.0625: (0.9705, 1.0075, 0.3429, 0.8140, 0.9016, 0.9883),
}
SAMPLERS = [("ancestral", {"variance": "beta_tilde"}), ("ancestral", {"variance": "beta"})]
SAMPLERS += [("ddim", {"steps": S}) for S in (10, 50, 100, 1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--variances", type=float, nargs="+", default=list(TABLE))
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for s2 in args.variances:
        begun = time.perf_counter()
        model = train(s2, args.steps, args.batch, args.lr, args.ema)
        seconds = time.perf_counter() - begun
        loss, floor = losses(model, s2)
        ratio = loss / floor
        print(f"s² = {s2}: ε-loss {loss:.5f}, floor {floor:.5f}, ratio {ratio:.4f}  ({seconds:.0f} s)", flush=True)
        for (name, options), exact in zip(SAMPLERS, TABLE[s2], strict=True):
            x = model.sample(args.rows, sampler=name, **options)
            found = (x**2).mean().item() / s2
            label = " ".join([name, *map(str, options.values())])
            off = found / exact - 1
            print(f"    {label:22} variance/s² {found:.4f}, exact {exact:.4f}, off by {off:+.2%}", flush=True)


if __name__ == "__main__":
    main()
