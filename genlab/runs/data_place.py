"""The place of a run's data: where the run was started, or where the data is now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genlab.errors import UserError

Plain = dict[str, Any]

PLACE_OPTIONS = ("path", "root")  # the options of datasets that are a file or a folder
DATA_VARIABLE = "GENLAB_DATA"  # the folder of public datasets


def iterate_places(dataset: Plain, name: str) -> Iterator[Plain]:
    """Yield the sections of a dataset's config with an option, those inside of it included."""
    if name in dataset:
        yield dataset
    for value in dataset.values():
        if isinstance(value, dict):
            yield from iterate_places(value, name)


def name_data_place(config: Plain, given: Plain | None) -> Plain:
    """Return a run's config with the place of its data as it was given on the command line.

    Args:
        given: `path` or `root`, relative to the present folder, or in a dataset inside of the
            run's, as {"base": {"path": …}}.

    Raises:
        UserError: the run's data is not read from such a place.
    """
    config = {**config, "dataset": copy_sections(config["dataset"])}
    for keys, value in given_places(given or {}):
        option = ".".join(("dataset", *keys))
        section: Any = config["dataset"]
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        is_exact = isinstance(section, dict) and keys[-1] in section
        found = [section] if is_exact else list(iterate_places(config["dataset"], keys[-1]))
        if not found or (len(keys) > 1 and not is_exact):
            known = [name for name in PLACE_OPTIONS if any(iterate_places(config["dataset"], name))]
            has = f"is read from dataset.{known[0]}" if known else "is not read from a file"
            raise UserError(f"{option}={value}: the data of this run {has}")
        for place in found:
            place[keys[-1]] = os.path.abspath(Path(str(value)).expanduser())
    return config


def copy_sections(section: Plain) -> Plain:
    """Return a copy of nested mappings."""
    return {k: copy_sections(v) if isinstance(v, dict) else v for k, v in section.items()}


def given_places(section: Plain) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys and the value of each place that was given."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from (((key, *keys), inner) for keys, inner in given_places(value))
        elif key in PLACE_OPTIONS and value is not None:
            yield (key,), value


def find_data(config: Plain, run: Path, start_folder: str | None) -> Plain:
    """Return a run's config with the absolute places of its data.

    A relative place is looked for where the run was started, where the folder is now that contained
    `outputs/` then, and in the present folder.

    Args:
        run: the run's folder.
        start_folder: the folder in which the run was started; None if it was not recorded.

    Raises:
        UserError: a file or folder of the user is in none of these places.
    """
    config = {**config, "dataset": copy_sections(config["dataset"])}
    bases = [Path(start_folder)] if start_folder else []
    if moved := folder_around_outputs(run, str(config.get("out") or "")):
        bases.append(moved)
    bases.append(Path.cwd())
    for name in PLACE_OPTIONS:
        for place in iterate_places(config["dataset"], name):
            if place[name] is not None:
                place[name] = str(locate(str(place[name]), bases, name, run))
    return config


def is_elsewhere(config: Plain, located: Plain, start_folder: str | None) -> bool:
    """Whether `find_data` found data at another place than when the run was started."""
    if not start_folder:
        return False
    return any(
        Path(now[name]) != Path(start_folder, Path(then[name]).expanduser())
        for name in PLACE_OPTIONS
        for then, now in zip(
            iterate_places(config["dataset"], name),
            iterate_places(located["dataset"], name),
            strict=True,
        )
        if then[name] is not None
    )


def folder_around_outputs(run: Path, out: str) -> Path | None:
    """Return the folder that contains the run under its own relative path `out`, or None."""
    parts = Path(out).parts
    if not parts or Path(out).is_absolute() or ".." in parts:
        return None
    run = run.resolve()
    return run.parents[len(parts) - 1] if run.parts[-len(parts) :] == parts else None


def locate(value: str, bases: list[Path], name: str, run: Path) -> Path:
    """Return the first existing place of a path in some folders.

    Raises:
        UserError: there is none, and the path is the user's own.
    """
    path = Path(value).expanduser()
    candidates = [base / path for base in bases]  # an absolute path stays as it is
    for candidate in candidates:
        if candidate.exists():
            return candidate
    if name == "root":  # of a public dataset, which says itself what is missing
        return Path(os.environ.get(DATA_VARIABLE) or candidates[0]).expanduser()
    looked = ", ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise UserError(
        f"the data of {run} is not there any more (looked for {looked}); say where it is now: "
        "dataset.path=<file or folder>"
    )
