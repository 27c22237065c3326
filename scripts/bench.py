"""Measure genlab's loop against the same loop by hand, in one run, a few steps of each in turn: seconds, ratios, JSON.

    GENLAB_DATA=<folder with MNIST> python scripts/bench.py [names] [--out docs/benchmarks/cpu.json]

Each case is a pair: what genlab does with logging, checkpoints and previews as they are by default, and a bare loop over the same
network, batch, optimizer and data on the device (for the RBM: scikit-learn's BernoulliRBM).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from recipes import built

from genlab.training.run import RunFolder

Pair = dict[str, float | list[float]]


class Alternating:
    """A dataset that, each time the loop has taken `block` batches from it, lets the loop by hand take as many steps.

    So both live through the same seconds of a noisy machine, and genlab's share holds all that its loop does between two
    batches: logging, previews, checkpoints.
    """

    def __init__(self, dataset, by_hand: Callable[[int], None], block: int) -> None:
        self.dataset, self.by_hand, self.block = dataset, by_hand, block
        self.ours: list[float] = []
        self.other: list[float] = []

    def batches(self, *split, **how):
        began = time.perf_counter()
        for i, batch in enumerate(self.dataset.batches(*split, **how), 1):
            yield batch
            if i % self.block == 0:
                middle = time.perf_counter()
                self.by_hand(self.block)
                end = time.perf_counter()
                self.ours.append(middle - began)
                self.other.append(end - middle)
                began = time.perf_counter()


def alternate(ours: tuple[str, ...], by_hand: Callable[[int], None], *, steps: int, block: int) -> Pair:
    """Train by `Trainer.fit` with a real run folder, the loop by hand taking turns; return totals and their ratio."""
    from genlab.tasks.train import preview

    _, dataset, trainer = built(*ours, f"trainer.steps={steps}", "device=cpu", "out=unused")
    folder = RunFolder.create(Path(tempfile.mkdtemp()) / "run", config="", info={})
    data = Alternating(dataset, by_hand, block)
    trainer.fit(data, folder, preview=lambda model: preview(dataset, folder, trainer, model))
    mine, theirs = data.ours[1:], data.other[1:]  # the first of each warms up
    return {
        "genlab_s": sum(mine),
        "other_s": sum(theirs),
        "ratio": sum(mine) / sum(theirs),
        "median_ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        "steps": steps,
        "block": block,
    }


class HandVAE(nn.Module):
    """The usual VAE example: 784–400–20."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mu, self.logvar = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.fc1(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        logits = self.fc4(F.relu(self.fc3(z)))
        bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())) / len(x)


def vae() -> Pair:
    ours = (
        "model=vae", "dataset=mnist", "dataset.validation=0", "model.hidden=[400]", "model.activation=relu",
        "trainer.batch_size=128",
    )  # fmt: skip
    data = mnist_bytes()
    model = HandVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    order = torch.randperm(len(data))

    def by_hand(steps: int) -> None:
        for i in range(steps):
            x = data[order[i * 128 : (i + 1) * 128]].float().div_(255)
            x = (torch.rand_like(x) < x).float()
            optimizer.zero_grad()
            model.loss(x).backward()
            optimizer.step()

    return alternate(ours, by_hand, steps=5 * 469, block=67)  # five epochs of 60,000 in batches of 128


def dcgan() -> Pair:
    options = ("model=dcgan", "model.width=32", "dataset.size=32", "trainer.batch_size=64", "trainer.ema=0.999")
    _, dataset, trainer = built(*options, "device=cpu", "out=unused")
    model = trainer.model
    g_opt = torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
    d_opt = torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
    data = dataset.arrays("train")[0]
    one = torch.ones(64)
    mean = [p.detach().clone() for p in model.parameters()]

    def by_hand(steps: int) -> None:
        for _ in range(steps):
            x = data[torch.randint(len(data), (64,))].float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
            d_opt.zero_grad()
            F.binary_cross_entropy_with_logits(model.discriminator(x).flatten(), one).backward()
            with torch.no_grad():
                fake = model.generator(model.prior(64))
            F.binary_cross_entropy_with_logits(model.discriminator(fake).flatten(), 0 * one).backward()
            d_opt.step()
            g_opt.zero_grad()
            score = model.discriminator(model.generator(model.prior(64))).flatten()
            F.binary_cross_entropy_with_logits(score, one).backward(inputs=list(model.generator.parameters()))
            g_opt.step()
            torch._foreach_lerp_(mean, [p.detach() for p in model.parameters()], 0.001)

    return alternate(options, by_hand, steps=300, block=5)


