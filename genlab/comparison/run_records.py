"""A run with one record of its numbers; its config, log and pictures are read when needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.config.dotted_keys import flatten_config
from genlab.config.override_keys import DOWNLOAD_KEYS, RUNTIME_KEYS, override_key, root_key
from genlab.errors import UserError
from genlab.metrics.sections import EFFICIENCY_METRIC
from genlab.runs.migrations import migrate_evaluation_record, migrate_overrides
from genlab.runs.run_folder import RunFolder
from genlab.untrusted.files import (
    MAX_PICTURE_BYTES,
    is_inside_folder,
    read_bytes,
    read_json,
    refuse_links_and_special_files,
)
from genlab.untrusted.records import is_valid_record, replace_unprintable_texts
from genlab.untrusted.text import to_printable_text

Record = dict[str, Any]  # a metrics.json

# Options of a dataset that are not conditions of a number: its place, options that the conditions
# contain in other words (size: the shape), and options that change only what training sees.
NOT_DATA_CONDITIONS = {key.removeprefix("dataset.") for key in DOWNLOAD_KEYS} | {
    "_target_",
    "size",
    "range",
    "binarize",
    "dequantize",
    "flip",
    "validation",
    "split_seed",
    # how files are read, not what is in them
    "workers",
    "cache_in_memory",
    "cache_limit_mb",
    "strict",
    "folder_rules",
    "table_rules",
}


# Rows that may be densities of the values of an item, whose nats depend on the values' range.
DENSITY_ROWS = ("nll", "nll_elbo", "nll_iwae", "nll_ode")


@dataclass
class RunRecord:
    """One run with one record of its numbers, or the reason why it has none."""

    folder: Path
    record: Record | None
    label: str | None = None  # None: chosen by what distinguishes the runs
    missing_reason: str = "it was not measured"
    converted: frozenset[str] = frozenset()  # names of rows whose range is converted to [0, 1]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The run's run.json."""
        refuse_links_and_special_files(self.folder, "run")
        run = RunFolder(self.folder)
        metadata = run.metadata()
        if metadata["spec"]:
            run.spec()  # its values are valid
        return metadata

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's config.yaml, by dotted key."""
        return flatten_config(RunFolder(self.folder).read_config())

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The complete lines of stats.jsonl."""
        return RunFolder(self.folder).read_log()

    @property
    def training_notes(self) -> dict[str, int]:
        """The notes that training logged, without the advice -> the step of the first of each."""
        notes: dict[str, int] = {}
        for line in self.log:
            if line.get("step", 0) <= self.step:
                for note in line.get("notes", ()):
                    notes.setdefault(
                        to_printable_text(str(note).partition("; try ")[0]), line["step"]
                    )
        return notes

    @property
    def typed_overrides(self) -> dict[str, str]:
        """The overrides of the command that trained the run, without seed and runtime options."""
        command = [str(word) for word in self.metadata.get("command") or []][2:]
        command = migrate_overrides(command, self.metadata.get("format", 1))
        ignored = RUNTIME_KEYS | {"seed", "hydra"}
        return {
            override_key(word): word.partition("=")[2]
            for word in command
            if root_key(word) not in ignored
        }

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The record's pictures as PNG files, or the newest ones of training."""
        found: dict[str, bytes] = {}
        for key, name in ((self.record or {}).get("pictures") or {}).items():
            path = self.folder / str(name)
            if is_inside_folder(path, self.folder) and (png := read_png_or_none(path)):
                found[str(key)] = png
        previews = sorted((self.folder / "samples").glob("step_*.png"))
        in_training = {"reals": self.folder / "reals.png"}
        if previews:
            in_training["samples"] = previews[-1]
        for key, path in in_training.items():
            if key not in found and (png := read_png_or_none(path)):
                found[key] = png
        return found

    @property
    def model(self) -> str:
        """The name of the recipe."""
        return str(self.metadata.get("model"))

    @property
    def seed(self) -> Any:
        """The seed of training."""
        return self.metadata.get("seed")

    @property
    def step(self) -> int:
        """The step of the record; without a record, the step of the newest checkpoint."""
        if self.record and "step" in self.record:
            return self.record["step"]
        return newest_checkpoint_step(self.folder) or 0

    @property
    def sampler(self) -> dict[str, Any]:
        """The sampler's name and options in the record."""
        return ((self.record or {}).get("settings") or {}).get("sampler") or {}

    @property
    def training_options(self) -> dict[str, Any]:
        """The options that say what is trained, by dotted key.

        Without the seed, because seeds of one recipe are averaged, and without the place of the
        data.
        """
        ignored = DOWNLOAD_KEYS | {"seed"}
        return {
            key: value
            for key, value in self.config.items()
            if key not in ignored and root_key(key) not in RUNTIME_KEYS
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the record, with densities as `set_densities_to_convert` left them."""
        rows = (self.record or {}).get("metrics", ())
        return [
            self.convert_row_to_unit_range(row) if row["name"] in self.converted else row
            for row in rows
        ]

    def set_densities_to_convert(self, names: set[str]) -> None:
        """Give the densities with these names in nats of values in [0, 1] from now on."""
        self.converted = frozenset(names)

    def convert_row_to_unit_range(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with a density of values in [0, 1]; a row of another kind is unchanged."""
        density_range = self.density_range(row)
        if density_range is None or row["value"] is None:
            return row
        low, high = density_range
        shift = math.prod((self.metadata.get("spec") or {})["shape"]) * math.log(high - low)
        conditions = {**(row.get("conditions") or {}), "range": format_value_range((0.0, 1.0))}
        if shift:
            conditions["converted from range"] = format_value_range(density_range)
        unit = f"{row['unit']} in [0, 1]"
        return {**row, "value": row["value"] - shift, "unit": unit, "conditions": conditions}

    def density_range(self, row: dict[str, Any]) -> tuple[float, float] | None:
        """Return the range of the values that a row's density in nats is of.

        None if it is not a density of images or videos.
        """
        spec = self.metadata.get("spec") or {}
        is_continuous = spec.get("dequantized") or not spec.get("levels", 256)
        name = row.get("name")  # a picture has none
        if name == "nll_ode":
            is_continuous = True
        is_density = name in DENSITY_ROWS and row["unit"] == "nats" and is_continuous
        if not is_density or spec.get("kind", "image") not in ("image", "video"):
            return None
        low, high = spec.get("range", (0.0, 1.0))
        return (float(low), float(high)) if high > low else None

    def data_conditions(self, row: dict[str, Any]) -> dict[str, str]:
        """Return the data that a row's number is measured on, as conditions.

        A likelihood also depends on the levels of the values.
        """
        if row["metric"] == EFFICIENCY_METRIC:
            return {}
        spec = self.metadata.get("spec") or {}
        conditions = {
            "data": self.metadata.get("dataset"),
            "shape": "×".join(map(str, spec.get("shape", ()))),
        }
        for key, value in self.config.items():
            name = key.removeprefix("dataset.")
            # null is an option without effect, which other datasets do not even have
            if name != key and name not in NOT_DATA_CONDITIONS and value is not None:
                conditions[name] = value
        is_likelihood = row["metric"] == "likelihood"
        if is_likelihood and spec.get("levels"):
            conditions["levels"] = spec["levels"]
        if density_range := self.density_range(row):
            conditions["range"] = format_value_range(density_range)
        binarized = self.config.get("dataset.binarize") or "none"
        if binarized == "threshold" or (binarized != "none" and is_likelihood):
            conditions["binarized"] = binarized
        return {key: to_printable_text(value) for key, value in conditions.items()}


def read_metrics_records(folder: Path) -> list[Record]:
    """Return a run's records, the newest last, with the present names of metrics.

    Files of a format that genlab no longer reads are left out.

    Raises:
        UserError: the folder has links out of it, or pipes in it.
    """
    refuse_links_and_special_files(folder, "run")
    records = []
    paths = [*folder.glob("evaluation/*.json"), *folder.glob("metrics*.json")]
    for path in sorted(paths, key=lambda p: p.stat().st_mtime):
        try:
            record = read_evaluation_record(path)
        except UserError:
            continue
        if is_valid_record(record):
            records.append(record)
    return records


def read_evaluation_record(path: Path) -> Record:
    """Return a record of numbers with the present names, and with texts that may be printed.

    Raises:
        UserError: it is not a JSON object.
    """
    return migrate_evaluation_record(replace_unprintable_texts(read_json(path)))


def newest_checkpoint_step(folder: Path) -> int | None:
    """Return the step of a run's newest checkpoint, or None if there is none."""
    checkpoints = RunFolder(folder).checkpoint_files()
    return int(checkpoints[-1].stem.removeprefix("step_")) if checkpoints else None


def format_value_range(bounds: tuple[float, float]) -> str:
    """Return a range of values as text: [-1, 1]."""
    return "[{:g}, {:g}]".format(*bounds)


def read_png_or_none(path: Path) -> bytes | None:
    """Return a PNG file, or None if it does not exist or is not a PNG file."""
    try:
        data = read_bytes(path, MAX_PICTURE_BYTES)
    except (UserError, OSError):
        return None
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else None
