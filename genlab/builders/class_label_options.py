"""Options that are classes: their names on the command line become numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from genlab.config.instantiate import format_cli_value, parameters_and_type_hints
from genlab.errors import UserError
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import IsClass

Plain = dict[str, Any]


def options_naming_classes(command: Callable[..., Any], options: Plain) -> list[str]:
    """Return the options of a command that are a class, or a list of classes.

    Args:
        options: as they are given, for options that depend on others.
    """
    _, hints = parameters_and_type_hints(command)
    return [
        name
        for name, hint in hints.items()
        if any(not mark.option or options.get(mark.option) == mark.value for mark in marks(hint))
    ]


def marks(hint: Any) -> list[IsClass]:
    """Return the marks of classes in a type hint."""
    own = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, IsClass)]
    return own + [mark for inner in get_args(hint) for mark in marks(inner)]


def map_classes(options: Plain, names: Sequence[str], function: Callable[[str, Any], int]) -> Plain:
    """Return options with function(option, class) for each class that is given."""
    mapped: Plain = {}
    for name in names:
        value = options.get(name)
        if isinstance(value, list):
            mapped[name] = [function(name, each) for each in value]
        elif value is not None and not isinstance(value, dict):
            mapped[name] = function(name, value)
    return options | mapped


def hide_classes(options: Plain, names: Sequence[str]) -> Plain:
    """Return options with 0 for each class, to check the others before a run is loaded."""
    return map_classes(options, names, lambda name, value: 0)


def replace_class_names_by_numbers(
    options: Plain, names: Sequence[str], runs: Sequence[LoadedRun]
) -> Plain:
    """Return options with the number of each class.

    Raises:
        UserError: a run does not have the class, or the runs give it different numbers.
    """

    def number(option: str, value: Any) -> int:
        if type(value) is int and not all(run.spec.num_classes for run in runs):
            return value  # the command says what it lacks
        found = {run.class_number(value, option) for run in runs}
        if len(found) > 1:
            raise UserError(
                f"{option}={format_cli_value(value)}: the class has different numbers in the data "
                "of the runs"
            )
        return found.pop()

    return map_classes(options, names, number)