def unet() -> Pair:
    options = ("model=ddpm_small", "dataset=digits", "dataset.size=28", "trainer.preview_every=0")
    _, dataset, trainer = built(*options, "device=cpu", "out=unused")
    model, unet = trainer.model, trainer.model.network
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    bar = model.schedule.alphas_bar.float()
    mean = [p.detach().clone() for p in model.parameters()]
    data = dataset.arrays("train")[0]

    def by_hand(steps: int) -> None:
        for _ in range(steps):
            x = data[torch.randint(len(data), (64,))].float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
            t, eps = torch.randint(1000, (64,)), torch.randn_like(x)
            a = bar[t].view(-1, 1, 1, 1)
            optimizer.zero_grad()
            F.mse_loss(unet(a.sqrt() * x + (1 - a).sqrt() * eps, t), eps).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            torch._foreach_lerp_(mean, [p.detach() for p in model.parameters()], 0.002)

    return alternate(options, by_hand, steps=120, block=3)


def rbm() -> Pair:
    from sklearn.neural_network import BernoulliRBM

    ours = ("model=rbm", "model.hidden=256", "dataset=mnist", "dataset.validation=0", "trainer.batch_size=100",
            "trainer.preview_every=0")  # fmt: skip
    data = mnist_bytes().numpy() / 255 > 0.5  # scikit-learn computes in float64 unless it is given float32
    machine = BernoulliRBM(n_components=256, batch_size=100, n_iter=1, learning_rate=0.05)
    return alternate(ours, lambda steps: machine.fit(data[: steps * 100]), steps=3 * 600, block=100)


def mnist_bytes() -> torch.Tensor:
    """Return MNIST's 60,000 training digits as bytes (60000, 784)."""
    _, dataset, _ = built("model=vae", "dataset=mnist", "dataset.validation=0", "device=cpu", "out=unused")
    return dataset.arrays("train")[0].flatten(1)


def start_up() -> dict[str, float]:
    """Return the seconds of `genlab --help` and `genlab train --cfg job`, each the median of 9 processes."""

    def seconds(*arguments: str) -> float:
        times = []
        for _ in range(9):
            began = time.perf_counter()
            subprocess.run([str(Path(sys.executable).parent / "genlab"), *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    return {"genlab --help": seconds("--help"), "genlab train --cfg job": seconds("train", "--cfg", "job")}


PAIRS = {"vae": vae, "dcgan": dcgan, "unet": unet, "rbm": rbm}
WHAT = {
    "vae": "five epochs of the VAE 784–400–20 on MNIST, batch 128, against the loop by hand with the data on the device",
    "dcgan": "300 steps of DCGAN 32×32, batch 64, with EMA, against the loop by hand",
    "unet": "120 steps of a U-Net 28×28, batch 64, with EMA and clipping, against the loop by hand",
    "rbm": "three epochs of RBM 784–256, PCD-1, batch 100, no previews, against scikit-learn's BernoulliRBM "
    "(in float64, its default)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["start", *PAIRS])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/cpu.json"))
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    found["machine"] = f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    for name in options.names:
        if name == "start":
            found["start"] = start_up()
        else:
            sys.stderr.write(f"{name}: {WHAT[name]}\n")
            found[name] = {"what": WHAT[name], **PAIRS[name]()}
        print(name, json.dumps(found[name]))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
