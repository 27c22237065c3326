"""The config that a run goes on with: its own, with what may change meanwhile."""

from __future__ import annotations

from inspect import signature
from typing import Any

from genlab.builders.factory import Plain
from genlab.config.instantiate import arguments, refuse_targets, shown
from genlab.errors import UserError
from genlab.runs.run_folder import RunFolder
from genlab.spec import Count

# What may differ when a run goes on: how long and where, never what is trained.
MAY_CHANGE = {"trainer.steps", "trainer.max_time", "trainer.save_every", "trainer.keep"}
NAMES_DATA = {"dataset.root", "dataset.path", "dataset.of.root", "dataset.of.path"}
MAY_CHANGE |= NAMES_DATA
HOW = ("out", "resume", "device", "debug", "allow")  # what says where and how a run is trained


def general(
    *,
    seed: Count,
    out: str | int,
    resume: str | int | None,
    allow: list[str],
    trainer: dict[str, Any],
) -> None:
    """The types of the options that belong to no object."""


def check_general(config: Plain) -> None:
    """Check the options of a training that belong to no object.

    Raises:
        UserError: one is not of its type.
    """
    arguments(general, {key: config.get(key) for key in signature(general).parameters}, "")


def same(given: Plain, folder: RunFolder) -> Plain:
    """Return the config of a job that was begun before, on the device of now.

    Raises:
        UserError: it is not what is composed now: a recipe was edited in between.
    """
    from genlab.builders.pretrained import part_of
    from genlab.commands.train import flat

    own, part = folder.options("model", "dataset", "trainer", "device"), part_of(given)
    if given["trainer"]["batch_size"] == "auto":  # the run holds the number that it was settled at
        given["trainer"]["batch_size"] = own["trainer"]["batch_size"]
    before, now = (
        flat({key: value for key, value in config.items() if key not in HOW})
        for config in (own, given)
    )
    for key in sorted(before.keys() | now.keys()):
        left_open = (
            key.startswith(("dataset.", "prepare.")) and now.get(key) is None
        )  # the part's run has it
        settled = part and (key == f"{part}.run" or key.startswith(f"model.{part}.") or left_open)
        if before.get(key) != now.get(key) and not settled:
            raise UserError(
                f"{folder.path} was begun with {key}={shown(before.get(key))}, and now it is {shown(now.get(key))}; "
                "give another hydra.sweep.dir=, or remove that folder"
            )
    # Without a checkpoint it begins anew: another run's model, whose weights lie in them, is had as at first.
    return {**own, **{key: given[key] for key in HOW}} if folder.steps() else given


def resumed(given: Plain, folder: RunFolder, overrides: list[str]) -> Plain:
    """Return a run's own config, with the overrides that a resume may give.

    Raises:
        UserError: an override would change what is trained, or the config names what only its user may allow.
    """
    from genlab.builders.pretrained import part_of

    own, where = (
        folder.options("model", "dataset", "trainer", "device"),
        folder.path / "config.yaml",
    )
    refuse_targets(own, allowed=tuple(given["allow"]), where=str(where))
    if (part := part_of(own)) and part not in own["model"]:
        raise UserError(
            f"{where} is unreadable: its model has no {part}, which a run that goes on has"
        )
    own["allow"] = given["allow"]  # what the run's own config would allow counts for nothing
    check_general(own)
    choices = folder.info()["choices"]
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("resume", "debug", "allow") or (key, value) == ("trainer.batch_size", "auto"):
            continue  # the run holds the number that auto was settled at
        if key == "out":
            raise UserError("out= is for a new run: a resume goes on in the run's own folder")
        if key == "device":
            own["device"] = given["device"]
        elif key in MAY_CHANGE or key.startswith("device."):
            put(own, key, at(given, key))
        elif key in choices:
            if value != str(choices[key]):
                own_way = (
                    f"the run's {key}={choices[key]}; a resume goes on with the run's own config"
                )
                raise UserError(f"{key}={value} differs from {own_way}")
        elif at(given, key) != at(own, key):
            raise UserError(
                f"{override} differs from the run's {key}={at(own, key)}; a resume may only change "
                f"{', '.join(sorted(MAY_CHANGE))} and device"
            )
    return own


def at(config: Plain, key: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def put(config: Plain, key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    *above, last = key.split(".")
    for part in above:
        config = config.setdefault(part, {})
    config[last] = value
