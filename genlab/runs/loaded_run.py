"""A trained run, as a task sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from torch import nn

from genlab.distributed.device import Device
from genlab.runs.run_folder import RunFolder
from genlab.spec import Spec


@dataclass
class Run:
    """A run's folder, its model with the weights that sample, and, when asked for, its data."""

    folder: RunFolder
    config: dict[str, Any]  # its own, as it was composed for training
    info: dict[str, Any]  # run.json
    model: nn.Module
    spec: Spec
    device: Device
    step: int
    open_data: Callable[[], Any]

    @cached_property
    def dataset(self) -> Any:
        """The run's dataset, opened at first use: sampling needs none."""
        return self.open_data()

    @property
    def name(self) -> str:
        """The name of the recipe."""
        return self.info["model"]

    @property
    def training(self) -> dict[str, float]:
        """What training cost so far: steps, seconds, items_per_s (median over the log) and memory_mb (peak)."""
        log = [
            line
            for line in self.folder.history()
            if "seconds" in line and line["step"] <= self.step
        ]
        if not log:
            return {}
        return {
            "steps": self.step,
            "seconds": log[-1]["seconds"],
            "items_per_s": median(line["items_per_s"] for line in log),
            "memory_mb": max(line["memory_mb"] for line in log),
        }
