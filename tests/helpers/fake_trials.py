"""Fake trials for tests of searches, without torch, so that processes to be killed start fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from genlab.errors import UserError
from genlab.sweeps.job_state import run_and_record_job
from genlab.sweeps.sweep_folder import SweepFolder


def fake_launch(
    work: Callable[[dict[str, str], int], dict[str, float]], batches: list[list[int]] | None = None
) -> Callable:
    """Return a launcher's `launch` whose jobs do `work(overrides, number)` instead of training."""

    def launch(self, job_overrides, initial_job_idx):
        jobs = SweepFolder(Path(self.config.hydra.sweep.dir)).add_jobs(
            ["train"], initial_job_idx, job_overrides
        )
        if batches is not None:
            batches.append([job.number for job in jobs])
        for job in jobs:
            try:
                run_and_record_job(
                    job.folder,
                    lambda job=job: work(dict(o.split("=", 1) for o in job.overrides), job.number),
                )
            except UserError:
                continue

    return launch


def quadratic_loss(overrides: dict[str, str], number: int) -> dict[str, float]:
    """Return a loss that is least at a learning rate of 0.01 and diverges above 0.05."""
    rate = float(overrides["optimizer.lr"])
    if rate > 0.05:
        raise UserError(f"step 7: loss is nan at {rate}")
    return {"loss": 1 + math.log10(rate / 0.01) ** 2, "cost": rate}
