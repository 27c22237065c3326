"""Build objects from YAML values, checked against a constructor's type hints and ranges."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any, get_type_hints

from genlab.errors import UserError, did_you_mean
from genlab.untrusted.configs import SHIPPED_TARGET


def import_target(node: dict[str, Any], where: str) -> Any:
    """Return the class or function that `node["_target_"]` names.

    Args:
        node: a config with a `_target_`.
        where: the config's path to the node, for messages.

    Raises:
        UserError: the target does not exist, or is reached through a genlab module that only
            imports it.
    """
    name = node.get("_target_")
    if not isinstance(name, str) or not is_dotted_name(name):
        raise UserError(f"{where} needs a _target_ such as package.module.Class, not {name!r}")
    if not SHIPPED_TARGET.fullmatch(name) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own model is often a file beside the config
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name) and error.name != module:
            raise  # the module exists, but something that it imports does not
        raise UserError(f"{where}._target_={name}: the module '{module}' does not exist") from error
    except AttributeError as error:
        known = vars(importlib.import_module(module))
        near = did_you_mean(attribute, known)
        raise UserError(f"{where}._target_={name}: {module} has no '{attribute}'{near}") from error
    package = str(getattr(found, "__module__", None) or "").split(".")[0]
    if SHIPPED_TARGET.fullmatch(name) and package not in ("genlab", "torch"):
        raise UserError(f"{where}._target_={name} is not defined by genlab")
    if package in sys.stdlib_module_names or not callable(found):
        raise UserError(
            f"{where}._target_={name} is not a class or function of a model, network or data set"
        )
    return found


def is_dotted_name(name: str) -> bool:
    """Whether a text is a dotted path of Python identifiers."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def validate_kwargs(
    target: Callable[..., Any], values: dict[str, Any], where: str, *, skip: int = 0
) -> dict[str, Any]:
    """Return `values` converted to the types that the keywords of `target` declare.

    Args:
        where: the config's path to the values, for messages.
        skip: the number of leading parameters that the caller passes itself.

    Raises:
        UserError: an unknown name, a wrong type, a value out of range, or a missing value.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{where}={format_cli_value(values)}: {where} is a group of options; "
            f"set {where}.<option>=<value>"
        )
    parameters, hints = parameters_and_type_hints(target)
    keyword_kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = {p.name: p for p in parameters[skip:] if p.kind in keyword_kinds}
    prefix = f"{where}." if where else ""
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name == "_target_":
            continue
        if name not in known:
            raise UserError(
                f"unknown option '{prefix}{name}'{did_you_mean(name, known)}; "
                f"{where or 'the command'} has {', '.join(known) or 'no options'}"
            )
        value = instantiate_nested(value, prefix + name, target)
        if name in hints:
            value = validate_value(hints[name], value, prefix + name)
        checked[name] = value
    for name, parameter in known.items():
        if name not in checked and parameter.default is parameter.empty:
            raise UserError(f"{prefix}{name} is not set; give {prefix}{name}=…")
    return checked


def validate_value(hint: Any, value: Any, option: str) -> Any:
    """Return `value` converted to the type `hint`.

    Raises:
        UserError: the value does not fit; names the option, the value and what is allowed.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type with its own pydantic configuration
        adapter = TypeAdapter(hint)
    try:
        checked = adapter.validate_python(value)
        refuse_other_kind(value, checked, option)
        return checked
    except ValidationError as error:
        first = error.errors()[0]
        reasons = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
        # If a list is too short, the list is shown, not an element.
        location = () if first["type"] == "missing" else first["loc"]
        index = "".join(f"[{part}]" for part in location if isinstance(part, int))
        shown = format_cli_value(first["input"] if index else value)
        raise UserError(f"{option}{index}={shown}: {'; or '.join(reasons)}") from error


def refuse_other_kind(value: Any, checked: Any, option: str) -> None:
    """Refuse a text or a truth value that pydantic has read as a number, or the reverse.

    It reads `true` as 1, "10" as 10, and 1 or "yes" as true. A whole number may be written as 1e3.

    Args:
        value: as it was given, maybe a list of values.
        checked: what pydantic made of it.

    Raises:
        UserError: names the option, the value and what is allowed.
    """
    if isinstance(value, list | tuple) and isinstance(checked, list | tuple):
        for i, (part, checked_part) in enumerate(zip(value, checked, strict=False)):
            refuse_other_kind(part, checked_part, f"{option}[{i}]")
    elif isinstance(value, dict) and isinstance(checked, dict):
        for (key, part), checked_part in zip(value.items(), checked.values(), strict=False):
            refuse_other_kind(part, checked_part, f"{option}.{key}")
    elif isinstance(checked, bool) != isinstance(value, bool) or (
        isinstance(checked, int | float) and isinstance(value, str)
    ):
        if isinstance(checked, bool):
            allowed = "true or false"
        elif isinstance(checked, int | float):
            allowed = "a number" if isinstance(checked, float) else "a whole number"
        else:
            return
        shown = repr(value) if isinstance(value, str) else format_cli_value(value)
        raise UserError(f"{option}={shown}: input should be {allowed}")


