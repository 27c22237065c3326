"""A trained run with its model in memory, as commands use it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

from genlab.data.mixed_table_units import MixedTableUnits
from genlab.data.table_units import TableUnits
from genlab.distributed.device import Device
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.spec import ClassName, DataSpec


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

    def class_number(self, name: ClassName, option: str = "label") -> int:
        """Return the number of a class that is given by its name or its number.

        The names that a run of an older version did not record are those of its dataset.

        Raises:
            UserError: the data does not have the class.
        """
        spec = self.spec
        if spec.num_classes and not spec.class_names and not str(name).isdecimal():
            own = self.dataset.spec
            names = own.class_names if own.num_classes == spec.num_classes else ()
            spec = replace(spec, class_names=names)
        return spec.class_number(name, option)

    @cached_property
    def table_units(self) -> TableUnits | None:
        """The columns of a table and their units; None for other data.

        Raises:
            UserError: data.json is damaged.
        """
        if self.spec.kind not in ("points", "table"):
            return None
        if not (summary := self.folder.data_summary()):
            return self._table_units_of_older_run()
        try:
            reader = MixedTableUnits if self.spec.kind == "table" else TableUnits
            units = reader.from_json(summary)
            if isinstance(units, MixedTableUnits):
                units.require_categories(self.spec.categories)
        except (ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.folder.path / 'data.json'} is unreadable: {reason}") from error
        return units if units and len(units.columns) == self.spec.dim else None

    @property
    def training_class_counts(self) -> list[int]:
        """The number of training items of each class, as data.json records them; 0 if unknown.

        Raises:
            UserError: data.json is damaged.
        """
        counts = [0] * self.spec.num_classes
        try:
            classes = (self.folder.data_summary() or {}).get("classes", {})
            for entry in classes.values():
                number, count = int(entry["number"]), int(entry.get("train", 0))
                if 0 <= number < len(counts):
                    counts[number] = max(0, count)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder.path / 'data.json'} is unreadable: its classes do not have numbers"
            ) from error
        return counts

    def _table_units_of_older_run(self) -> TableUnits | None:
        """Return the units that the table itself gives, as the run did not record them."""
        if not str(self.config.get("dataset", {}).get("_target_")).endswith("tabular.Table"):
            return None
        try:
            return TableUnits.from_dataset(self.dataset)
        except UserError as error:  # the table is not needed otherwise
            print(f"no CSV file in the table's own units: {error}", file=sys.stderr)
            return None

    @property
    def name(self) -> str:
        """The name of the model's recipe."""
        return str(self.metadata["model"])

    @property
    def dataset_name(self) -> str:
        """The name of the dataset's config."""
        return str(self.metadata["dataset"])

    @property
    def file_range(self) -> tuple[float, float] | None:
        """The values of black and white in the image files, if the training set them.

        They are read from the config, because the data may be missing where the run is used.
        """
        options = self.config.get("dataset") or {}
        while options.get("file_range") is None and isinstance(options.get("base"), Mapping):
            options = options["base"]
        return tuple(options["file_range"]) if options.get("file_range") else None

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
