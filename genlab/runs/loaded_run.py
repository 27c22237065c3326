"""A trained run with its model in memory, as commands use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from genlab.distributed.device import Device
from genlab.runs.run_folder import RunFolder
from genlab.spec import DataSpec


@dataclass
class LoadedRun:
    """A run's folder, its model with the weights that sample, and its dataset on demand."""

    folder: RunFolder
    # The config as it was composed for training, and run.json.
    config: dict[str, Any]
    metadata: dict[str, Any]
    # A GenerativeModel in evaluation mode. Its abilities are checked when a command needs them.
    model: Any
    spec: DataSpec
    device: Device
    step: int
    open_data: Callable[[], Any]

    @cached_property
    def dataset(self) -> Any:
        """The run's dataset, opened at first use, because sampling does not need it."""
        return self.open_data()

    @property
    def name(self) -> str:
        """The name of the model's recipe."""
        return str(self.metadata["model"])

    @property
    def dataset_name(self) -> str:
        """The name of the dataset's config."""
        return str(self.metadata["dataset"])

    @property
    def training_cost(self) -> dict[str, float]:
        """The cost of training: steps, seconds, items_per_s (median) and memory_mb (peak).

        Empty if nothing was logged before the checkpoint.
        """
        log = [
            line
            for line in self.folder.read_log()
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
