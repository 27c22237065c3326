"""The config of a resumed run: its own, with the options that a resume may change."""

from __future__ import annotations

from inspect import signature
from typing import Any

from genlab.builders.pretrained import pretrained_part_name
from genlab.config.dotted_keys import flatten_config, get_option, set_option
from genlab.config.instantiate import format_cli_value, validate_kwargs
from genlab.config.override_keys import (
    DATA_PATH_KEYS,
    RESUMABLE_KEYS,
    RUNTIME_KEYS,
    is_path_option,
    override_key,
    root_key,
)
from genlab.errors import UserError
from genlab.runs.data_place import name_data_place
from genlab.runs.run_folder import RunFolder
from genlab.spec import Count
from genlab.untrusted.configs import (
    refuse_unsafe_options,
    refuse_untrusted_config,
    walk_config,
)

Plain = dict[str, Any]

ADDED_BY_MIGRATION = ("model.penalize_through_batch",)  # to the config of an older run
FITTED_SECTIONS = ("model", "dataset", "preprocess", "trainer")
SECTIONS = ("model", "dataset", "trainer", "device")  # that every run's config.yaml has


def declare_run_option_types(
    *,
    seed: Count,
    out: str | int,
    resume: str | int | None,
    trusted_packages: list[str],
    trainer: dict[str, Any],
    debug: bool | None,
) -> None:
    """Declare the types of the options of a training that no object takes."""


def check_run_options(config: Plain) -> None:
    """Check the options of a training that no object takes.

    Raises:
        UserError: one has the wrong type.
    """
    names = signature(declare_run_option_types).parameters
    validate_kwargs(declare_run_option_types, {name: config.get(name) for name in names}, "")


def config_for_restart(given: Plain, folder: RunFolder) -> Plain:
    """Return the config of a sweep's job that was started before, on the device given now.

    Raises:
        UserError: the job's config is not the one composed now, as when a recipe was edited.
    """
    own = folder.read_config(*SECTIONS)
    where = str(folder.path / "config.yaml")
    # The classes that the command itself names are the user's own.
    named = {str(v).split(".")[0] for _, key, v in walk_config(given, where) if key == "_target_"}
    refuse_untrusted_config(own, allowed=(*given["trusted_packages"], *named), where=where)
    part = pretrained_part_name(given)
    for key, value in fitted_options_of_run(folder).items():
        set_option(given, key, value)  # as at the first start, of the same data
    if given["trainer"]["batch_size"] == "auto":  # the run's config has the size that was found
        given["trainer"]["batch_size"] = own["trainer"]["batch_size"]
    before, now = (
        flatten_config({key: value for key, value in config.items() if key not in RUNTIME_KEYS})
        for config in (own, given)
    )
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        # The run's config also has what a codec's or teacher's run brought with it.
        is_unset_data_option = key.startswith(("dataset.", "preprocess.")) and now.get(key) is None
        if part and (key == f"{part}.run" or key.startswith(f"model.{part}.")):
            continue
        if part and is_unset_data_option:
            continue
        if key in ADDED_BY_MIGRATION and now.get(key) is None:
            continue  # an older run keeps its meaning
        raise UserError(
            f"{folder.path} was started with {key}={format_cli_value(before.get(key))}, but now "
            f"it is {format_cli_value(now.get(key))}; give another hydra.sweep.dir=, or remove "
            "that folder"
        )
    if not folder.checkpoint_files():
        # It starts again from step 0, and loads the weights of its codec or teacher again.
        return given
    return {**own, **{key: given[key] for key in RUNTIME_KEYS}}


def fitted_options_of_run(folder: RunFolder) -> Plain:
    """Return the options of a run, by dotted key, that were chosen to fit its data.

    Raises:
        UserError: one of them does more than that.
    """
    return refuse_unsafe_options(
        folder.metadata().get("fitted_options", {}),
        is_allowed=lambda key: root_key(key) in FITTED_SECTIONS and not is_path_option(key),
        where=f"{folder.path / 'run.json'}, fitted_options",
    )


def config_for_resume(
    given: Plain, folder: RunFolder, overrides: list[str], groups: dict[str, Any]
) -> Plain:
    """Return a run's own config, changed by the overrides that a resume may give.

    Every override takes effect, or repeats what the run has, or is refused.

    Args:
        given: the config composed from this command line.
        overrides: of this command line.
        groups: the choice of each config group in that composition.

    Raises:
        UserError: an override would change what is trained, or the run's config names classes
            that are not trusted.
    """
    own = folder.read_config(*SECTIONS)
    where = folder.path / "config.yaml"
    refuse_untrusted_config(own, allowed=tuple(given["trusted_packages"]), where=str(where))
    if (part := pretrained_part_name(own)) and part not in own["model"]:
        raise UserError(f"{where} is unreadable: its model lacks the {part} that the run has")
    # A run's own config does not decide which packages its user trusts.
    own["trusted_packages"] = given["trusted_packages"]
    check_run_options(own)
    choices = folder.metadata()["choices"]
    for override in overrides:
        key, value = override_key(override), override.partition("=")[2]
        if key in ("resume", "debug", "trusted_packages"):
            continue
        if (key, value) == ("trainer.batch_size", "auto"):
            continue  # the run's config has the size that was found
        if key == "out":
            raise UserError("out= is for a new run: a resume continues in the run's own folder")
        if key == "device":
            own["device"] = given["device"]
        elif key in DATA_PATH_KEYS:
            place: Plain = {}
            set_option(place, key, get_option(given, key))
            own = name_data_place(own, place["dataset"])
        elif key in RESUMABLE_KEYS or key.startswith("device."):
            set_option(own, key, get_option(given, key))
        elif key in groups or key in choices:
            refuse_other_choice(override, choices.get(key))
        else:
            refuse_other_value(override, given=flatten_config(given), own=flatten_config(own))
    return own


def refuse_other_choice(override: str, own: Any) -> None:
    """Refuse the choice of a config group that the run does not have.

    Raises:
        UserError: names both choices.
    """
    key, value = override_key(override), override.partition("=")[2]
    if override.startswith("~") or value != ("null" if own is None else str(own)):
        has = (
            f"differs from the run's {key}={own}" if own else f"adds to the run, which has no {key}"
        )
        raise UserError(f"{override} {has}; a resume continues with the run's own config")


def refuse_other_value(override: str, *, given: Plain, own: Plain) -> None:
    """Refuse an option, or a section of options, with another value than the run has.

    Args:
        given, own: values by dotted key, of the command line and of the run.

    Raises:
        UserError: names both values.
    """
    key = override_key(override)

    def values(config: Plain) -> Plain:
        return {k: v for k, v in config.items() if k == key or k.startswith(f"{key}.")}

    if values(given) == values(own) and (values(own) or override.startswith("~")):
        return
    may_change = f"a resume may change only {', '.join(sorted(RESUMABLE_KEYS))} and device"
    if not values(own):
        raise UserError(f"{override}: the run has no option {key}; {may_change}")
    shown = format_cli_value(own[key]) if key in own else values(own)
    raise UserError(f"{override} differs from the run's {key}={shown}; {may_change}")
