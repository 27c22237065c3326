"""A run with one record of its numbers: its config, its log and its pictures, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.fileio import read_json, refuse_links
from genlab.runs.run_folder import RunFolder

Record = dict[str, Any]

# What says where, how often and by which seed a run was trained, not what was trained.
NOT_RECIPE = {"seed", "out", "resume", "allow", "debug", "dataset.root", "dataset.download"}

# Options of a dataset that are said otherwise (size: the shape), or that change what a model sees in training alone.
NOT_DATA = {
    "_target_",
    "root",
    "download",
    "size",
    "range",
    "binarize",
    "dequantise",
    "flip",
    "validation",
    "split_seed",
}


@dataclass
class Entry:
    """One run with one record of its numbers, or why there is none."""

    folder: Path
    record: Record | None
    label: str | None = None  # None: found from what tells the runs apart
    missing: str = "it was not measured"

    @cached_property
    def info(self) -> dict[str, Any]:
        refuse_links(self.folder, "run")
        return RunFolder(self.folder).info()

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml with dotted keys."""
        return dict(flattened(RunFolder(self.folder).options()))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of stats.jsonl, without one that a kill cut short."""
        return RunFolder(self.folder).history()

    @property
    def notes(self) -> dict[str, int]:
        """What the run said of itself in training, without the advice, and the step at which it first did."""
        found: dict[str, int] = {}
        for line in self.history:
            for note in line.get("notes", ()) if line.get("step", 0) <= self.step else ():
                found.setdefault(plain_value(str(note).partition("; try ")[0]), line["step"])
        return found

    @property
    def typed(self) -> dict[str, str]:
        """The overrides of the command that trained it, but for those that say where, on what and from which seed."""
        words = [
            str(word).lstrip("+").partition("=") for word in (self.info.get("command") or [])[2:]
        ]
        besides = ("seed", "out", "device", "hydra", "resume")
        return {key: value for key, _, value in words if key.partition(".")[0] not in besides}

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The record's pictures as PNG files; in place of missing ones the newest of training's."""
        found = {}
        for key, where in ((self.record or {}).get("pictures") or {}).items():
            path = (self.folder / str(where)).resolve()
            if path.is_relative_to(self.folder.resolve()) and (png := read_png(path)):
                found[str(key)] = png
        steps = sorted((self.folder / "samples").glob("step_*.png"))
        for key, path in (
            ("samples", steps[-1] if steps else None),
            ("reals", self.folder / "reals.png"),
        ):
            if key not in found and path and (png := read_png(path)):
                found[key] = png
        return found

    @property
    def model(self) -> str:
        return str(self.info.get("model"))

    @property
    def seed(self) -> Any:
        return self.info.get("seed")

    @property
    def step(self) -> int:
        """The step that the numbers are of; without a record, the newest that is there."""
        if self.record and "step" in self.record:
            return self.record["step"]
        return newest_step(self.folder) or 0

    @property
    def sampler(self) -> dict[str, Any]:
        return ((self.record or {}).get("settings") or {}).get("sampler") or {}

    @property
    def recipe(self) -> dict[str, Any]:
        """What was trained: the config without NOT_RECIPE, and the choices that it was composed from."""
        return {k: v for k, v in self.config.items() if k not in NOT_RECIPE}

    def data(self, row: dict[str, Any]) -> dict[str, str]:
        """Return the data that a row's number is about, as a condition: a likelihood is also of the values' levels."""
        if row["metric"] == "cost":
            return {}
        spec, c = self.info.get("spec") or {}, self.config
        said = {
            "data": self.info.get("dataset"),
            "shape": "×".join(map(str, spec.get("shape", ()))),
        }
        said |= {k.removeprefix("dataset."): v for k, v in c.items() if k.startswith("dataset.")}
        said = {k: v for k, v in said.items() if k not in NOT_DATA}
        binarized = c.get("dataset.binarize") or "none"
        if row["metric"] == "likelihood":
            said |= {"levels": spec["levels"]} if spec.get("levels") else {}
            if spec.get("dequantised") and row["unit"] == "nats":
                said["range"] = "{} to {}".format(*spec["range"])
        if binarized == "threshold" or (binarized != "none" and row["metric"] == "likelihood"):
            said["binarized"] = binarized
        return {k: plain_value(v) for k, v in said.items()}


def records(folder: Path) -> list[Record]:
    """Return a run's records, the newest last; those of a format that genlab no longer writes are no records."""
    found = []
    for path in sorted(folder.glob("metrics*.json"), key=lambda p: p.stat().st_mtime):
        try:
            record = read_json(path)
        except UserError:
            continue
        if well_formed(record):
            found.append(record)
    return found


def well_formed(record: Record) -> bool:
    """Return whether a record has what is read of it, in the types that it has."""
    kinds = {"metrics": list, "absent": dict, "settings": dict, "step": int}
    if not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        return False
    words = ("metric", "name", "unit", "tag")
    number = lambda value: value is None or isinstance(value, int | float)  # noqa: E731
    return all(
        isinstance(row, dict) and all(isinstance(row.get(word), str) for word in words) and "value" in row
        and number(row["value"]) and number(row.get("floor")) and isinstance(row.get("conditions") or {}, dict)
        for row in record["metrics"]
    )  # fmt: skip


def newest_step(folder: Path) -> int | None:
    """Return the step of a run's newest checkpoint, or None where there is none."""
    steps = RunFolder(folder).steps()
    return int(steps[-1].stem.removeprefix("step_")) if steps else None


def read_png(path: Path) -> bytes | None:
    """Return a PNG file, or None if it is not there or is none."""
    data = path.read_bytes() if path.is_file() else b""
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def flattened(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted keys."""
    if isinstance(node, dict) and (node or not path):
        for key, value in node.items():
            yield from flattened(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def plain_value(value: Any) -> str:
    """Return a value as it would be typed, on one line, with no character that a page or a picture cannot hold."""
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
    text = text.encode("utf-8", "replace").decode()  # a file's name may hold bytes that are no text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
