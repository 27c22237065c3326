"""What the tests of sweeps share: a model that ends as its seed says, and a look at what became of its jobs."""

from __future__ import annotations

from pathlib import Path

from genlab.sweeps.sweep_folder import State, SweepFolder, standing

# Seed 0 trains. 1 fails and 3 dies at every start, while there is no file "mended". 2 is killed in its first start alone. 6 is
# slow, however fast the machine is.
MODEL = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn
from genlab.runs.run_folder import RunFolder

class Mine(nn.Module):
    def __init__(self, spec, *, seed: int = 0):
        super().__init__()
        self.seed, self.calls = seed, 0
        self.mean, self.log_std = nn.Parameter(torch.zeros(spec.shape)), nn.Parameter(torch.zeros(spec.shape))
        with open(f"starts-{seed}", "a") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")

    def loss(self, batch):
        self.calls += 1
        time.sleep(0.05 if self.seed == 6 else 0)
        if self.calls == 15:
            first = len(Path(f"starts-{self.seed}").read_text().splitlines()) == 1
            if self.seed == 1 and not Path("mended").exists():
                raise ValueError("this seed fails\\nby design")
            if self.seed == 2 and first and "KILL" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.seed == 3 and not Path("mended").exists():
                print("this seed dies", file=__import__("sys").stderr, flush=True)
                os._exit(3)
        noise = 0.1 * torch.randn_like(batch.x)
        return {"loss": -torch.distributions.Normal(self.mean, self.log_std.exp()).log_prob(batch.x + noise).mean()}
"""
RECIPE = """# @package _global_
defaults: [override /dataset: ring, _self_]
model: {_target_: mine.Mine, seed: "${seed}"}
trainer: {name: flow, steps: 40, batch_size: 16, save_every: 10, log_every: 10, preview_every: 0}
"""
MINE = ("--config-dir", "confs", "model=mine", "device=cpu", "device.threads=1")


def write_model(folder: Path) -> None:
    """Write the model and its recipe to a folder, for MINE to be given there."""
    (folder / "confs" / "model").mkdir(parents=True)
    (folder / "mine.py").write_text(MODEL)
    (folder / "confs" / "model" / "mine.yaml").write_text(RECIPE)


def states(sweep: Path) -> list[State]:
    """Return the states of a sweep's jobs."""
    return standing(SweepFolder.find(sweep).jobs())


def brief(sweep: Path) -> list[tuple[str, int]]:
    """Return of each job how it stands, and how often it was started."""
    return [(state.status, state.starts) for state in states(sweep)]
