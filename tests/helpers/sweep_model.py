"""For tests of sweeps: a model whose fate depends on its seed, and the states of its jobs."""

from __future__ import annotations

from pathlib import Path

from genlab.sweeps.job_state import JobState, current_states
from genlab.sweeps.sweep_folder import SweepFolder

# Seed 0 trains. Seed 1 fails and seed 3 dies at every start, unless there is a file "repaired".
# Seed 2 is killed in its first start only. Seed 6 is slow on any machine.
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
        self.mean = nn.Parameter(torch.zeros(spec.shape))
        self.log_std = nn.Parameter(torch.zeros(spec.shape))
        with open(f"starts-{seed}", "a") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")

    def loss(self, batch):
        self.calls += 1
        time.sleep(0.05 if self.seed == 6 else 0)
        if self.calls == 15:
            first = len(Path(f"starts-{self.seed}").read_text().splitlines()) == 1
            if self.seed == 1 and not Path("repaired").exists():
                raise ValueError("this seed fails\\nby design")
            if self.seed == 2 and first and "KILL" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.seed == 3 and not Path("repaired").exists():
                print("this seed dies", file=__import__("sys").stderr, flush=True)
                os._exit(3)
        noise = 0.1 * torch.randn_like(batch.x)
        density = torch.distributions.Normal(self.mean, self.log_std.exp())
        return {"loss": -density.log_prob(batch.x + noise).mean()}
"""
RECIPE = """# @package _global_
defaults: [override /dataset: ring, _self_]
model: {_target_: mine.Mine, seed: "${seed}"}
trainer: {name: flow, steps: 40, batch_size: 16, save_every: 10, log_every: 10, preview_every: 0}
"""
MINE = ("--config-dir", "confs", "model=mine", "device=cpu", "device.threads=1")


def write_model(folder: Path) -> None:
    """Write the model and its recipe to a folder, in which MINE selects them."""
    (folder / "confs" / "model").mkdir(parents=True)
    (folder / "mine.py").write_text(MODEL)
    (folder / "confs" / "model" / "mine.yaml").write_text(RECIPE)


def states(sweep: Path) -> list[JobState]:
    """Return the present states of a sweep's jobs."""
    return current_states(SweepFolder.open(sweep).jobs())


def status_and_starts(sweep: Path) -> list[tuple[str, int]]:
    """Return each job's status and how often it was started."""
    return [(state.status, state.starts) for state in states(sweep)]
