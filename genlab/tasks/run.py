"""A trained run, as a task sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from genlab.spec import Spec
from genlab.training.device import Device
from genlab.training.run import RunFolder


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