def parameters_and_type_hints(
    target: Callable[..., Any],
) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return the parameters of a function or class, and their type hints.

    A constructor that passes **options on also accepts the parameters of its base class.
    """
    # A dataclass keeps its hints on the class, where each resolves in the module that wrote it.
    hinted: Any = target
    if isinstance(target, type) and not is_dataclass(target):
        hinted = target.__init__  # type: ignore[misc]  # read, not called
    parameters = list(inspect.signature(target).parameters.values())
    hints = get_type_hints(hinted, include_extras=True)
    if isinstance(target, type) and any(p.kind is p.VAR_KEYWORD for p in parameters):
        assert target.__base__ is not None  # object takes no **options
        known = {p.name for p in parameters}
        inherited, inherited_hints = parameters_and_type_hints(target.__base__)
        parameters += [p for p in inherited if p.name not in known]
        hints = inherited_hints | hints
    return parameters, hints


def format_cli_value(value: Any) -> str:
    """Return a value as it would be typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else repr(value)


def instantiate_nested(value: Any, where: str, outer: Callable[..., Any] | None = None) -> Any:
    """Return a value with every mapping that has a `_target_` replaced by its object.

    A mapping with `_partial_: true` becomes a function that still takes its first argument.

    Args:
        where: the config's path to the value, for messages. Those of a dataset inside of another
            one name its options by their whole path.
        outer: the class whose option the value is.
    """
    if isinstance(value, dict) and "_target_" in value:
        target = import_target(value, where)
        if SHIPPED_TARGET.fullmatch(value["_target_"]) and not is_safe_to_instantiate(target):
            raise UserError(
                f"{where}._target_={value['_target_']} is not a network, model or data set; only "
                "these can be options"
            )
        if value.get("_partial_"):
            options = {key: inner for key, inner in value.items() if key != "_partial_"}
            return partial(target, **validate_kwargs(target, options, where, skip=1))
        if not callable(getattr(target, "qualify_option_names", None)):
            return instantiate(target, value, where)
        options = validate_kwargs(target, value, where)
        locate = partial(locate_options, target=target, where=where, outer=outer)
        try:
            nested = target(**options)
        except UserError as error:
            raise UserError(locate(str(error))) from error
        nested.qualify_option_names(where, locate)
        return nested
    if isinstance(value, dict):
        return {key: instantiate_nested(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [instantiate_nested(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    return value


def locate_options(
    text: str, target: Callable[..., Any], where: str, outer: Callable[..., Any] | None = None
) -> str:
    """Return a text about a nested dataset with the whole path of its options.

    "set dataset.crop=center" becomes "set dataset.base.crop=center", and "dataset=digits" becomes
    "dataset@dataset.base=digits".

    Args:
        target: the class of the dataset; only the names of its options are changed.
        where: the config's path to the dataset.
        outer: the class of the dataset around it, whose own options set some of them.
    """
    names = "|".join(parameter.name for parameter in parameters_and_type_hints(target)[0])
    text = re.sub(rf"(?<![\w.@/\\-])dataset\.(?=(?:{names})\b(?!\.))", f"{where}.", text)
    text = re.sub(r"(?<![\w.@/\\-])dataset=(?=[a-z])", f"dataset@{where}=", text)
    section = where.rpartition(".")[0]
    for option, inner in getattr(outer, "passed_on", {}).items():
        text = re.sub(rf"\b{re.escape(f'{section}.{inner}')}\b", f"{section}.{option}", text)
    return text


def is_safe_to_instantiate(target: Any) -> bool:
    """Whether a class or function of genlab only builds a network, model or data set.

    A config may come from an untrusted source, and genlab has functions that write files and
    start processes.
    """
    if isinstance(target, type):
        return any(
            verb in vars(kind)
            for kind in target.__mro__[:-1]
            for verb in ("forward", "batches", "__call__")
        )
    return target.__module__.startswith(("genlab.models.", "genlab.nn."))


def instantiate(target: Callable[..., Any], values: dict[str, Any], where: str, *args: Any) -> Any:
    """Return `target(*args, **values)`, with the values checked against its type hints."""
    return target(*args, **validate_kwargs(target, values, where, skip=len(args)))
